"""Memorization of MAD (Poli et al., 2024, https://arxiv.org/abs/2403.17844): each key has one value in all
examples of all splits, which nothing but training can tell.

    tokens   a ? c ? a ? b ?
    targets  . 7 . 5 . 7 . 9

MAD's default is a vocabulary of 256, 32 tokens and 256 training examples.
"""

import torch
from torch import Tensor

from tasks.base import IGNORE, seed_of
from tasks.draws import Draws
from tasks.sized import Sized, at_least


def memorization(n: int, length: int, vocabulary: int, facts: int, seed: int) -> tuple[Tensor, Tensor]:
    """n examples: tokens and targets (n, length) int64, targets IGNORE except under the question.

    The last token of the vocabulary asks; of the others the lower half are keys and the upper half values. The
    seed `facts` decides which is whose, and no two keys have the same. Raises ValueError where the sizes do not
    fit.
    """
    at_least(3, vocabulary=vocabulary)
    if length < 2 or length % 2:
        raise ValueError(f"length={length} does not hold keys and questions in turn: make it {max(2, length + 1)}")
    half = (vocabulary - 1) // 2
    value_of = half + torch.randperm(vocabulary - 1 - half, generator=torch.Generator().manual_seed(facts))
    keys = Draws(n, seed).integers(0, half, length // 2)
    tokens, targets = torch.full((n, length), vocabulary - 1), torch.full((n, length), IGNORE)
    tokens[:, ::2], targets[:, 1::2] = keys, value_of[keys]
    return tokens, targets


class Memorization(Sized):
    """train, validation, test: lists of {length, n}."""

    def __init__(self, *, vocabulary: int, **common):
        super().__init__(**common)
        self.vocabulary = vocabulary

    def draw(self, n: int, seed: int, length: int) -> tuple[Tensor, Tensor]:
        return memorization(n, length, self.vocabulary, seed_of("facts", self.seed), seed)

    def baselines(self) -> dict[str, float]:
        """chance: any value."""
        values = self.vocabulary - 1 - (self.vocabulary - 1) // 2
        return {"chance": 1 / values, "the most frequent answer": self.most_frequent()}
