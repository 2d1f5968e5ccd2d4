"""The position-wise half of a block: (x, state, mask) -> (y, state), so that a stateful one can take its place."""

import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import State


class MLP(nn.Module):
    """Two linear maps with a GELU between them (Vaswani et al., 2017, https://arxiv.org/abs/1706.03762, eq. 2)."""

    def __init__(self, d_model: int, *, expand: float):
        super().__init__()
        width = round(expand * d_model)
        self.up = nn.Linear(d_model, width)
        self.down = nn.Linear(width, d_model)

    def hidden(self, x: Tensor) -> Tensor:
        return F.gelu(self.up(x))

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        return self.down(self.hidden(x)), state
