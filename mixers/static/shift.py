"""The token before.

y_t = x_{t-1}
"""

import torch
from torch import Tensor

from mixers.base import Mixer, State


class Shift(Mixer):
    """A null baseline: it has no parameters, and sees one step back per layer."""

    null = True

    def __init__(self, d_model: int):
        super().__init__()

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        last = torch.zeros_like(x[:, 0]) if state is None else state
        return torch.cat([last.unsqueeze(1), x[:, :-1]], 1), x[:, -1]
