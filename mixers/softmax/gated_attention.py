"""Gated attention (Qiu et al., 2025, https://arxiv.org/abs/2505.06708, section 2.2, the gate after the softmax).

Y = softmax(R q . R k / sqrt(D)) V,   out = W_o (Y * sigmoid(W_g x)), a gate per head and channel
"""

from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import heads, merge, per_head, positions, rope
from mixers.ops.attention import attention


class GatedAttention(Mixer):
    """Softmax attention that can say nothing: what a head has read passes a gate before it is written."""

    def __init__(self, d_model: int, *, n_heads: int, causal: bool):
        super().__init__()
        per_head(d_model, n_heads)
        self.n_heads, self.causal = n_heads, causal
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.gate = nn.Linear(d_model, d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        start, past = (None, None) if state is None else state
        steps, after = positions(x, start)
        q, k, v = (heads(z, self.n_heads) for z in self.qkv(x).chunk(3, -1))
        o, past = attention(rope(q, steps), rope(k, steps), v, past, mask, self.causal)
        return self.out(merge(o) * self.gate(x).sigmoid()), (after, past) if self.causal else None
