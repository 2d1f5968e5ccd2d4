"""PaTH attention (Yang et al., 2025, https://arxiv.org/abs/2505.16381, eqs. 1-6).

o_i = sum_{j <= i} softmax_j(q_i^T H_i H_{i-1} ... H_{j+1} k_j / sqrt(D)) v_j,   H_s = I - beta_s w_s w_s^T
beta_s = 2 sigmoid(b . x_s),   w_s = silu(conv(W_2 W_1 x_s)) of length 1

Chunk by chunk: the keys of the past are carried with all reflections up to the chunk already applied, and within a
chunk the product of reflections is I - W^T T diag(beta) W, T = (I + stril(diag(beta) W W^T))^{-1}. Training keeps
the keys of every SEGMENT tokens, and computes those of the chunks between again.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import ShortConv, heads, l2_norm, merge, per_head
from mixers.ops.gated_delta import invert
from mixers.ops.precision import exact, wide
from mixers.ops.work import again

CHUNK, SEGMENT, RANK, CONV = 64, 1024, 32, 3


class PaTH(Mixer):
    """Softmax attention whose positions are products of reflections that the tokens choose."""

    def __init__(self, d_model: int, *, n_heads: int):
        super().__init__()
        per_head(d_model, n_heads)
        self.n_heads = n_heads
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.w = nn.Sequential(nn.Linear(d_model, RANK, bias=False), nn.Linear(RANK, d_model, bias=False))
        self.conv = ShortConv(d_model, width=CONV, bias=False)
        self.beta = nn.Linear(d_model, n_heads)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        tail, past = (None, None) if state is None else state
        q, k, v = (heads(z, self.n_heads) for z in self.qkv(x).chunk(3, -1))
        w, tail = self.conv(self.w(x), tail)
        w = l2_norm(heads(F.silu(w), self.n_heads))
        beta = heads(2 * self.beta(x).sigmoid(), self.n_heads)
        o, past = reflected_attention(q, k, v, w, beta, past)
        return self.out(merge(o)), (tail, past)


@exact
def reflected_attention(q, k, v, w, beta, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """q, k, v, w (B, H, T, D), beta (B, H, T, 1); past: keys, every reflection so far applied, and values."""
    dtype, kind = wide(q.dtype), v.dtype
    K = k[:, :, :0].to(dtype) if past is None else past[0]
    V = v[:, :, :0].to(dtype) if past is None else past[1]
    segments = list(zip(*(x.to(dtype).split(SEGMENT, 2) for x in (q, k, v, w, beta)), strict=True))
    if len(segments) == 1:
        o, K, V = attend_segment(K, V, *segments[0])
        return o.to(kind), (K, V)
    out = []
    for segment in segments:
        o, K, V = again(attend_segment, K, V, *segment)
        out.append(o)
    return torch.cat(out, 2).to(kind), (K, V)


def attend_segment(K, V, q, k, v, w, beta) -> tuple[Tensor, Tensor, Tensor]:
    """One segment after the keys K and values V (B, H, t, D): its outputs, and keys and values with its own."""
    out = []
    for q_, k_, v_, w_, b_ in zip(*(x.split(CHUNK, 2) for x in (q, k, v, w, beta)), strict=True):
        T = invert((b_ * w_ @ w_.mT).tril(-1))
        reach = (q_ @ w_.mT).tril() @ T  # of each reflection on each query
        turned = T @ (b_ * w_ @ k_.mT).tril(-1)  # and, through all later ones, on each key
        new = q_ @ k_.mT - (q_ @ w_.mT).tril() @ turned
        old = (q_ - reach @ (b_ * w_)) @ K.mT
        later = torch.ones_like(new, dtype=torch.bool).triu(1)
        logits = torch.cat([old, new.masked_fill(later, -torch.inf)], -1) * q.shape[-1] ** -0.5
        V = torch.cat([V, v_], 2)
        out.append(logits.softmax(-1) @ V)
        K = torch.cat([K - (K @ (b_ * w_).mT) @ T.mT @ w_, k_ - turned.mT @ w_], 2)
    return torch.cat(out, 2), K, V
