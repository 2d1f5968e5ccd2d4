"""Induction heads (Olsson et al., 2022, https://arxiv.org/abs/2209.11895; Fu et al., 2022,
https://arxiv.org/abs/2212.14052, section 3.1; Gu and Dao, 2023, https://arxiv.org/abs/2312.00752, section 4.1.2):
what came after the special token must be said when it comes again, at the end.

    tokens   4 1 * 3 2 2 1 *
    targets  . . . . . . . 3

Gu and Dao train at a length of 256, with a vocabulary of 16, and test at 64 to 2^20.
"""

import torch
from torch import Tensor

from tasks.base import IGNORE
from tasks.draws import Draws
from tasks.sized import Sized, at_least


def induction(n: int, length: int, vocabulary: int, seed: int) -> tuple[Tensor, Tensor]:
    """n examples: tokens and targets (n, length) int64, targets IGNORE except at the end.

    The special token is vocabulary - 1; it comes at a uniform place and at the end, and nowhere else. Raises
    ValueError where the three do not fit.
    """
    at_least(3, vocabulary=vocabulary)
    at_least(3, length=length)
    draws = Draws(n, seed)
    tokens = draws.integers(0, vocabulary - 1, length)
    places = draws.integers(0, length - 2, 1)
    tokens.scatter_(1, places, vocabulary - 1)
    tokens[:, -1] = vocabulary - 1
    targets = torch.full((n, length), IGNORE)
    targets[:, -1:] = tokens.gather(1, places + 1)
    return tokens, targets


class Induction(Sized):
    """train, validation, test: lists of {length, n}."""

    def __init__(self, *, vocabulary: int, **common):
        super().__init__(**common)
        self.vocabulary = vocabulary

    def draw(self, n: int, seed: int, length: int) -> tuple[Tensor, Tensor]:
        return induction(n, length, self.vocabulary, seed)

    def baselines(self) -> dict[str, float]:
        """chance: any token but the special one."""
        return {
            "chance": 1 / (self.vocabulary - 1),
            "the most frequent answer": self.most_frequent(),
            "the token before": self.accuracy(lambda tokens: tokens.roll(1, 1)),
            "the example's most frequent token": self.accuracy(lambda tokens: tokens.mode(1, keepdim=True).values),
        }
