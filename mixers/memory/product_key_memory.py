"""Product-key memory (Lample et al., 2019, https://arxiv.org/abs/1907.05242, section 3), with the gate of
memory layers (Berges et al., 2024, https://arxiv.org/abs/2412.09764, section 3).

q = LN(W_q x),   score(i, j) = q_1 . c_i + q_2 . c'_j,   o = sum over the best pairs of softmax(score)_{ij} V_{ij}
y = W_2 (o * silu(W_1 x)),   q_1 and q_2 the halves of q, heads add

c and c' are n keys each, and their pairs address n^2 values: the best of those are among the pairs of either
half's best. It reads parameters only, so that no token learns of another: put it beside mixers, in a pattern. The
paper's normalisation over the batch is one over the query here, since examples must not mix.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.ops.precision import exact, wide


class ProductKeyMemory(Mixer):
    """A lookup in a large table of learned values, of which each token reads and trains a few."""

    null = True
    sizes = ("n_keys",)
    tables = ("values",)

    def __init__(self, d_model: int, *, n_heads: int, n_keys: int, d_key: int, top: int, causal: bool):
        super().__init__()
        if not 1 <= top <= n_keys:
            raise ValueError(f"top={top} of n_keys={n_keys} keys cannot be chosen: lower top")
        if d_key % 2:
            raise ValueError(f"d_key={d_key} is odd, and keys are pairs of halves: choose an even number")
        self.causal, self.top = causal, top
        self.q = nn.Linear(d_model, n_heads * d_key, bias=False)
        self.norm = nn.LayerNorm(d_key)
        self.keys = nn.Parameter(torch.empty(n_heads, 2, n_keys, d_key // 2).uniform_(-1, 1) * (d_key // 2) ** -0.5)
        self.values = nn.Parameter(d_model**-0.5 * torch.randn(n_keys * n_keys, d_model))
        self.gate = nn.Linear(d_model, d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        weights, pairs = self.lookup(x)
        values = self.values.to(weights.dtype)
        o = F.embedding_bag(pairs.flatten(0, 1), values, mode="sum", per_sample_weights=weights.flatten(0, 1))
        return self.out(o.view_as(x).to(x.dtype) * F.silu(self.gate(x))), None

    @exact
    def lookup(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The weights of the best pairs of each head, and their rows in the table: (B, T, n_heads top) both. In
        float32 at least: a rounded score chooses other rows."""
        x, keys = x.to(wide(x.dtype)), self.keys.to(wide(x.dtype))
        n_heads, _, n, half = keys.shape
        q = F.linear(x, self.q.weight.to(x.dtype)).unflatten(-1, (n_heads, 2 * half))
        q = F.layer_norm(q, q.shape[-1:], self.norm.weight.to(x.dtype), self.norm.bias.to(x.dtype), self.norm.eps)
        scores = torch.einsum("bthsd,hsnd->bthsn", q.unflatten(-1, (2, half)), keys)
        best, which = scores.topk(self.top)
        sums = (best[..., 0, :, None] + best[..., 1, None, :]).flatten(-2)
        pairs = (which[..., 0, :, None] * n + which[..., 1, None, :]).flatten(-2)
        best, which = sums.topk(self.top)
        return best.softmax(-1).flatten(-2), pairs.gather(-1, which).flatten(-2)
