"""S4, a structured state space per channel (Gu et al., 2021, https://arxiv.org/abs/2111.00396, section 3).

h' = A h + B x,   y = C h + D x,   A = Lambda - P P^*,   which starts as HiPPO-LegS;   out = GLU(W gelu(y))
h_t = A_ h_{t-1} + B_ x_t,   A_ = (1 - dt/2 A)^{-1} (1 + dt/2 A),   B_ = (1 - dt/2 A)^{-1} dt B

Of each pair of conjugate states one is kept.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import legs_normal
from mixers.ops.dplr_space import dplr_space
from mixers.ops.precision import wide


class S4(Mixer):
    """Remembers each channel's past as coefficients of polynomials, through a diagonal matrix plus one rank."""

    sizes = ("d_state",)
    dynamics = ("log_dt", "log_real", "imag", "P", "B")

    def __init__(self, d_model: int, *, d_state: int):
        super().__init__()
        if d_state < 2 or d_state % 2:
            raise ValueError(f"d_state={d_state} is not even: states come in conjugate pairs, choose an even number")
        Lambda, V = legs_normal(d_state)
        B = V.mH @ (2 * torch.arange(d_state) + 1).sqrt().to(V.dtype)
        self.log_dt = nn.Parameter(torch.empty(d_model).uniform_(math.log(1e-3), math.log(1e-1)))
        self.log_real = nn.Parameter((-Lambda.real).log().repeat(d_model, 1))
        self.imag = nn.Parameter(Lambda.imag.repeat(d_model, 1))
        self.P = nn.Parameter(torch.view_as_real(B * 0.5**0.5).repeat(d_model, 1, 1))  # sqrt(n + 1/2)
        self.B = nn.Parameter(torch.view_as_real(B).repeat(d_model, 1, 1))
        self.C = nn.Parameter(torch.randn(d_model, d_state // 2, 2) * 0.5**0.5)
        self.D = nn.Parameter(torch.randn(d_model))
        self.out = nn.Linear(d_model, 2 * d_model)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        u = x.to(wide(x.dtype))
        Lambda = torch.complex(-self.log_real.exp(), self.imag)
        P, B, C = (torch.view_as_complex(z) for z in (self.P, self.B, self.C))
        y, state = dplr_space(u, self.log_dt.exp().unsqueeze(-1), Lambda, P, B, C, state)
        return F.glu(self.out(F.gelu((y + self.D * u).to(x.dtype))), -1), state
