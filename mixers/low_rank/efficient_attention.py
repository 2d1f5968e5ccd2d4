"""Efficient attention (Shen et al., 2018, https://arxiv.org/abs/1812.01243, eq. 4).

o = softmax_features(q) (softmax_time(k)^T v)

If causal, k's softmax is over the time so far: a decay of all that came before (a variant that the paper lacks).
"""

import torch
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import heads, merge, per_head, running_softmax
from mixers.ops.linear_attention import linear_attention
from mixers.ops.precision import wide


class EfficientAttention(Mixer):
    """Each channel of the keys attends to the whole sequence once, for all queries."""

    def __init__(self, d_model: int, *, n_heads: int, causal: bool):
        super().__init__()
        per_head(d_model, n_heads)
        self.n_heads, self.causal = n_heads, causal
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        q, k, v = (heads(z, self.n_heads) for z in self.qkv(x).chunk(3, -1))
        q, k = q.to(wide(q.dtype)).softmax(-1), k.to(wide(k.dtype))
        if self.causal:
            total, S = (None, None) if state is None else state
            w, g, total = running_softmax(k, total)
            o, S = linear_attention(q, w, v, g, S)
            return self.out(merge(o)), (total, S)
        if mask is not None:
            k = k.masked_fill(~mask[:, None, :, None], torch.finfo(k.dtype).min)
        return self.out(merge(q @ (k.softmax(2).mT @ v.to(k.dtype))).to(x.dtype)), None
