"""Gated slot attention (Zhang et al., 2024, https://arxiv.org/abs/2409.07146, eqs. 9-11).

K_t = diag(f_t) K_{t-1} + (1 - f_t) k_t^T,   V_t = diag(f_t) V_{t-1} + (1 - f_t) v_t^T,   M slots
o_t = V_t^T softmax(K_t q_t),   f_t = sigmoid(W_f x_t)^(1/8) per slot
q, k = swish(W x),   v = silu(W_v x);   y = W_o norm(silu(o)), the norm over all heads

Two passes of linear attention: the first decays the values' side, which are slots there.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import RMSNorm, heads, merge, per_head
from mixers.ops.linear_attention import linear_attention
from mixers.ops.precision import wide

TEMPERATURE = 8.0


class GatedSlotAttention(Mixer):
    """Softmax attention over a fixed number of slots, each of which is a fading mean of what was written to it."""

    sizes = ("n_slots",)

    def __init__(self, d_model: int, *, n_heads: int, n_slots: int):
        super().__init__()
        per_head(d_model, n_heads)
        self.n_heads = n_heads
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.forget = nn.Linear(d_model, n_heads * n_slots, bias=False)
        self.norm = RMSNorm(d_model)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        keys, values = (None, None) if state is None else state
        q, k, v = (heads(z, self.n_heads) for z in F.silu(self.qkv(x)).chunk(3, -1))
        f = self.forget(x)
        g = heads(F.logsigmoid(f.to(wide(f.dtype))) / TEMPERATURE, self.n_heads)
        s = -g.expm1()
        logits, keys = linear_attention(q, k, s, state=keys, gv=g)
        o, values = linear_attention(logits.softmax(-1), s, v, g, values)
        return self.out(self.norm(F.silu(merge(o)).to(x.dtype))), (keys, values)
