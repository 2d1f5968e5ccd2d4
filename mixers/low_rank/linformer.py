"""Linformer (Wang et al., 2020, https://arxiv.org/abs/2006.04768, eq. 7).

o = softmax(q (E K)^T / sqrt(D)) F V,   E, F (m, max_length) learned
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import at_most, heads, merge, per_head


class Linformer(Mixer):
    """Attends to m learned mixtures of the whole sequence. It looks ahead by nature: there is no causal version."""

    causal = False
    sizes = ("rank",)

    def __init__(self, d_model: int, *, n_heads: int, rank: int, max_length: int):
        super().__init__()
        per_head(d_model, n_heads)
        self.n_heads, self.max_length = n_heads, max_length
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.E, self.F = (nn.Parameter(torch.empty(rank, max_length).uniform_(-1, 1) * rank**-0.5) for _ in range(2))
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        T = x.shape[1]
        at_most(self, T)
        q, k, v = (heads(z, self.n_heads) for z in self.qkv(x).chunk(3, -1))
        if mask is not None:
            k, v = (z * mask[:, None, :, None] for z in (k, v))
        o = F.scaled_dot_product_attention(q, self.E[:, :T].to(k.dtype) @ k, self.F[:, :T].to(v.dtype) @ v)
        return self.out(merge(o)), None
