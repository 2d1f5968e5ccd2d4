"""gMLP's spatial gating unit (Liu et al., 2021, https://arxiv.org/abs/2105.08050, eqs. 1-4).

u, z = gelu(U x);   y = V (u * (W norm(z) + b)),   W (max_length, max_length) near 0 and b = 1 at first

If causal, W is lower triangular, and the state is all of norm(z) so far. u and z are as wide as the model; the paper's
are three times as wide, since its block has no other perceptron.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import at_most

NEAR = 1e-3


class SpatialGating(Mixer):
    """Gates each step by a fixed learned mixture of all steps."""

    def __init__(self, d_model: int, *, causal: bool, max_length: int):
        super().__init__()
        self.causal, self.max_length = causal, max_length
        self.inner = nn.Linear(d_model, 2 * d_model)
        self.norm = nn.LayerNorm(d_model)
        self.W = nn.Parameter(torch.empty(max_length, max_length).uniform_(-NEAR, NEAR) / max_length)
        self.b = nn.Parameter(torch.ones(max_length))
        self.out = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        u, z = F.gelu(self.inner(x)).chunk(2, -1)
        z = self.norm(z).to(x.dtype)
        z = z if mask is None else z * mask.unsqueeze(-1)
        z = z if state is None else torch.cat([state, z], 1)
        start, stop = z.shape[1] - x.shape[1], z.shape[1]
        at_most(self, stop)
        W = self.W.tril() if self.causal else self.W
        gate = W[start:stop, :stop].to(z.dtype) @ z + self.b[start:stop, None].to(z.dtype)
        return self.out(u * gate), z if self.causal else None
