"""Random numbers that belong to an example: a function of (seed, the example's number, how many it has drawn).

So an example is the same however many others are made with it, in whatever order and by however many workers. The
numbers are SplitMix64's (Steele et al., 2014, https://doi.org/10.1145/2660193.2660195), from a state per example.
"""

import math

import numpy as np
import torch
from torch import Tensor

GAMMA, FIRST, SECOND = (np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def mixed(x: np.ndarray) -> np.ndarray:
    """SplitMix64's output function, of uint64."""
    for shift, factor in ((30, FIRST), (27, SECOND)):
        x = x ^ (x >> np.uint64(shift))
        x *= factor
    return x ^ (x >> np.uint64(31))


class Draws:
    """The streams of the examples `numbers`, or of the first n. Every method returns (n, *shape) and advances all."""

    def __init__(self, seed: int, numbers: int | np.ndarray):
        numbers = np.arange(numbers) if isinstance(numbers, int) else numbers
        key = mixed(np.array([seed & (2**64 - 1)], np.uint64) + GAMMA)
        self.state = mixed(key ^ mixed((numbers.astype(np.uint64) + np.uint64(1)) * GAMMA))  # (n,)

    def of(self, rows: np.ndarray) -> "Draws":
        """The streams of some of the examples, from where they are."""
        some = object.__new__(Draws)
        some.state = self.state[rows]
        return some

    def uniform(self, *shape: int) -> Tensor:
        """float64 in [0, 1)."""
        count = math.prod(shape)
        steps = np.arange(1, count + 1, dtype=np.uint64) * GAMMA
        bits = mixed(self.state[:, None] + steps) >> np.uint64(11)
        self.state = self.state + steps[-1:]
        return torch.from_numpy((bits * 2.0**-53).reshape(len(bits), *shape))

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """int64, low ... high - 1."""
        return low + (self.uniform(*shape) * (high - low)).long()

    def order(self, count: int) -> Tensor:
        """int64, (n, count): an order of 0 ... count - 1."""
        return self.uniform(count).argsort(1)
