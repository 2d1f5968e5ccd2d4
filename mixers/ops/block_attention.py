"""Softmax attention in which each query chooses blocks of keys.

    o_i = sum_j softmax_j(q_i . k_j / sqrt(D)) v_j,   over j <= i in the blocks that i chose

Lu et al., 2025 (MoBA, https://arxiv.org/abs/2502.13189, eqs. 2-4); Yuan et al., 2025 (NSA,
https://arxiv.org/abs/2502.11089, section 3.3.2).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 256  # queries at a time, so that no (T, S) matrix is there


def block_attention_definition(q, k, v, chosen, block):
    """Query by query. Shapes as in `block_attention`."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    T, S = q.shape[2], k.shape[2]
    rows = []
    for t in range(T):
        i = S - T + t
        logits = (k[:, :, : i + 1] @ q[:, :, t, :, None]).squeeze(-1) * q.shape[-1] ** -0.5
        seen = chosen[:, :, t].repeat_interleave(block, -1)[..., : i + 1]
        rows.append((logits.masked_fill(~seen, -torch.inf).softmax(-1).unsqueeze(-1) * v[:, :, : i + 1]).sum(-2))
    return torch.stack(rows, 2)


def block_attention(q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, block: int) -> Tensor:
    """q (B, H, T, D), scaled here, the last T of S positions; k, v (B, H', S, D), H a multiple of H'; chosen (B, H, T,
    n) bool, n = S / block rounded up: which blocks each query reads, its own among them. Returns o (B, H, T, D).
    """
    T, S = q.shape[2], k.shape[2]
    out = []
    for start in range(0, T, ROWS):
        stop = min(start + ROWS, T)
        last = S - T + stop
        seen = chosen[:, :, start:stop].repeat_interleave(block, -1)[..., :last]
        i = torch.arange(last - (stop - start), last, device=q.device).unsqueeze(1)
        seen = seen & (torch.arange(last, device=q.device) <= i)
        out.append(
            F.scaled_dot_product_attention(
                q[:, :, start:stop], k[:, :, :last], v[:, :, :last], seen, enable_gqa=k.shape[1] != q.shape[1]
            )
        )
    return torch.cat(out, 2)


def block_means(x: Tensor, block: int) -> Tensor:
    """(B, H, S, D) -> (B, H, S // block, D): the means of complete blocks."""
    n = x.shape[2] // block
    return x[:, :, : n * block].unflatten(2, (n, block)).mean(3)


def best(scores: Tensor, top: int, position: Tensor, block: int, forced: Tensor | None = None) -> Tensor:
    """scores (B, H, T, n): bool, the `top` best among the blocks that end before each query's own, those that are
    `forced` first, and its own always. position (T,) int64, the queries' places.
    """
    n = scores.shape[-1]
    own, index = position.unsqueeze(1) // block, torch.arange(n, device=scores.device)
    scores = scores.masked_fill(index >= own, -torch.inf)
    if forced is not None:
        scores = scores.masked_fill(forced & (index < own), torch.inf)
    values, places = scores.topk(min(top - 1, n), -1)
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, places, values > -torch.inf)
    return chosen | (index == own)
