"""Reformer's attention by hashing (Kitaev et al., 2020, https://arxiv.org/abs/2001.04451, section 2).

o_i = sum_j softmax_j(q_i . k_j / sqrt(D)) v_j over the union of P_i over all rounds,   k_j = q_j / |q_j|
P_i = {j: h(q_j) = h(q_i), j in the chunk of i or in the one before},   h(x) = argmax [x R ; -x R]

In each round tokens are sorted by bucket, then by position, and cut into chunks. A token attends to itself only if
there is no other. What several rounds find counts once: their logits are less by log N_ij, and their results are
merged by the sums of their weights (appendix A). q is rotated by its position, in place of the paper's position
embeddings. R is random and not learned. Where a chunk begins depends on later tokens, so this is no causal mixer;
the paper's causal one lets the future decide what is seen.
"""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import heads, merge, per_head, positions, rope
from mixers.ops.precision import exact, wide

ALONE = -1e5  # a token's logit for itself


class Reformer(Mixer):
    """Softmax attention among the tokens whose queries fall into the same bucket."""

    causal = False

    def __init__(self, d_model: int, *, n_heads: int, n_rounds: int, n_buckets: int, chunk: int):
        super().__init__()
        width = per_head(d_model, n_heads)
        if n_buckets % 2:
            raise ValueError(f"n_buckets={n_buckets} is odd, and buckets come in pairs: choose an even number")
        self.n_heads, self.chunk = n_heads, chunk
        self.q = nn.Linear(d_model, d_model, bias=False)
        self.v = nn.Linear(d_model, d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.R: Tensor
        self.register_buffer("R", torch.randn(n_heads, n_rounds, width, n_buckets // 2))

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        q = rope(heads(project(x, self.q.weight), self.n_heads), positions(x, None)[0])
        o = hashed(q, heads(self.v(x), self.n_heads), self.R, self.chunk, mask)
        return self.out(merge(o).to(x.dtype)), None

    def resample(self, generator: Generator) -> None:
        self.R.copy_(torch.randn(self.R.shape, generator=generator))


@exact
def project(x: Tensor, weight: Tensor) -> Tensor:
    """In float32 at least: a rounded query falls into another bucket."""
    return F.linear(x.to(wide(x.dtype)), weight.to(wide(x.dtype)))


@exact
def hashed(q: Tensor, v: Tensor, R: Tensor, chunk: int, mask: Tensor | None) -> Tensor:
    """q, v (B, H, T, D); R (H, rounds, D, buckets / 2); mask (B, T), True on real tokens -> o (B, H, T, D)."""
    T, v = q.shape[2], v.to(q.dtype)
    projected = torch.einsum("bhtd,hrdn->bhrtn", q, R.to(q.dtype))
    bucket = torch.cat([projected, -projected], -1).argmax(-1)
    if mask is not None:  # padding has a bucket of its own, the last
        bucket = bucket.masked_fill(~mask[:, None, None], 2 * R.shape[-1])
    order = torch.argsort(bucket, dim=-1, stable=True)
    place = order.argsort(-1)

    n = -(-T // chunk)
    own = F.pad(order, (0, n * chunk - T)).unflatten(-1, (n, chunk))  # (B, H, rounds, n, chunk)
    real = (torch.arange(n * chunk, device=q.device) < T).unflatten(0, (n, chunk))
    seen = torch.cat([F.pad(own[..., :-1, :], (0, 0, 1, 0)), own], -1)
    there = torch.cat([F.pad(real[:-1], (0, 0, 1, 0)), real], -1)

    labels = torch.stack([bucket, place // chunk], -1).transpose(2, 3)  # (B, H, T, rounds, 2)
    own_bucket, own_chunk = take(labels.flatten(3), own).unflatten(-1, (-1, 2)).unsqueeze(-3).unbind(-1)
    seen_bucket, seen_chunk = take(labels.flatten(3), seen).unflatten(-1, (-1, 2)).unsqueeze(-4).unbind(-1)
    near = (own_chunk == seen_chunk) | (own_chunk == seen_chunk + 1)
    found = (own_bucket == seen_bucket) & near  # (B, H, rounds, n, chunk, 2 chunk, rounds)
    this = torch.eye(R.shape[1], dtype=torch.bool, device=q.device)[:, None, None, None]
    allowed = (found & this).any(-1) & there[:, None]

    k = q / q.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    logits = take(q, own) @ take(k, seen).mT * q.shape[-1] ** -0.5
    often = found.sum(-1).clamp(min=1).to(q.dtype)
    logits = logits.masked_fill(own.unsqueeze(-1) == seen.unsqueeze(-2), ALONE) - often.log()
    # rows that fill up the last chunk see everything, and are dropped
    logits = logits.masked_fill(~(allowed | ~real.unsqueeze(-1)), -torch.inf)
    weight, o = logits.logsumexp(-1).flatten(3), (logits.softmax(-1) @ take(v, seen)).flatten(3, 4)
    o = o.gather(3, place.unsqueeze(-1).expand(*place.shape, o.shape[-1]))
    return (weight.gather(3, place).softmax(2).unsqueeze(-1) * o).sum(2)


def take(x: Tensor, index: Tensor) -> Tensor:
    """x (B, H, T, D) at index (B, H, ...): (B, H, ..., D)."""
    flat = index.flatten(2).unsqueeze(-1).expand(-1, -1, -1, x.shape[-1])
    return x.gather(2, flat).unflatten(2, index.shape[2:])
