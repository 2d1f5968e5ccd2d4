"""Parity of the bits so far (Delétang et al., 2022, https://arxiv.org/abs/2207.02098; Grazzi et al., 2024,
https://arxiv.org/abs/2411.12537), asked for at every token.

    tokens   1 0 1 1 0
    targets  1 1 0 1 1

Grazzi et al. train at lengths of 3 to 40 and test at 40 to 256, at the last token only.
"""

from torch import Tensor

from tasks.draws import Draws
from tasks.sized import Sized, at_least

WINDOW = 8  # of a baseline


def parity(n: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
    """n examples: tokens and targets (n, length) int64, both 0 or 1. Raises ValueError for an empty length."""
    at_least(1, length=length)
    tokens = Draws(n, seed).integers(0, 2, length)
    return tokens, tokens.cumsum(1) % 2


class Parity(Sized):
    """train, validation, test: lists of {length, n}."""

    loss_on = "all"

    def draw(self, n: int, seed: int, length: int) -> tuple[Tensor, Tensor]:
        return parity(n, length, seed)

    def baselines(self) -> dict[str, float]:
        """The last 8 bits: their parity, which is right at the first 8 tokens."""

        def window(tokens: Tensor) -> Tensor:
            sums = tokens.cumsum(1)
            sums[:, WINDOW:] -= sums[:, :-WINDOW].clone()
            return sums % 2

        return {
            "chance": 1 / 2,
            "the most frequent answer": self.most_frequent(),
            "the bit itself": self.accuracy(lambda tokens: tokens),
            f"the last {WINDOW} bits": self.accuracy(window),
        }
