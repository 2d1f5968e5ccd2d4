"""NSA, native sparse attention (Yuan et al., 2025, https://arxiv.org/abs/2502.11089, eqs. 5-12).

o_i = g_c o_compressed + g_s o_selected + g_w o_window,   g = sigmoid(W x_i) per head and branch
compressed   attention to phi(block) of every complete block before i, phi a mean of keys (or values) weighted by place
selected     attention to the `top` best blocks by the compressed weights, summed over the heads that share keys;
             the first block and i's own are always among them
window       attention to the last `window` keys

Each branch has keys and values of its own, n_kv_heads of them. Blocks do not overlap (the paper's are of 32 at a stride
of 16), and phi is a weighted mean in place of its perceptron.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import heads, merge, per_head, positions, rope
from mixers.ops.attention import attention, join
from mixers.ops.block_attention import best, block_attention


class NativeSparseAttention(Mixer):
    """Three views of the past in one: summaries of blocks, the few best blocks, and the latest keys."""

    def __init__(self, d_model: int, *, n_heads: int, n_kv_heads: int, block: int, top: int, window: int):
        super().__init__()
        width = per_head(d_model, n_heads)
        if n_heads % n_kv_heads:
            raise ValueError(f"n_heads={n_heads} is not divisible by n_kv_heads={n_kv_heads}: change either")
        self.n_heads, self.n_kv_heads, self.block, self.top, self.window = n_heads, n_kv_heads, block, top, window
        self.q = nn.Linear(d_model, d_model, bias=False)
        self.kv = nn.Linear(d_model, 6 * n_kv_heads * width, bias=False)
        self.place = nn.Parameter(torch.zeros(2, block))  # logits of each place in a block, for keys and values
        self.gate = nn.Linear(d_model, 3 * n_heads)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        start, compressed, selected, near = (None, None, None, None) if state is None else state
        steps, after = positions(x, start)
        q = rope(heads(self.q(x), self.n_heads), steps)
        kc, vc, ks, vs, kw, vw = (heads(z, self.n_kv_heads) for z in self.kv(x).chunk(6, -1))
        kc, vc = join(compressed, rope(kc, steps), vc)
        ks, vs = join(selected, rope(ks, steps), vs)
        place = torch.arange(kc.shape[2] - x.shape[1], kc.shape[2], device=x.device)
        o_c, weights = self.summaries(q, kc, vc, place)
        with torch.no_grad():
            shared = (
                weights.unflatten(1, (self.n_kv_heads, -1)).sum(2).repeat_interleave(self.n_heads // self.n_kv_heads, 1)
            )
            n = -(-ks.shape[2] // self.block)
            first = torch.arange(n, device=x.device) == 0
            chosen = best(F.pad(shared, (0, n - shared.shape[-1])), self.top, place, self.block, first)
        o_s = block_attention(q, ks, vs, chosen, self.block)
        o_w, near = attention(q, rope(kw, steps), vw, near, window=self.window)
        g = heads(self.gate(x).sigmoid(), self.n_heads).unsqueeze(-1)
        o = g[..., 0, :] * o_c + g[..., 1, :] * o_s + g[..., 2, :] * o_w
        return self.out(merge(o)), (after, (kc, vc), (ks, vs), near)

    def summaries(self, q: Tensor, k: Tensor, v: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """Attention to complete blocks before each query, and its weights (B, H, T, n); nothing where there is none."""
        n = k.shape[2] // self.block
        of_k, of_v = self.place.softmax(-1).to(k.dtype).unsqueeze(-1)
        k, v = (
            (z[:, :, : n * self.block].unflatten(2, (n, self.block)) * w)
            .sum(3)
            .repeat_interleave(self.n_heads // self.n_kv_heads, 1)
            for z, w in ((k, of_k), (v, of_v))
        )
        over = (torch.arange(n, device=k.device) + 1) * self.block <= place.unsqueeze(1) + 1
        logits = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~over, torch.finfo(q.dtype).min)
        weights = logits.softmax(-1).masked_fill(~over, 0)
        return weights @ v, weights
