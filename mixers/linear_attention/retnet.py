"""RetNet's retention (Sun et al., 2023, https://arxiv.org/abs/2307.08621, eqs. 5-8).

S_t = gamma_h S_{t-1} + k_t v_t^T,   o_t = S_t^T q_t,   gamma_h = 1 - 2^(-5-h),   q and k rotated by their positions
y = W_o (swish(W_g x) * norm_h(o))
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import RMSNorm, heads, merge, per_head, positions, rope
from mixers.ops.linear_attention import linear_attention


class Retention(Mixer):
    """Linear attention that forgets at a fixed rate per head: half-lives of 22, 44, 88 ... tokens."""

    def __init__(self, d_model: int, *, n_heads: int):
        super().__init__()
        width = per_head(d_model, n_heads)
        self.n_heads = n_heads
        self.qk = nn.Linear(d_model, 2 * d_model, bias=False)
        self.v = nn.Linear(d_model, 2 * d_model, bias=False)
        self.gate = nn.Linear(d_model, 2 * d_model, bias=False)
        self.norm = RMSNorm(2 * width, elementwise_affine=False)  # the paper's row normalisations cancel in it
        self.out = nn.Linear(2 * d_model, d_model, bias=False)
        self.log_gamma: Tensor
        self.register_buffer("log_gamma", torch.log1p(-(2.0 ** -(5 + torch.arange(n_heads)))), persistent=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        start, S = (None, None) if state is None else state
        steps, after = positions(x, start)
        q, k = (rope(heads(z, self.n_heads), steps) for z in self.qk(x).chunk(2, -1))
        v = heads(self.v(x), self.n_heads)
        g = self.log_gamma[None, :, None, None].expand(*v.shape[:3], 1)
        o, S = linear_attention(q * q.shape[-1] ** -0.5, k, v, g, S)
        return self.out(merge(self.norm(o)) * F.silu(self.gate(x))), (after, S)
