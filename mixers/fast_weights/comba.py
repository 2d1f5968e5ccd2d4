"""Comba (Hu et al., 2025, https://arxiv.org/abs/2506.02475, eqs. 8-11).

S_t = (e^{g_t} - k_t p_t^T) S_{t-1} + beta_t k_t v_t^T,   o_t = S_t^T (q_t - D k_t),   p_t = beta_t sigmoid(d) k_t
beta_t = sigmoid(w . x_t),   g_t = -e^{A_log} softplus(a . x_t + dt_bias),   D is 0.02 and d is 1 at first, per head
q, k, v through a short convolution and silu, q and k of length 1;   y = W_o (norm_h(o) * silu(W_g x))

The initial values of D and d are those of the official code as far as known; the paper does not print them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import RMSNorm, ShortConv, heads, l2_norm, log_decay, merge, per_head, step_bias
from mixers.ops.dplr import dplr

CONV = 4


class Comba(Mixer):
    """A delta rule in closed loop: it erases what was there before the decay, and corrects the query as well."""

    dynamics = ("A_log", "dt_bias")

    def __init__(self, d_model: int, *, n_heads: int):
        super().__init__()
        width = per_head(d_model, n_heads)
        self.n_heads = n_heads
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.conv = ShortConv(3 * d_model, width=CONV, bias=False)
        self.beta_a = nn.Linear(d_model, 2 * n_heads, bias=False)
        self.A_log = nn.Parameter(torch.empty(n_heads).uniform_(0, 16).clamp(min=1e-3).log())
        self.dt_bias = nn.Parameter(step_bias(n_heads))
        self.d = nn.Parameter(torch.ones(n_heads))
        self.D = nn.Parameter(torch.full((n_heads,), 0.02))
        self.gate = nn.Linear(d_model, d_model, bias=False)
        self.norm = RMSNorm(width)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        tail, S = (None, None) if state is None else state
        qkv, tail = self.conv(self.qkv(x), tail)
        q, k, v = (heads(z, self.n_heads) for z in F.silu(qkv).chunk(3, -1))
        q, k = l2_norm(q), l2_norm(k)
        beta, a = self.beta_a(x).chunk(2, -1)
        beta, g = heads(beta.sigmoid(), self.n_heads), heads(log_decay(self.A_log, a, self.dt_bias), self.n_heads)
        p = beta * self.d.sigmoid()[:, None, None] * k
        q = (q - self.D[:, None, None] * k) * q.shape[-1] ** -0.5
        o, S = dplr(q, k, beta * v, -k, p, g, S)
        return self.out(merge(self.norm(o)) * F.silu(self.gate(x))), (tail, S)
