"""The mean of what was seen so far: linear attention with all queries and keys equal.

y_t = (x_1 + ... + x_t) / t
"""

import torch
from torch import Tensor

from mixers.base import Mixer, State
from mixers.ops.precision import wide


class CausalMean(Mixer):
    """A null baseline: it has no parameters, and cannot choose what to remember."""

    null = True

    def __init__(self, d_model: int):
        super().__init__()

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        wider = x.to(wide(x.dtype))
        total, count = (
            (torch.zeros_like(wider[:, 0]), x.new_zeros(len(x), dtype=torch.int64)) if state is None else state
        )
        totals = total.unsqueeze(1) + wider.cumsum(1)
        counts = count.unsqueeze(1) + torch.arange(1, x.shape[1] + 1, device=x.device)
        return (totals / counts.unsqueeze(-1)).to(x.dtype), (totals[:, -1], counts[:, -1])
