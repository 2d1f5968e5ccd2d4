"""Softmax attention (Vaswani et al., 2017, https://arxiv.org/abs/1706.03762) with rotary positions (Su et al., 2021).

o_i = sum_j softmax_j(R_i q_i . R_j k_j / sqrt(D)) v_j
"""

from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import heads, merge, per_head, positions, rope
from mixers.ops.attention import attention


class Softmax(Mixer):
    """Looks at every earlier token, and remembers every one: the state grows with the sequence."""

    def __init__(self, d_model: int, *, n_heads: int, causal: bool):
        super().__init__()
        per_head(d_model, n_heads)
        self.n_heads, self.causal = n_heads, causal
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        start, past = (None, None) if state is None else state
        steps, after = positions(x, start)
        q, k, v = (heads(z, self.n_heads) for z in self.qkv(x).chunk(3, -1))
        o, past = attention(rope(q, steps), rope(k, steps), v, past, mask, self.causal)
        return self.out(merge(o)), (after, past) if self.causal else None
