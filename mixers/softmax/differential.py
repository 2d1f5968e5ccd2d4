"""The differential transformer (Ye et al., 2024, https://arxiv.org/abs/2410.05258, eqs. 1-3).

o = (softmax(q1 . k1 / sqrt(D)) - lambda softmax(q2 . k2 / sqrt(D))) V,   out = W_o (1 - lambda_init) norm_h(o)
lambda = exp(l_q1 . l_k1) - exp(l_q2 . l_k2) + lambda_init,   lambda_init = 0.8 - 0.6 exp(-0.3 layer), layer from 0
"""

import math

import torch
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import RMSNorm, heads, merge, per_head, positions, rope
from mixers.ops.attention import attention


class DifferentialAttention(Mixer):
    """Two softmaxes per head, of which the second is taken off the first: what both attend to is noise."""

    def __init__(self, d_model: int, *, n_heads: int, causal: bool, layer: int, n_layers: int):
        super().__init__()
        width = per_head(d_model, n_heads)
        if width % 4:
            raise ValueError(f"d_model={d_model} over n_heads={n_heads} is not a multiple of 4: change either")
        self.n_heads, self.causal = n_heads, causal
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.lambdas = nn.Parameter(0.1 * torch.randn(2, 2, width // 2))  # (pair, q and k, channel)
        self.lambda_init = 0.8 - 0.6 * math.exp(-0.3 * layer)
        self.norm = RMSNorm(width, elementwise_affine=True)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        start, past = (None, None) if state is None else state
        steps, after = positions(x, start)
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k = (rope(heads(z, 2 * self.n_heads), steps) for z in (q, k))  # pairs lie side by side
        v = heads(v, self.n_heads).repeat_interleave(2, 1)
        o, past = attention(q, k, v, past, mask, self.causal)
        first, second = self.lambdas.prod(1).sum(-1).exp()
        o = o.unflatten(1, (-1, 2))
        o = o[:, :, 0] - (first - second + self.lambda_init).to(o.dtype) * o[:, :, 1]
        return self.out(merge(self.norm(o)) * (1 - self.lambda_init)), (after, past) if self.causal else None
