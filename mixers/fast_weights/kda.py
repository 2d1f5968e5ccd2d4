"""Kimi delta attention (Kimi team, 2025, https://arxiv.org/abs/2510.26692, eq. 1 and section 4).

S_t = (I - beta_t k_t k_t^T) diag(e^{g_t}) S_{t-1} + beta_t k_t v_t^T,   o_t = S_t^T q_t,   beta_t = sigmoid(w . x_t)
g_t = -e^{A_log} softplus(W_2 W_1 x_t + dt_bias) per head and key channel
q, k, v through a short convolution and silu, q and k of length 1;   y = W_o (norm_h(o) * sigmoid(W_4 W_3 x + b))
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import RMSNorm, ShortConv, heads, l2_norm, merge, per_head, step_bias
from mixers.ops.gated_delta import delta_rule
from mixers.ops.precision import wide

CONV = 4


class KimiDeltaAttention(Mixer):
    """The gated delta rule with a decay of its own for each key channel."""

    dynamics = ("A_log", "dt_bias")

    def __init__(self, d_model: int, *, n_heads: int):
        super().__init__()
        width = per_head(d_model, n_heads)
        self.n_heads = n_heads
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.conv = ShortConv(3 * d_model, width=CONV, bias=False)
        self.beta = nn.Linear(d_model, n_heads, bias=False)
        self.step = nn.Sequential(nn.Linear(d_model, width, bias=False), nn.Linear(width, d_model, bias=False))
        self.A_log = nn.Parameter(torch.empty(n_heads).uniform_(1, 16).log())
        self.dt_bias = nn.Parameter(step_bias(d_model))
        self.gate = nn.Sequential(nn.Linear(d_model, width, bias=False), nn.Linear(width, d_model))
        self.norm = RMSNorm(width)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        tail, S = (None, None) if state is None else state
        qkv, tail = self.conv(self.qkv(x), tail)
        q, k, v = (heads(z, self.n_heads) for z in F.silu(qkv).chunk(3, -1))
        o, S = delta_rule(l2_norm(q) * q.shape[-1] ** -0.5, l2_norm(k), v, self.rate(x), self.decay(x), S)
        return self.out(merge(self.norm(o)) * self.gate(x).sigmoid()), (tail, S)

    def rate(self, x: Tensor) -> Tensor:
        """beta (B, H, T, 1)."""
        return heads(self.beta(x).sigmoid(), self.n_heads)

    def decay(self, x: Tensor) -> Tensor:
        """g (B, H, T, K)."""
        step = self.step(x)
        dt = heads(F.softplus(step.to(wide(step.dtype)) + self.dt_bias), self.n_heads)
        return -self.A_log.to(dt.dtype).exp()[:, None, None] * dt
