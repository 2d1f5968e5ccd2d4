"""Softmax attention (Vaswani et al., 2017, https://arxiv.org/abs/1706.03762) with positions of a kind.

o_i = sum_j softmax_j(q_i . k_j / sqrt(D) + bias_ij) v_j
rope: q and k rotated by their positions, base 10^4 (Su et al., 2021);   none: no positions at all
alibi: bias_ij = -2^(-8 h / H) (i - j), h = 1 ... H (Press et al., 2021, https://arxiv.org/abs/2108.12409, section 3)
"""

import torch
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import heads, merge, per_head, positions, rope
from mixers.ops.attention import attention


class Softmax(Mixer):
    """Looks at every earlier token, and remembers every one: the state grows with the sequence."""

    def __init__(self, d_model: int, *, n_heads: int, causal: bool, position: str):
        super().__init__()
        per_head(d_model, n_heads)
        if position not in ("rope", "alibi", "none"):
            raise ValueError(f"position is '{position}': it must be rope, alibi or none")
        if position == "alibi" and not causal:
            raise ValueError("position=alibi looks back only: choose rope where causal=False")
        self.n_heads, self.causal, self.position = n_heads, causal, position
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        start, past = (None, None) if state is None else state
        steps, after = positions(x, start)
        q, k, v = (heads(z, self.n_heads) for z in self.qkv(x).chunk(3, -1))
        if self.position == "rope":
            q, k = rope(q, steps), rope(k, steps)
        bias = None
        if self.position == "alibi":  # in a softmax over j, -slope (i - j) and slope j are the same
            slopes = 2.0 ** (-8 * torch.arange(1, self.n_heads + 1, device=x.device) / self.n_heads)
            seen = x.shape[1] + (0 if past is None else past[0].shape[2])
            bias = (slopes.unsqueeze(1) * torch.arange(1 - seen, 1, device=x.device)).expand(len(x), -1, -1)
        o, past = attention(q, k, v, past, mask, self.causal, bias=bias)
        return self.out(merge(o)), (after, past) if self.causal else None
