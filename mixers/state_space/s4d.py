"""S4D-Lin, a diagonal state space (Gu et al., 2022, https://arxiv.org/abs/2206.11893, eqs. 2-3 and section 4.4), per
channel.

    h_t = e^{dt A} h_{t-1} + x_t,   y_t = 2 Re sum_n C_n (e^{dt A_n} - 1) / A_n h_{t,n} + D x_t,   A_n = -1/2 + i pi n
    out = GLU(W gelu(y))

With zero-order hold and B = 1; a half of each pair of conjugate states is kept, hence 2 Re. A whole sequence is a
convolution with the kernel K_l = 2 Re sum_n C_n (e^{dt A_n} - 1) / A_n e^{dt A_n l}.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.ops.diagonal import diagonal
from mixers.ops.precision import wide


class S4D(Mixer):
    """A fixed bank of damped oscillators per channel: what is remembered does not depend on what is read."""

    sizes = ("d_state",)
    dynamics = ("log_dt", "log_A_real", "A_imag")

    def __init__(self, d_model: int, *, d_state: int):
        super().__init__()
        if d_state < 2 or d_state % 2:
            raise ValueError(f"d_state={d_state} is not even: states come in conjugate pairs, choose an even number")
        half = d_state // 2
        self.log_dt = nn.Parameter(torch.empty(d_model).uniform_(math.log(1e-3), math.log(1e-1)))
        self.log_A_real = nn.Parameter(torch.full((d_model, half), math.log(0.5)))
        self.A_imag = nn.Parameter((math.pi * torch.arange(half)).repeat(d_model, 1))
        self.C = nn.Parameter(torch.randn(d_model, half, 2) * 0.5**0.5)  # complex, of variance 1
        self.D = nn.Parameter(torch.randn(d_model))
        self.out = nn.Linear(d_model, 2 * d_model)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        A = torch.complex(-self.log_A_real.exp(), self.A_imag)
        dtA = A * self.log_dt.exp().unsqueeze(-1)
        C = torch.view_as_complex(self.C) * (dtA.exp() - 1) / A
        u = x.to(wide(x.dtype))
        y, h = diagonal(u, dtA, 2 * C, state)
        return F.glu(self.out(F.gelu((y + self.D * u).to(x.dtype))), -1), h
