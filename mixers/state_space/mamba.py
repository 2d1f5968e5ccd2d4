"""Mamba, the selective state space (Gu and Dao, 2023, https://arxiv.org/abs/2312.00752, algorithm 2, section 3.4).

h_t = e^{dt_t A} h_{t-1} + dt_t x_t B_t^T,   y_t = h_t C_t + D x_t
dt_t = softplus(W_dt W_r x_t + b),   A = -e^{A_log}
x through a short convolution and silu; B, C and dt are read from it;   out = W_o (y * silu(z))
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import ShortConv, step_bias
from mixers.ops.precision import wide
from mixers.ops.selective_scan import selective_scan

EXPAND, CONV = 2, 4


class Mamba(Mixer):
    """A state space per channel, whose step the input chooses: what to keep and what to skip."""

    sizes = ("d_state",)
    dynamics = ("A_log", "dt_bias")

    def __init__(self, d_model: int, *, d_state: int):
        super().__init__()
        width, rank = EXPAND * d_model, math.ceil(d_model / 16)
        self.split = (rank, d_state, d_state)
        self.xz = nn.Linear(d_model, 2 * width, bias=False)
        self.conv = ShortConv(width, width=CONV, bias=True)
        self.dtBC = nn.Linear(width, sum(self.split), bias=False)
        self.dt = nn.Linear(rank, width, bias=False)
        nn.init.uniform_(self.dt.weight, -(rank**-0.5), rank**-0.5)
        self.dt_bias = nn.Parameter(step_bias(width))
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(width, 1))
        self.D = nn.Parameter(torch.ones(width))
        self.out = nn.Linear(width, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        tail, h = (None, None) if state is None else state
        x, z = self.xz(x).chunk(2, -1)
        x, tail = self.conv(x, tail)
        x = F.silu(x)
        dt, B, C = self.dtBC(x).split(self.split, -1)
        dt = F.softplus(self.dt(dt).to(wide(x.dtype)) + self.dt_bias)
        y, h = selective_scan(x, dt, -self.A_log.exp(), B, C, self.D, h)
        return self.out(y * F.silu(z)), (tail, h)
