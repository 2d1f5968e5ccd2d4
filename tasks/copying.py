"""Copying after a delay (Hochreiter and Schmidhuber, 1997, https://doi.org/10.1162/neco.1997.9.8.1735; Arjovsky et
al., 2015, https://arxiv.org/abs/1511.06464, the copying memory problem): symbols come first, then blanks, and at a
signal the symbols are repeated in their order.

    tokens   3 1 4 - - - - ! - - -
    targets  . . . . . . . . 3 1 4

The delay is length - 2 copied, the signal included. Arjovsky et al. have copied = 10, eight symbols and delays of
100 to 500.
"""

import torch
from torch import Tensor

from tasks.base import IGNORE
from tasks.draws import Draws
from tasks.sized import Sized, at_least


def copying(n: int, length: int, copied: int, vocabulary: int, seed: int) -> tuple[Tensor, Tensor]:
    """n examples: tokens and targets (n, length) int64, targets IGNORE except in the last `copied` places.

    Symbols are the tokens 0 ... vocabulary - 3, the blank is vocabulary - 2, the signal vocabulary - 1. Raises
    ValueError where the symbols, the signal and the copy do not fit.
    """
    at_least(4, vocabulary=vocabulary)
    at_least(1, copied=copied)
    if length < 2 * copied + 1:
        raise ValueError(
            f"length={length} has no room for {copied} symbols, the signal and the copy: make it {2 * copied + 1}"
        )
    draws = Draws(n, seed)
    symbols = draws.integers(0, vocabulary - 2, copied)
    tokens = torch.full((n, length), vocabulary - 2)
    targets = torch.full((n, length), IGNORE)
    tokens[:, :copied] = targets[:, -copied:] = symbols
    tokens[:, -copied - 1] = vocabulary - 1
    return tokens, targets


class Copying(Sized):
    """train, validation, test: lists of {length, copied, n}."""

    def __init__(self, *, vocabulary: int, **common):
        super().__init__(**common)
        self.vocabulary = vocabulary

    def draw(self, n: int, seed: int, length: int, copied: int) -> tuple[Tensor, Tensor]:
        return copying(n, length, copied, self.vocabulary, seed)

    def baselines(self) -> dict[str, float]:
        """chance: any symbol; the first symbol: it alone is remembered."""
        return {
            "chance": 1 / (self.vocabulary - 2),
            "the most frequent answer": self.most_frequent(),
            "the first symbol": self.accuracy(lambda tokens: tokens[:, :1]),
        }
