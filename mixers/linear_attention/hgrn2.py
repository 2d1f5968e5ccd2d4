"""HGRN2 (Qin et al., 2024, https://arxiv.org/abs/2404.07904, eqs. 4-6).

S_t = diag(f_t) S_{t-1} + (1 - f_t) v_t^T,   o_t = S_t^T q_t,   f_t = l + (1 - l) sigmoid(W_f x_t)
q = silu(W_q x),   v = W_v x;   y = W_o norm(o), the norm over all heads

The paper's lower bounds l come from a parameter that all layers share, cumulated over depth, and start at layer /
n_layers. Here each layer learns its own, sigmoid(b), and starts at (layer + 1) / (n_layers + 1), since at 0, where the
paper's first layer starts, half of everything is forgotten in one token.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import RMSNorm, heads, merge, per_head
from mixers.ops.linear_attention import linear_attention
from mixers.ops.precision import wide


class HGRN2(Mixer):
    """Gated linear attention whose key is what its forget gate lets go: nothing is written that nothing makes room
    for.
    """

    dynamics = ("bound",)

    def __init__(self, d_model: int, *, n_heads: int, layer: int, n_layers: int):
        super().__init__()
        per_head(d_model, n_heads)
        self.n_heads = n_heads
        self.qfv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.bound = nn.Parameter(torch.full((d_model,), math.log((layer + 1) / (n_layers - layer))))
        self.norm = RMSNorm(d_model)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        q, f, v = self.qfv(x).chunk(3, -1)
        low = self.bound.to(wide(x.dtype)).sigmoid()
        f = heads(low + (1 - low) * f.to(low.dtype).sigmoid(), self.n_heads)
        o, state = linear_attention(heads(F.silu(q), self.n_heads), 1 - f, heads(v, self.n_heads), f.log(), state)
        return self.out(self.norm(merge(o).to(x.dtype))), state
