"""DeltaProduct (Siems et al., 2025, https://arxiv.org/abs/2502.10297, eqs. 6-8 and section 4, the gated form).

S_{t,0} = e^{g_t} S_{t-1},   S_{t,i} = (I - beta_{t,i} k_{t,i} k_{t,i}^T) S_{t,i-1} + beta_{t,i} k_{t,i} v_{t,i}^T,
i = 1 ... n,   S_t = S_{t,n},   o_t = S_t^T q_t,   beta in (0, 2),   g_t = -e^{A_log} softplus(a . x_t + dt_bias)
q, k, v through a short convolution and silu, q and k of length 1;   y = W_o (norm_h(o) * silu(W_g x))
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import RMSNorm, ShortConv, heads, l2_norm, log_decay, merge, per_head, step_bias
from mixers.ops.gated_delta import delta_rule

CONV = 4


class DeltaProduct(Mixer):
    """Several delta steps per token: with n of them, a token's transition is any product of n reflections."""

    dynamics = ("A_log", "dt_bias")

    def __init__(self, d_model: int, *, n_heads: int, n_steps: int):
        super().__init__()
        width = per_head(d_model, n_heads)
        if n_steps < 1:
            raise ValueError(f"n_steps={n_steps}: it must be at least 1")
        self.n_heads, self.n_steps = n_heads, n_steps
        self.split = (d_model, n_steps * d_model, n_steps * d_model)
        self.qkv = nn.Linear(d_model, sum(self.split), bias=False)
        self.conv = ShortConv(sum(self.split), width=CONV, bias=False)
        self.beta_a = nn.Linear(d_model, (n_steps + 1) * n_heads, bias=False)
        self.A_log = nn.Parameter(torch.empty(n_heads).uniform_(0, 16).clamp(min=1e-3).log())
        self.dt_bias = nn.Parameter(step_bias(n_heads))
        self.gate = nn.Linear(d_model, d_model, bias=False)
        self.norm = RMSNorm(width)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        tail, S = (None, None) if state is None else state
        qkv, tail = self.conv(self.qkv(x), tail)
        q, k, v = F.silu(qkv).split(self.split, -1)
        beta, a = self.beta_a(x).split([self.n_steps * self.n_heads, self.n_heads], -1)
        k, v, beta = (rearrange(z, "b t (i h d) -> b h (t i) d", i=self.n_steps, h=self.n_heads) for z in (k, v, beta))
        q, g = heads(q, self.n_heads), heads(log_decay(self.A_log, a, self.dt_bias), self.n_heads)
        # the decay comes before a token's first step, the read after its last
        q, g = l2_norm(q) * q.shape[-1] ** -0.5, torch.stack([g, *[torch.zeros_like(g)] * (self.n_steps - 1)], 3)
        q = torch.stack([*[torch.zeros_like(q)] * (self.n_steps - 1), q], 3)
        o, S = delta_rule(q.flatten(2, 3), l2_norm(k), v, 2 * beta.sigmoid(), g.flatten(2, 3), S)
        o = o[:, :, self.n_steps - 1 :: self.n_steps]
        return self.out(merge(self.norm(o)) * F.silu(self.gate(x))), (tail, S)
