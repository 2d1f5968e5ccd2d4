"""MoBA, mixture of block attention (Lu et al., 2025, https://arxiv.org/abs/2502.13189, eqs. 2-6).

o_i = sum_j softmax_j(q_i . k_j / sqrt(D)) v_j,   over j <= i in i's own block and the top - 1 best blocks before it,
by the score q_i . mean(k of the block), which learns nothing of its own; q and k rotated by their positions
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import heads, merge, per_head, positions, rope
from mixers.ops.attention import join
from mixers.ops.block_attention import best, block_attention, block_means


class MoBA(Mixer):
    """Softmax attention to a few blocks of keys, which each query and head chooses by their means."""

    def __init__(self, d_model: int, *, n_heads: int, block: int, top: int):
        super().__init__()
        per_head(d_model, n_heads)
        self.n_heads, self.block, self.top = n_heads, block, top
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        start, past = (None, None) if state is None else state
        steps, after = positions(x, start)
        q, k, v = (heads(z, self.n_heads) for z in self.qkv(x).chunk(3, -1))
        q, k = rope(q, steps), rope(k, steps)
        k, v = join(past, k, v)
        T, S = x.shape[1], k.shape[2]
        with torch.no_grad():
            scores = q @ block_means(k, self.block).mT
            n = -(-S // self.block)
            scores = F.pad(scores, (0, n - scores.shape[-1]))
            chosen = best(scores, self.top, torch.arange(S - T, S, device=x.device), self.block)
        return self.out(merge(block_attention(q, k, v, chosen, self.block))), (after, (k, v))
