"""Log-linear attention: a state for each of log T stretches of the past, the longer the further back, each read with a
weight of its own.

    o_i = sum_l lambda_il S_i^{(l)T} q_i,    S_i^{(l)} = what the tokens of level l, seen from i, have written

Token j is at level 0 from i = j, and else at 1 + the highest bit in which i and j differ: levels are the stretches of a
Fenwick tree. All levels forget and erase alike: S <- (I - k_t p_t^T) e^{g_t} S.

Guo et al., 2025 (https://arxiv.org/abs/2506.04761, sections 3.1-3.3). What is further back than the last
level counts as it.
"""

import torch
from torch import Tensor

from mixers.ops import chunks
from mixers.ops.gated_delta import invert
from mixers.ops.precision import exact, wide


def level(i: Tensor, j: Tensor, n: int) -> Tensor:
    """At which of n levels j <= i is, seen from i."""
    bits = torch.arange(n - 1, device=i.device)
    return ((i ^ j).unsqueeze(-1) >> bits > 0).sum(-1)


def log_linear_definition(q, k, z, weight, g, p=None, state=None):
    """What each token has written is kept apart, and weighed by its level. Shapes as in `log_linear`."""
    (H, T, V), n = z.shape[1:], weight.shape[3]
    q, k = (x.expand(-1, H, -1, -1) for x in (q, k))
    levels, start = empty(k, V, H, n) if state is None else state
    parts = [(levels[:, :, l], None, torch.tensor(l)) for l in range(n)]  # what they hold, whose it is, or its level
    out = []

    def seen(i, j, l):
        return level(i, j, n) if l is None else torch.maximum(level(i, start, n), l)

    for t in range(T):
        i = start + t
        walked = []
        for S, j, l in parts:
            S = g[:, :, t, :, None].exp() * S
            if p is not None:
                S = S - k[:, :, t, :, None] * (p[:, :, t, :, None] * S).sum(-2, keepdim=True)
            walked.append((S, j, l))
        parts = [*walked, (k[:, :, t, :, None] * z[:, :, t, None], i, None)]
        o = 0
        for S, j, l in parts:
            chosen = weight[:, :, t].gather(-1, seen(i, j, l)[:, None, None].expand(-1, H, 1))
            o = o + chosen * torch.einsum("bhk,bhkv->bhv", q[:, :, t], S)
        out.append(o)
    after = torch.zeros_like(levels)
    for S, j, l in parts:
        after = after + onehot(seen(start + T, j, l), n, S.dtype)[:, None, :, None, None] * S.unsqueeze(2)
    return torch.stack(out, 2), (after, start + T)


@exact
def log_linear(
    q: Tensor,
    k: Tensor,
    z: Tensor,
    weight: Tensor,
    g: Tensor,
    p: Tensor | None = None,
    state: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """q, k, p (B, H, T, K) or with one head for all; z (B, H, T, V); weight (B, H, T, n), n levels; g (B, H, T, 1),
    log-decay <= 0; state: levels (B, H, n, K, V), seen from the next token, and its position (B,) int64. Returns o (B,
    H, T, V) in z's dtype, and the state, in float32 at least. Time grows as T n.
    """
    dtype, kind, n = wide(z.dtype), z.dtype, weight.shape[3]
    levels, start = empty(k.to(dtype), z.shape[3], z.shape[1], n) if state is None else state
    out = []
    cut = [None if x is None else x.to(dtype).split(chunks.CHUNK, 2) for x in (q, k, z, weight, g, p)]
    for i in range(len(cut[0])):
        o, levels, start = _chunk(levels, start, *(None if x is None else x[i] for x in cut))
        out.append(o)
    return torch.cat(out, 2).to(kind), (levels, start)


def _chunk(S, start, q, k, z, weight, g, p):
    C, n = z.shape[2], weight.shape[3]
    index = start.unsqueeze(1) + torch.arange(C, device=z.device)  # (B, C)
    after = start + C
    G = g.cumsum(2)
    D = (G - G.mT).masked_fill(torch.ones(C, C, dtype=torch.bool, device=z.device).triu(1), -torch.inf).exp()
    A, left = (q @ k.mT) * D, k * (G[:, :, -1:] - G).exp()
    read, write = G.exp() * q, left.mT
    moved = G[:, :, -1:, :, None].exp() * S
    if p is not None:
        inverse = invert(((p @ k.mT) * D).tril(-1))
        A, write = A @ inverse, write @ inverse
        recall = G.exp() * p
        read = read - A @ recall
        moved = moved - (write @ recall).unsqueeze(2) @ S
    near = level(index.unsqueeze(2), index.unsqueeze(1), n)  # (B, C, C)
    far = torch.maximum(level(index, start.unsqueeze(1), n).unsqueeze(-1), torch.arange(n, device=z.device))
    o = (A * weight.gather(-1, near.unsqueeze(1).expand(-1, weight.shape[1], -1, -1))) @ z
    of_far = weight.gather(-1, far.unsqueeze(1).expand_as(weight))
    o = o + torch.einsum("bhcn,bhck,bhnkv->bhcv", of_far, read, S)
    # levels as the next token will see them
    joined = torch.maximum(level(after, start, n).unsqueeze(-1), torch.arange(n, device=z.device))
    moved = torch.einsum("bnm,bhnkv->bhmkv", onehot(joined, n, z.dtype), moved)
    fresh = onehot(level(after.unsqueeze(1), index, n), n, z.dtype)  # (B, C, n)
    return o, moved + torch.einsum("bhkc,bcn,bhcv->bhnkv", write, fresh, z), after


def empty(k: Tensor, V: int, H: int, n: int) -> tuple[Tensor, Tensor]:
    zeros = torch.zeros(k.shape[0], dtype=torch.int64, device=k.device)
    return k.new_zeros(k.shape[0], H, n, k.shape[3], V), zeros


def onehot(l: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    return (l.unsqueeze(-1) == torch.arange(n, device=l.device)).to(dtype)
