"""S5 (Smith et al., 2022, https://arxiv.org/abs/2208.04933, sections 3.2-3.3).

h_t = e^{Lambda dt} * h_{t-1} + (e^{Lambda dt} - 1) / Lambda * (B u_t),   y_t = 2 Re(C h_t) + D * u_t
out = gelu(y) * sigmoid(W gelu(y))

Lambda are the eigenvalues of the normal part of HiPPO-LegS, in n_blocks equal blocks; B and C start as real
matrices in that basis. Of each pair of conjugate states one is kept, hence 2 Re.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import legs_normal
from mixers.ops.precision import wide
from mixers.ops.scan import scan


class S5(Mixer):
    """One state space for all channels together, with one clock per state."""

    sizes = ("d_state",)
    dynamics = ("Lambda", "log_dt", "B")

    def __init__(self, d_model: int, *, d_state: int, n_blocks: int):
        super().__init__()
        if d_state % (2 * n_blocks):
            raise ValueError(
                f"d_state={d_state} does not make n_blocks={n_blocks} blocks of conjugate pairs: choose a multiple of "
                f"{2 * n_blocks}"
            )
        size, half = d_state // n_blocks, d_state // 2
        Lambda, V = legs_normal(size)
        self.Lambda = nn.Parameter(torch.view_as_real(Lambda.repeat(n_blocks)))
        self.log_dt = nn.Parameter(torch.empty(half).uniform_(math.log(1e-3), math.log(1e-1)))
        B = torch.randn(n_blocks, size, d_model) * d_model**-0.5
        C = torch.randn(d_model, n_blocks, size) * d_state**-0.5
        B, C = V.mH @ B.to(V.dtype), C.to(V.dtype) @ V
        self.B = nn.Parameter(torch.cat([B.real.flatten(0, 1), B.imag.flatten(0, 1)]))  # real, then imaginary parts
        self.C = nn.Parameter(torch.cat([C.real.flatten(1), -C.imag.flatten(1)], -1))
        self.D = nn.Parameter(torch.randn(d_model))
        self.gate = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        real, imag = self.Lambda.unbind(-1)
        Lambda = torch.complex(real.clamp(max=-1e-4), imag)
        decay = (Lambda * self.log_dt.exp()).exp()
        Bu = F.linear(x, self.B).to(wide(x.dtype)).unflatten(-1, (2, -1))
        h, last = scan(decay, (decay - 1) / Lambda * torch.complex(Bu[..., 0, :], Bu[..., 1, :]), state)
        y = 2 * F.linear(torch.cat([h.real, h.imag], -1), self.C).to(x.dtype) + self.D.to(x.dtype) * x
        y = F.gelu(y)
        return y * self.gate(y).sigmoid(), last
