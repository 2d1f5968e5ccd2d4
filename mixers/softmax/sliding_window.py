"""Sliding-window attention (Beltagy et al., 2020, https://arxiv.org/abs/2004.05150, section 3.1) with rotary positions.

o_i = sum_{i - w < j <= i} softmax_j(R_i q_i . R_j k_j / sqrt(D)) v_j
"""

from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import heads, merge, per_head, positions, rope
from mixers.ops.attention import attention


class SlidingWindow(Mixer):
    """Softmax attention to the last `window` tokens, and to as many ahead where the task looks both ways."""

    sizes = ("window",)

    def __init__(self, d_model: int, *, n_heads: int, window: int, causal: bool):
        super().__init__()
        per_head(d_model, n_heads)
        self.n_heads, self.window, self.causal = n_heads, window, causal
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        start, past = (None, None) if state is None else state
        steps, after = positions(x, start)
        q, k, v = (heads(z, self.n_heads) for z in self.qkv(x).chunk(3, -1))
        o, past = attention(rope(q, steps), rope(k, steps), v, past, mask, self.causal, self.window)
        return self.out(merge(o)), (after, past) if self.causal else None
