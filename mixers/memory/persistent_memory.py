"""Attention with persistent memory, all-attention (Sukhbaatar et al., 2019, https://arxiv.org/abs/1907.01470).

o_i = sum_j softmax_j(q_i . k_j / sqrt(D)) v_j,   j over the tokens that i may see and over N learned pairs (k, v)

The pairs have no position and every query sees them; those of tokens are rotated by theirs. They are N(0, 1 / D)
at first: the paper's own scale was not verified. In the paper they replace the MLP, which stays what the model
says here.
"""

import torch
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import heads, merge, per_head, positions, rope
from mixers.ops.attention import attention


class PersistentMemory(Mixer):
    """Softmax attention that finds, besides the tokens, keys and values that are parameters."""

    sizes = ("n_persistent",)

    def __init__(self, d_model: int, *, n_heads: int, n_persistent: int, causal: bool):
        super().__init__()
        width = per_head(d_model, n_heads)
        self.n_heads, self.causal = n_heads, causal
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.k = nn.Parameter(width**-0.5 * torch.randn(n_heads, n_persistent, width))
        self.v = nn.Parameter(width**-0.5 * torch.randn(n_heads, n_persistent, width))
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        start, past = (None, None) if state is None else state
        steps, after = positions(x, start)
        q, k, v = (heads(z, self.n_heads) for z in self.qkv(x).chunk(3, -1))
        # the pairs stand in front, and are left out of the state: they are no memory of the sequence
        before = tuple(z.to(k.dtype).expand(len(x), -1, -1, -1) for z in (self.k, self.v))
        N = self.k.shape[1]
        if past is not None:
            before = tuple(torch.cat(pair, 2) for pair in zip(before, past, strict=True))
        if mask is not None:
            mask = torch.cat([mask.new_ones(len(x), N), mask], 1)
        o, (k, v) = attention(rope(q, steps), rope(k, steps), v, before, mask, self.causal, prefix=N)
        return self.out(merge(o)), (after, (k[:, :, N:], v[:, :, N:])) if self.causal else None
