"""The linear recurrent unit, LRU (Orvieto et al., 2023, https://arxiv.org/abs/2303.06349, section 3, appendix A).

h_t = lambda * h_{t-1} + e^gamma * (B x_t),   y_t = Re(C h_t) + D * x_t,   lambda = exp(-e^nu + i e^theta)
out = GLU(W gelu(y))
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.ops.precision import wide
from mixers.ops.scan import scan

R_MIN, R_MAX, MAX_PHASE = 0.9, 0.999, 2 * math.pi  # the paper's plain choice is the whole disc, 0 to 1


class LRU(Mixer):
    """A dense layer of fixed damped oscillators that all channels write to and read from."""

    sizes = ("d_state",)
    dynamics = ("nu", "theta", "gamma")

    def __init__(self, d_model: int, *, d_state: int):
        super().__init__()
        squared = torch.rand(d_state) * (R_MAX**2 - R_MIN**2) + R_MIN**2  # |lambda|^2, uniform on the ring
        self.nu = nn.Parameter((-0.5 * squared.log()).log())
        self.theta = nn.Parameter((MAX_PHASE * torch.rand(d_state)).clamp(min=1e-6).log())
        self.gamma = nn.Parameter(0.5 * (1 - squared).log())
        self.B = nn.Parameter(torch.randn(2 * d_state, d_model) * (2 * d_model) ** -0.5)  # real parts, imaginary parts
        self.C = nn.Parameter(torch.randn(d_model, 2 * d_state) * d_state**-0.5)
        self.D = nn.Parameter(torch.randn(d_model))
        self.out = nn.Linear(d_model, 2 * d_model)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        decay = torch.polar((-self.nu.exp()).exp(), self.theta.exp())
        written = F.linear(x, self.B).to(wide(x.dtype)).unflatten(-1, (2, -1)) * self.gamma.exp()
        h, last = scan(decay, torch.complex(written[..., 0, :], written[..., 1, :]), state)
        y = F.linear(torch.cat([h.real, -h.imag], -1), self.C).to(x.dtype) + self.D.to(x.dtype) * x
        return F.glu(self.out(F.gelu(y)), -1), last
