"""Tasks whose splits are lists of sizes: train at the short ones, test at those and at longer ones."""

import inspect
from collections.abc import Callable

import torch
from torch import Tensor

from tasks.base import IGNORE, Segment, Task, seed_of


class Sized(Task):
    """train, validation, test: lists of {length, n} and what else `draw` takes; each entry of test is a slice.

    A task writes `draw` and `baselines`.
    """

    def __init__(self, *, train: list, validation: list, test: list, **common: int):
        super().__init__(**common)
        self.sizes = {"train": train, "validation": validation, "test": test}
        known = {"n", *inspect.signature(self.draw).parameters} - {"seed"}
        for split, sizes in self.sizes.items():
            for size in sizes:
                if set(size) != known:
                    raise ValueError(f"task.data.{split} has the size {size}: give it {', '.join(sorted(known))}")

    def draw(self, n: int, seed: int, **size) -> tuple[Tensor, Tensor]:
        """n examples of one size: tokens and targets (n, length) int64, a function of the arguments alone."""
        raise NotImplementedError

    def generate(self, split: str) -> list[Segment]:
        made = []
        for i, size in enumerate(self.sizes[split]):
            values = {key: value for key, value in size.items() if key != "n"}
            name = ", ".join(f"{key} {value}" for key, value in values.items())
            if size["n"] < 1:
                raise ValueError(f"n={size['n']} at {name}: ask for 1 example or more, or leave this size out")
            seed = seed_of(type(self).__name__, self.seed, split, i)
            made.append(Segment(name, *self.draw(size["n"], seed, **values), values=values))
        return made

    def accuracy(self, guess: Callable[[Tensor], Tensor | int]) -> float:
        """The share of test's scored targets that guess(tokens) gets right; (n, length) or what broadcasts."""
        right = scored = 0
        for segment in self.segments("test"):
            at = segment.targets != IGNORE
            right += int((at & (segment.targets == guess(segment.tokens))).sum())
            scored += int(at.sum())
        return right / scored

    def most_frequent(self) -> float:
        """The accuracy of the one answer that is most frequent in training."""
        answers = torch.cat([s.targets[s.targets != IGNORE] for s in self.segments("train")])
        answer = int(answers.bincount().argmax())
        return self.accuracy(lambda _: answer)


def at_least(least: int, **size: int) -> None:
    """Raises ValueError where the one size that is given is below `least`."""
    for name, value in size.items():
        if value < least:
            raise ValueError(f"{name}={value} is too small: make it {least} or more")


def latest(tokens: Tensor, wanted: Tensor) -> Tensor:
    """tokens, wanted (n, length) -> at every place the last token so far that is wanted; -1 before the first."""
    places = torch.arange(tokens.shape[1]).expand_as(tokens).where(wanted, -1).cummax(1).values
    return tokens.gather(1, places.clamp(min=0)).where(places >= 0, -1)
