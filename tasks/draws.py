"""Random numbers that belong to an example: a function of (seed, the example's number, how many it has drawn).

So an example is the same however many others are made with it, in whatever pieces and by however many workers. The
numbers are SplitMix64's (Steele et al., 2014, https://doi.org/10.1145/2660193.2660195), from a state per example.
"""

import math

import numpy as np
import torch
from torch import Tensor

GAMMA, FIRST, SECOND = (np.array([x], np.uint64) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
BLOCK = 2**20  # numbers at once, so that what is chosen from many takes little memory


def mixed(x: np.ndarray) -> np.ndarray:
    """SplitMix64's output function, of uint64."""
    for shift, factor in ((30, FIRST), (27, SECOND)):
        x = x ^ (x >> np.uint64(shift))
        x *= factor
    return x ^ (x >> np.uint64(31))


class Draws:
    """The streams of the examples first ... first + n - 1. Every method returns (n, *shape), and all streams advance
    alike."""

    def __init__(self, n: int, seed: int, first: int = 0):
        key = mixed(np.array([seed % 2**64], np.uint64) + GAMMA)
        self.state = mixed(key ^ mixed(np.arange(first + 1, first + n + 1, dtype=np.uint64) * GAMMA))

    def uniform(self, *shape: int) -> Tensor:
        """float64 in [0, 1)."""
        count = math.prod(shape)
        made = numbers(self.state, count)
        self.state = self.state + np.uint64(count) * GAMMA
        return torch.from_numpy(made.reshape(len(made), *shape))

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """int64, low ... high - 1, all equally likely."""
        return low + (self.uniform(*shape) * (high - low)).long()

    def distinct(self, wanted: int, count: int) -> Tensor:
        """(n, wanted) int64: different ones of 0 ... count - 1, in random order."""
        made = torch.empty(len(self.state), wanted, dtype=torch.int64)
        rows = max(1, BLOCK // count)
        for start in range(0, len(made), rows):
            part = torch.from_numpy(numbers(self.state[start : start + rows], count))
            made[start : start + rows] = part.topk(wanted).indices
        self.state = self.state + np.uint64(count) * GAMMA
        return made


def numbers(state: np.ndarray, count: int) -> np.ndarray:
    """state (n,) uint64 -> (n, count) float64 in [0, 1): the next numbers of each stream."""
    made, rows = np.empty((len(state), count)), max(1, BLOCK // max(1, count))
    steps = np.arange(1, count + 1, dtype=np.uint64) * GAMMA
    for start in range(0, len(state), rows):
        bits = mixed(state[start : start + rows, None] + steps) >> np.uint64(11)
        made[start : start + rows] = bits * 2.0**-53
    return made
