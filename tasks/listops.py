"""ListOps of the Long Range Arena (Nangia and Bowman, 2018, https://arxiv.org/abs/1804.06028; Tay et al., 2020,
https://arxiv.org/abs/2011.04006, section 2.1): the value of a nested expression, one of ten digits, from all of its
tokens.

    [MAX 2 9 [MIN 4 7 ] 0 ]   ->   9

MIN, MAX, MED (the median, rounded down) and SM (the sum modulo 10). The trees are the Arena's: below the depth limit
a node is a digit with probability 3/4, else an operator with 2 to 10 children; kept if min_length < tokens <
max_length.
"""

from collections import Counter
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from tasks.base import Segment, Task, cached, seed_of
from tasks.sized import at_least

OPERATORS = ("MIN", "MAX", "MED", "SM")
WORDS = [*map(str, range(10)), *(f"[{name}" for name in OPERATORS), "]", "pad"]
CLOSE, PAD = 14, 15
MAX_DEPTH, MAX_CHILDREN, DIGIT = 10, 10, 0.75
PATIENCE = 100_000  # trees in a row that are of no use


def value_of(operator: int, children: list[int]) -> int:
    """What an operator (0 ... 3, as in OPERATORS) makes of digits."""
    if operator == 0:
        return min(children)
    if operator == 1:
        return max(children)
    if operator == 2:
        ordered, half = sorted(children), len(children) // 2
        return ordered[half] if len(children) % 2 else (ordered[half - 1] + ordered[half]) // 2
    return sum(children) % 10


def tree(draws: np.random.Generator, max_length: int) -> tuple[list[int], int]:
    """The tokens of one tree and its value; more than max_length tokens end it early, and such a tree is not kept."""
    tokens: list[int] = []
    open_nodes: list[tuple[int, int, list[int]]] = []  # operator, children to come, values so far
    uniform = iter(())
    while True:
        number = next(uniform, None)
        if number is None:
            uniform = iter(draws.random(256).tolist())
            number = next(uniform)
        if len(open_nodes) + 1 >= MAX_DEPTH or number > 1 - DIGIT:
            # what is left of the draw is uniform again: one number serves for both decisions
            left = number if len(open_nodes) + 1 >= MAX_DEPTH else (number - (1 - DIGIT)) / DIGIT
            value = min(9, int(left * 10))
            tokens.append(value)
        else:
            choice = min(35, int(number / (1 - DIGIT) * 36))
            open_nodes.append((choice % 4, 2 + choice // 4, []))
            tokens.append(10 + choice % 4)
            continue
        while open_nodes:
            operator, wanted, values = open_nodes[-1]
            values.append(value)
            if len(values) < wanted:
                break
            open_nodes.pop()
            tokens.append(CLOSE)
            value = value_of(operator, values)
        if not open_nodes or len(tokens) > max_length:
            return tokens, value


def listops(
    n: int, min_length: int, max_length: int, balanced: bool, seed: int, taken: set[bytes]
) -> list[tuple[bytes, int]]:
    """n different trees and their values, none of them in `taken`, to which they are added; if balanced, as many of
    each value.
    """
    if not 3 <= min_length < max_length - 1:
        raise ValueError(f"no tree has more than {min_length} and fewer than {max_length} tokens: widen the bounds")
    draws, made, idle = np.random.default_rng(seed), [], 0
    wanted = [n // 10 + (value < n % 10) if balanced else n for value in range(10)]
    while len(made) < n:
        if (idle := idle + 1) > PATIENCE:
            raise ValueError(f"there are too few trees of {min_length} to {max_length} tokens: widen the bounds")
        tokens, value = tree(draws, max_length)
        text = bytes(tokens)
        if min_length < len(tokens) < max_length and wanted[value] and text not in taken:
            wanted[value] -= 1
            idle = 0
            taken.add(text)
            made.append((text, value))
    return made


def forest(
    sizes: dict[str, int], min_length: int, max_length: int, balanced: bool, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """All splits' trees, none of them in two, in the order of `sizes`: tokens one after the other, lengths, values."""
    taken: set[bytes] = set()
    made: list[tuple[bytes, int]] = []
    for kind, n in sizes.items():
        made += listops(n, min_length, max_length, balanced, seed_of("listops", seed, kind), taken)
    tokens = torch.frombuffer(bytearray(b"".join(text for text, _ in made)), dtype=torch.uint8)
    return tokens, torch.tensor([len(text) for text, _ in made]), torch.tensor([value for _, value in made])


def partial_value(text: bytes, depth: int) -> int:
    """The value when operators more than `depth` below the root are left out with all they hold; -1 if nothing is
    left.
    """
    stack: list[tuple[int, list[int]]] = []
    for token in text:
        if token == CLOSE:
            operator, values = stack.pop()
            value = value_of(operator, values) if values else -1
            if not stack:
                return value
            if len(stack) <= depth and value >= 0:
                stack[-1][1].append(value)
        elif token >= 10:
            stack.append((token - 10, []))
        else:
            stack[-1][1].append(token)
    return -1


class ListOps(Task):
    """min_length, max_length: exclusive bounds on tokens; balanced: as many trees of each value; train, validation,
    test: how many trees. Padded on the right.
    """

    def __init__(
        self,
        *,
        min_length: int,
        max_length: int,
        balanced: bool,
        train: int,
        validation: int,
        test: int,
        **common: int,
    ):
        super().__init__(**common)
        self.balanced = balanced
        self.bounds, self.sizes = (min_length, max_length), {"train": train, "validation": validation, "test": test}
        self._trees: dict[str, list[tuple[bytes, int]]] = {}

    def trees(self, split: str) -> list[tuple[bytes, int]]:
        if not self._trees:
            at_least(1, **self.sizes)
            sizes = {kind: self.sizes[kind] for kind in ("test", "validation", "train")}
            low, high = self.bounds
            facts = {"min_length": low, "max_length": high, "balanced": self.balanced, "seed": self.seed}
            tokens, lengths, values = cached(forest, sizes=sizes, **facts)
            texts = iter(zip(tokens.split(lengths.tolist()), values.tolist(), strict=True))
            for kind, n in sizes.items():
                self._trees[kind] = [(bytes(text.numpy()), value) for text, value in islice(texts, n)]
        return self._trees[split]

    def generate(self, split: str) -> list[Segment]:
        trees, width = self.trees(split), self.bounds[1]
        made, edges = [], [0, width]
        if split == "test":  # by length, in four slices
            low = self.bounds[0]
            edges = [low + (width - low) * i // 4 for i in range(4)] + [width - 1]
        for low, high in zip(edges, edges[1:], strict=False):
            chosen = [(text, value) for text, value in trees if low < len(text) <= high] if split == "test" else trees
            if not chosen:
                continue
            tokens = torch.full((len(chosen), width), PAD)
            for row, (text, _) in enumerate(chosen):
                tokens[row, : len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
            targets = torch.tensor([value for _, value in chosen])
            name = f"length {low + 1} to {high}" if split == "test" else f"length below {width}"
            made.append(Segment(name, tokens, targets, tokens != PAD, {"length": (low + high) / 2}))
        return made

    def baselines(self) -> dict[str, float]:
        """Predictors fitted on the training trees and scored on the test trees. "operators to depth d": the value of
        the tree without what lies deeper, and for each such value and root operator the most frequent answer."""
        train, test = self.trees("train"), self.trees("test")

        def fitted(feature) -> float:
            counts: dict = {}
            for text, value in train:
                counts.setdefault(feature(text), Counter())[value] += 1
            overall = Counter(value for _, value in train)
            guess = {key: count.most_common(1)[0][0] for key, count in counts.items()}
            common = overall.most_common(1)[0][0]
            return sum(guess.get(feature(text), common) == value for text, value in test) / len(test)

        scores = {"chance": 1 / 10, "majority": fitted(lambda text: 0), "root operator": fitted(lambda text: text[0])}
        for depth in (1, 2, 3):
            scores[f"operators to depth {depth}"] = fitted(lambda text, d=depth: (text[0], partial_value(text, d - 1)))
        return scores
