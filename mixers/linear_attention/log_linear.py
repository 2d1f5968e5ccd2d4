"""Log-linear attention (Guo et al., 2025, https://arxiv.org/abs/2506.04761, sections 3.1-3.4).

o_t = sum_l lambda_tl S_t^{(l)T} q_t,   lambda_t = softplus(L * (W x_t)),   L = 1 at first
write: sum, as Mamba-2     S_t = e^{g_t} S_{t-1} + k_t (dt_t v_t)^T
write: delta, as Gated DeltaNet     S_t = (I - beta_t k_t k_t^T) e^{g_t} S_{t-1} + beta_t k_t v_t^T
g_t = -e^{A_log} dt_t,   dt_t = softplus(a . x_t + dt_bias);   q, k, v through a short convolution and silu;
y = W_o (norm_h(o) * silu(W_g x))

Both variants have the projections of Gated DeltaNet here, so that they differ in the write alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import RMSNorm, ShortConv, heads, l2_norm, log_decay, merge, per_head, step_bias
from mixers.ops.log_linear import log_linear

CONV = 4


class LogLinear(Mixer):
    """A state for each of log T stretches of the past, in place of one for all of it."""

    dynamics = ("A_log", "dt_bias")

    def __init__(self, d_model: int, *, n_heads: int, write: str, max_length: int):
        super().__init__()
        width = per_head(d_model, n_heads)
        if write not in ("sum", "delta"):
            raise ValueError(f"write is '{write}': it must be sum or delta")
        self.n_heads, self.write, self.n_levels = n_heads, write, (max_length - 1).bit_length() + 1
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.conv = ShortConv(3 * d_model, width=CONV, bias=False)
        self.a = nn.Linear(d_model, n_heads, bias=False)
        self.beta = nn.Linear(d_model, n_heads, bias=False) if write == "delta" else None
        self.A_log = nn.Parameter(torch.empty(n_heads).uniform_(1, 16).log())
        self.dt_bias = nn.Parameter(step_bias(n_heads))
        self.levels = nn.Linear(d_model, n_heads * self.n_levels, bias=False)
        self.L = nn.Parameter(torch.ones(n_heads, 1, self.n_levels))
        self.gate = nn.Linear(d_model, d_model, bias=False)
        self.norm = RMSNorm(width)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        tail, past = (None, None) if state is None else state
        qkv, tail = self.conv(self.qkv(x), tail)
        q, k, v = (heads(z, self.n_heads) for z in F.silu(qkv).chunk(3, -1))
        q, k = l2_norm(q) * q.shape[-1] ** -0.5, l2_norm(k)
        g = heads(log_decay(self.A_log, self.a(x), self.dt_bias), self.n_heads)
        weight = F.softplus(self.L * heads(self.levels(x), self.n_heads))
        if self.beta is None:
            step = g / -self.A_log.to(g.dtype).exp()[:, None, None]
            o, past = log_linear(q, k, step * v, weight, g, None, past)
        else:
            beta = heads(self.beta(x).sigmoid(), self.n_heads)
            o, past = log_linear(q, k, beta * v, weight, g, beta * k, past)
        return self.out(merge(self.norm(o.to(x.dtype))) * F.silu(self.gate(x))), (tail, past)
