"""Mega's damped moving average (Ma et al., 2022, https://arxiv.org/abs/2209.10655, eqs. 3-4), no attention.

h_t = (1 - p d) h_{t-1} + p beta x_t,   y_t = silu(gamma . h_t / sqrt(d_state) + omega x_t)
p = sigmoid(alpha),   d = sigmoid(delta),   d_state numbers per channel

A whole sequence is a convolution with the kernel K_l = sum_n gamma_n p_n beta_n (1 - p_n d_n)^l / sqrt(d_state).
At first, as in the official code, alpha and delta are near 0, and p d near 1/4: memories are short until they learn.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.ops.diagonal import diagonal
from mixers.ops.precision import wide


class MegaEMA(Mixer):
    """A few moving averages per channel, damped to forget slower than they learn; channels do not mix."""

    sizes = ("d_state",)
    dynamics = ("alpha", "delta")

    def __init__(self, d_model: int, *, d_state: int):
        super().__init__()
        self.alpha, self.delta = (nn.Parameter(0.2 * torch.randn(d_model, d_state)) for _ in range(2))
        signs = 1.0 - 2 * (torch.arange(d_state) % 2)
        self.beta = nn.Parameter(signs + 0.02 * torch.randn(d_model, d_state))
        self.gamma = nn.Parameter(torch.randn(d_model, d_state))
        self.omega = nn.Parameter(torch.randn(d_model))

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        p, u = self.alpha.sigmoid(), x.to(wide(x.dtype))
        y, h = diagonal(
            u, torch.log1p(-p * self.delta.sigmoid()), self.gamma * p * self.beta * self.alpha.shape[1] ** -0.5, state
        )
        return F.silu(y + self.omega * u).to(x.dtype), h
