"""Compression, after MAD (Poli et al., 2024, https://arxiv.org/abs/2403.17844): random symbols come first, and
behind a mark every one of them is asked for by the number of its place, in random order.

    tokens   b a c | 2 3 1       places are numbered from 1 on
    targets  . . . . a c b

MAD decodes the vector at the mark with a second network, so that all mixers must press the symbols into one
vector. Here the questions are tokens of the same sequence: a recurrent mixer answers out of its state after the
mark, while attention may look the symbols up. So the scores are not comparable with MAD's. MAD's default is 32
tokens and a vocabulary of 16.
"""

import torch
from torch import Tensor

from tasks.base import IGNORE
from tasks.draws import Draws
from tasks.sized import Sized, at_least


def compression(n: int, length: int, symbols: int, places: int, seed: int) -> tuple[Tensor, Tensor]:
    """n examples: tokens and targets (n, length) int64, targets IGNORE up to the mark.

    The tokens 0 ... symbols - 1 are symbols, `symbols` is the mark, and then come the numbers of `places` places,
    of which the first (length - 1) / 2 are in use. Raises ValueError where they do not fit.
    """
    at_least(2, symbols=symbols)
    if length < 3 or length % 2 == 0:
        fitting = max(3, length + 1)
        raise ValueError(f"length={length} does not hold symbols, the mark and as many questions: make it {fitting}")
    stored = length // 2
    if stored > places:
        raise ValueError(f"length={length} asks for {stored} places and there are {places}: raise places or shorten it")
    draws = Draws(n, seed)
    content = draws.integers(0, symbols, stored)
    order = draws.distinct(stored, stored)
    tokens = torch.cat([content, torch.full((n, 1), symbols), symbols + 1 + order], 1)
    targets = torch.full((n, length), IGNORE)
    targets[:, stored + 1 :] = content.gather(1, order)
    return tokens, targets


class Compression(Sized):
    """train, validation, test: lists of {length, n}. places: the most symbols there can be."""

    def __init__(self, *, symbols: int, places: int, **common):
        super().__init__(**common)
        self.symbols, self.places = symbols, places

    def draw(self, n: int, seed: int, length: int) -> tuple[Tensor, Tensor]:
        return compression(n, length, self.symbols, self.places, seed)

    def baselines(self) -> dict[str, float]:
        """chance: any symbol; the first symbol: it alone is remembered."""
        return {
            "chance": 1 / self.symbols,
            "the most frequent answer": self.most_frequent(),
            "the first symbol": self.accuracy(lambda tokens: tokens[:, :1]),
        }
