"""Multi-query associative recall, as Zoology defines it (Arora et al., 2023, https://arxiv.org/abs/2312.04927,
section 3 and appendix E.1): keys with their values come first, then each key is asked for once, at a distance drawn
from a power law, in random filler.

    tokens   k1 v1 k2 v2 |  .  k2  .   .  k1  .
    targets   .  .  .  . |  .  v2  .   .  v1  .
"""

import torch
from torch import Tensor

from tasks.base import IGNORE, Segment, Task, seed_of

POWER = 0.01  # the exponent of the distances' law: most questions come soon


def recall(n: int, length: int, pairs: int, vocabulary: int, seed: int) -> tuple[Tensor, Tensor]:
    """n examples: tokens and targets (n, length) int64, targets IGNORE except under each question.

    Keys are the tokens 1 ... vocabulary / 2 - 1, values the upper half; filler is any token. Raises ValueError where
    the pairs do not fit.
    """
    half = vocabulary // 2
    room = (length - 2 * pairs) // 2
    if pairs < 1 or pairs > half - 1 or pairs > vocabulary - half:
        raise ValueError(f"pairs={pairs} need as many keys and values: raise vocabulary={vocabulary} or ask for fewer")
    if room < pairs:
        raise ValueError(f"length={length} has no room for {pairs} pairs and their questions: make it {4 * pairs}")
    generator = torch.Generator().manual_seed(seed)
    keys = 1 + torch.rand(n, half - 1, generator=generator).argsort(1)[:, :pairs]
    values = half + torch.rand(n, vocabulary - half, generator=generator).argsort(1)[:, :pairs]
    tokens = torch.randint(vocabulary, (n, length), generator=generator)
    tokens[:, 0 : 2 * pairs : 2], tokens[:, 1 : 2 * pairs : 2] = keys, values
    # without replacement, the gap g with weight g^(a - 1): the largest of weight-scaled exponentials (Gumbel's trick)
    weight = (POWER - 1) * torch.arange(1, room + 1, dtype=torch.float64).log()
    gumbel = -torch.log(-torch.log(torch.rand(n, room, generator=generator, dtype=torch.float64)))
    places = 2 * pairs + 2 * (weight + gumbel).topk(pairs, 1).indices
    targets = torch.full((n, length), IGNORE)
    tokens.scatter_(1, places, keys)
    targets.scatter_(1, places, values)
    return tokens, targets


class Recall(Task):
    """train, validation, test: lists of {length, pairs, n}; each entry of test is a slice."""

    def __init__(self, *, vocabulary: int, train: list, validation: list, test: list, **common: int):
        super().__init__(**common)
        self.vocabulary, self.sizes = vocabulary, {"train": train, "validation": validation, "test": test}

    def generate(self, split: str) -> list[Segment]:
        made = []
        for i, size in enumerate(self.sizes[split]):
            length, pairs = size["length"], size["pairs"]
            seed = seed_of("recall", self.seed, split, i)
            tokens, targets = recall(size["n"], length, pairs, self.vocabulary, seed)
            values = {"length": length, "pairs": pairs}
            made.append(Segment(f"length {length}, {pairs} pairs", tokens, targets, values=values))
        return made

    def baselines(self) -> dict[str, float]:
        """chance: any value; value in sight: the value of a random pair of the example, as if keys were not read."""
        right = asked = 0
        for segment in self.segments("test"):
            pairs = int(segment.values["pairs"])
            right += len(
                segment
            )  # of an example's `pairs` questions each value answers one: 1 / pairs of them are right
            asked += len(segment) * pairs
        values = self.vocabulary - self.vocabulary // 2
        return {"chance": 1 / values, "a value in sight": right / asked}
