"""Selective copying (Jing et al., 2017, https://arxiv.org/abs/1706.02761, the denoising task; Gu and Dao, 2023,
https://arxiv.org/abs/2312.00752, sections 3.1 and 4.1.1): symbols lie at random places among blanks, and are then
repeated in their order, so that fixed distances do not help.

    tokens   - 3 - - 1 - 4 - ! ! !
    targets  . . . . . . . . 3 1 4

Gu and Dao have sequences of 4096 tokens, copied = 16 and a vocabulary of 16.
"""

import torch
from torch import Tensor

from tasks.base import IGNORE
from tasks.draws import Draws
from tasks.sized import Sized, at_least, latest


def selective_copying(n: int, length: int, copied: int, vocabulary: int, seed: int) -> tuple[Tensor, Tensor]:
    """n examples: tokens and targets (n, length) int64, targets IGNORE except in the last `copied` places.

    Symbols are the tokens 1 ... vocabulary - 2, the blank is 0, and vocabulary - 1 asks for the next symbol.
    Raises ValueError where symbols and copy do not fit.
    """
    at_least(4, vocabulary=vocabulary)
    at_least(1, copied=copied)
    if length < 2 * copied:
        raise ValueError(f"length={length} has no room for {copied} symbols and their copy: make it {2 * copied}")
    draws = Draws(n, seed)
    symbols = draws.integers(1, vocabulary - 1, copied)
    places = draws.distinct(copied, length - copied).sort(1).values
    tokens = torch.zeros(n, length, dtype=torch.int64).scatter_(1, places, symbols)
    tokens[:, -copied:] = vocabulary - 1
    targets = torch.full((n, length), IGNORE)
    targets[:, -copied:] = symbols
    return tokens, targets


class SelectiveCopying(Sized):
    """train, validation, test: lists of {length, copied, n}."""

    def __init__(self, *, vocabulary: int, **common):
        super().__init__(**common)
        self.vocabulary = vocabulary

    def draw(self, n: int, seed: int, length: int, copied: int) -> tuple[Tensor, Tensor]:
        return selective_copying(n, length, copied, self.vocabulary, seed)

    def baselines(self) -> dict[str, float]:
        """chance: any symbol; the last symbol: it alone is remembered."""
        ask = self.vocabulary - 1
        return {
            "chance": 1 / (self.vocabulary - 2),
            "the most frequent answer": self.most_frequent(),
            "the last symbol": self.accuracy(lambda tokens: latest(tokens, (tokens > 0) & (tokens < ask))),
        }
