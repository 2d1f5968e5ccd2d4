"""Gated DeltaNet (Yang et al., 2024, https://arxiv.org/abs/2412.06464, eq. 10 and section 3.4).

S_t = (I - beta_t k_t k_t^T) e^{g_t} S_{t-1} + beta_t k_t v_t^T,   o_t = S_t^T q_t
beta_t = sigmoid(w . x_t),   g_t = -e^{A_log} softplus(a . x_t + dt_bias)
q, k, v through a short convolution and silu, q and k of length 1;   y = W_o (norm_h(o) * silu(W_g x))
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import RMSNorm, ShortConv, heads, l2_norm, log_decay, merge, per_head, step_bias
from mixers.ops.gated_delta import delta_rule

CONV = 4


class GatedDeltaNet(Mixer):
    """The delta rule that can also forget everything at once: keys of 3/4 of the model, values twice as wide as
    keys.
    """

    dynamics = ("A_log", "dt_bias")

    def __init__(self, d_model: int, *, n_heads: int):
        super().__init__()
        if d_model * 3 % (4 * n_heads):
            raise ValueError(f"3/4 of d_model={d_model} is not divisible by n_heads={n_heads}: change either")
        keys, values = d_model * 3 // 4, d_model * 3 // 2
        self.n_heads, self.split = n_heads, (keys, keys, values)
        self.qkv = nn.Linear(d_model, 2 * keys + values, bias=False)
        self.conv = ShortConv(2 * keys + values, width=CONV, bias=False)
        self.beta_a = nn.Linear(d_model, 2 * n_heads, bias=False)
        self.A_log = nn.Parameter(torch.empty(n_heads).uniform_(0, 16).clamp(min=1e-3).log())
        self.dt_bias = nn.Parameter(step_bias(n_heads))
        self.gate = nn.Linear(d_model, values, bias=False)
        self.norm = RMSNorm(per_head(values, n_heads))
        self.out = nn.Linear(values, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        tail, S = (None, None) if state is None else state
        qkv, tail = self.conv(self.qkv(x), tail)
        q, k, v = (heads(z, self.n_heads) for z in F.silu(qkv).split(self.split, -1))
        beta, a = self.beta_a(x).chunk(2, -1)
        g = heads(log_decay(self.A_log, a, self.dt_bias), self.n_heads)
        beta = heads(beta.sigmoid(), self.n_heads)
        o, S = delta_rule(l2_norm(q) * q.shape[-1] ** -0.5, l2_norm(k), v, beta, g, S)
        return self.out(merge(self.norm(o)) * F.silu(self.gate(x))), (tail, S)
