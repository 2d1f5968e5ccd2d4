"""Mamba-2, state space duality (Dao and Gu, 2024, https://arxiv.org/abs/2405.21060, sections 5-7).

S_t = e^{A dt_t} S_{t-1} + B_t (dt_t x_t)^T,   y_t = S_t^T C_t + D x_t,   dt_t = softplus(W x_t + b),   A = -e^{A_log}
x, B, C through a short convolution and silu;   out = W_o norm(y * silu(z))
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import RMSNorm, ShortConv, heads, log_decay, merge, per_head, step_bias
from mixers.ops.linear_attention import linear_attention

EXPAND, CONV = 2, 4


class Mamba2(Mixer):
    """A state space whose decay is one number per head and token, so that it is linear attention with one key for all
    heads.
    """

    sizes = ("d_state",)
    dynamics = ("A_log", "dt_bias")

    def __init__(self, d_model: int, *, n_heads: int, d_state: int):
        super().__init__()
        width = EXPAND * d_model
        per_head(width, n_heads)
        self.n_heads, self.split = n_heads, (width, d_state, d_state)
        self.zxbcdt = nn.Linear(d_model, 2 * width + 2 * d_state + n_heads, bias=False)
        self.conv = ShortConv(width + 2 * d_state, width=CONV, bias=True)
        self.A_log = nn.Parameter(torch.empty(n_heads).uniform_(1, 16).log())
        self.dt_bias = nn.Parameter(step_bias(n_heads))
        self.D = nn.Parameter(torch.ones(n_heads))
        self.norm = RMSNorm(width)
        self.out = nn.Linear(width, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        tail, S = (None, None) if state is None else state
        z, xBC, dt = self.zxbcdt(x).split([self.split[0], sum(self.split), self.n_heads], -1)
        xBC, tail = self.conv(xBC, tail)
        x, B, C = F.silu(xBC).split(self.split, -1)
        x, B, C = heads(x, self.n_heads), B.unsqueeze(1), C.unsqueeze(1)
        g = heads(log_decay(self.A_log, dt, self.dt_bias), self.n_heads)
        step = g / -self.A_log.to(g.dtype).exp()[:, None, None]
        y, S = linear_attention(C, B, x * step, g, S)
        y = y.to(x.dtype) + self.D.to(x.dtype)[:, None, None] * x
        return self.out(self.norm(merge(y) * F.silu(z))), (tail, S)
