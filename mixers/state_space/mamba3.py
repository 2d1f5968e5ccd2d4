"""Mamba-3, one input and one output per head (Lahoti et al., 2026, https://arxiv.org/abs/2603.15569).

S_t = a_t S_{t-1} + (1 - l_t) dt_t a_t k_{t-1} v_{t-1}^T + l_t dt_t k_t v_t^T,   y_t = S_t^T q_t + D v_t
a_t = e^{A_t dt_t},   A_t = -softplus(.),   dt_t = softplus(. + b),   l_t = sigmoid(.),   all W x_t, per head
q, k = R(theta_t) (norm(W x_t) + bias per head), half of it turned,   theta_t = theta_{t-1} + pi dt_t tanh(W x_t)
out = W_o (y * silu(z))

No short convolution: the trapezoidal rule mixes neighbours. Each pair (k_t, v_t) is written once, with the weights
of its two terms together; the second of them, which comes a step later, is taken back from y_t. Released versions
of the code differ in A_t: some have, in place of softplus, a map of heavier tails.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import RMSNorm, heads, merge, per_head, step_bias
from mixers.ops.linear_attention import linear_attention
from mixers.ops.precision import wide

EXPAND, A_MIN = 2, 1e-4


class Mamba3(Mixer):
    """A state space that integrates its input by the trapezoidal rule and turns as it decays, by angles that the
    input chooses: it can count modulo.
    """

    sizes = ("d_state",)
    dynamics = ("dt_bias",)

    def __init__(self, d_model: int, *, n_heads: int, d_state: int):
        super().__init__()
        width = EXPAND * d_model
        per_head(width, n_heads)
        if d_state % 4:
            raise ValueError(f"d_state={d_state} is not divisible by 4: pairs in half of it are rotated, change it")
        self.n_heads, self.n_angles = n_heads, d_state // 4
        self.split = (width, width, d_state, d_state, n_heads, n_heads, n_heads, self.n_angles)
        self.project = nn.Linear(d_model, sum(self.split), bias=False)
        self.dt_bias = nn.Parameter(step_bias(n_heads))
        self.norm_q, self.norm_k = RMSNorm(d_state, eps=1e-5), RMSNorm(d_state, eps=1e-5)
        self.bias_q, self.bias_k = (nn.Parameter(torch.ones(n_heads, 1, d_state)) for _ in range(2))
        self.D = nn.Parameter(torch.ones(n_heads))
        self.out = nn.Linear(width, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        S, k_before, v_before, theta = (None, None, None, None) if state is None else state
        z, v, k, q, dt, A, l, angle = self.project(x).split(self.split, -1)
        dtype = wide(x.dtype)
        dt = heads(F.softplus(dt.to(dtype) + self.dt_bias), self.n_heads)
        g = -heads(F.softplus(A.to(dtype)).clamp(min=A_MIN), self.n_heads) * dt
        now = heads(l.to(dtype).sigmoid(), self.n_heads) * dt  # the weight of this step's pair, (B, H, T, 1)
        before = dt - now  # and of the last step's

        turned = (dt * math.pi * angle.to(dtype).tanh().unsqueeze(1)).double().cumsum(2)
        theta = (turned if theta is None else turned + theta.unsqueeze(2)).remainder(2 * math.pi).to(dtype)
        q = rotate(self.norm_q(q).to(dtype).unsqueeze(1) + self.bias_q, theta)
        k = rotate(self.norm_k(k).to(dtype).unsqueeze(1) + self.bias_k, theta)
        v = heads(v, self.n_heads).to(dtype)

        if state is not None:
            S = torch.addcmul(S, before[:, :, :1] * k_before.unsqueeze(-1), v_before.unsqueeze(-2))
        later = F.pad(before[:, :, 1:], (0, 0, 0, 1))  # what each pair is to weigh one step on; the next call adds it
        y, S = linear_attention(q, k * (now + later), v, g, S)
        y = y + (self.D[:, None, None] - later * (q * k).sum(-1, keepdim=True)) * v
        return self.out(merge(y.to(x.dtype)) * F.silu(z)), (S, k[:, :, -1], v[:, :, -1], theta[:, :, -1])


def rotate(x: Tensor, theta: Tensor) -> Tensor:
    """x (B, H, T, N), the first half of its components as pairs (x_n, x_{n + N / 4}), by theta (B, H, T, N / 4)."""
    a, b, rest = x.split([theta.shape[-1], theta.shape[-1], x.shape[-1] // 2], -1)
    cos, sin = theta.cos(), theta.sin()
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)
