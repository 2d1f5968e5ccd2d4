"""Flip-flop language (Liu et al., 2023, https://arxiv.org/abs/2306.00946): instructions to write, ignore or read,
each with a bit, and a read's bit is the one that was last written.

    tokens   w 1 i 0 r 1 w 0 r 0
    targets  . 1 1 1 1 1 1 0 0 0      the bit in memory; loss_on: answers leaves those under r

Liu et al. have 512 tokens, ignore = 0.8 in training, and 0.98 (sparse) and 0.1 (dense) in tests; they score reads.
"""

import torch
from torch import Tensor

from tasks.base import IGNORE
from tasks.draws import Draws
from tasks.sized import Sized, latest

WRITE, READ, SKIP = 2, 3, 4  # 0 and 1 are the bits


def flip_flop(n: int, length: int, ignore: float, seed: int) -> tuple[Tensor, Tensor]:
    """n examples: tokens and targets (n, length) int64, targets IGNORE at the first token.

    The first instruction is to write, the last to read; between them one is ignored with the probability `ignore`,
    and otherwise as likely to write as to read. Raises ValueError where they do not fit.
    """
    if length < 4 or length % 2:
        raise ValueError(
            f"length={length} does not hold pairs of instruction and bit, a write and a read at least: "
            f"make it {max(4, length + length % 2)}"
        )
    if not 0 <= ignore <= 1:
        raise ValueError(f"ignore={ignore} is no probability: make it 0 to 1")
    draws = Draws(n, seed)
    chance = draws.uniform(length // 2)
    instructions = torch.full_like(chance, READ, dtype=torch.int64)
    instructions[chance < ignore + (1 - ignore) / 2] = WRITE
    instructions[chance < ignore] = SKIP
    instructions[:, 0], instructions[:, -1] = WRITE, READ
    bits = draws.integers(0, 2, length // 2)
    memory = latest(bits, instructions == WRITE)
    bits = memory.where(instructions == READ, bits)
    before = torch.full_like(memory, IGNORE)
    before[:, 1:] = memory[:, :-1]
    return torch.stack([instructions, bits], 2).flatten(1), torch.stack([before, memory], 2).flatten(1)


class FlipFlop(Sized):
    """train, validation, test: lists of {length, ignore, n}. loss_on: "all" tokens, or "answers": reads."""

    look = ("0", "1", "w", "r", "i")

    def __init__(self, *, loss_on: str, **common):
        super().__init__(**common)
        if loss_on not in ("all", "answers"):
            raise ValueError(f"loss_on='{loss_on}' is not there: take all or answers")
        self.loss_on = loss_on

    def draw(self, n: int, seed: int, length: int, ignore: float) -> tuple[Tensor, Tensor]:
        tokens, targets = flip_flop(n, length, ignore, seed)
        return tokens, targets if self.loss_on == "all" else targets.masked_fill(tokens != READ, IGNORE)

    def baselines(self) -> dict[str, float]:
        """The last bit: whatever its instruction."""
        return {
            "chance": 1 / 2,
            "the most frequent answer": self.most_frequent(),
            "the last bit": self.accuracy(lambda tokens: latest(tokens, tokens < 2)),
        }
