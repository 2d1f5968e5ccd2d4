"""Softmax attention over carried keys and values.

    o_i = sum_j softmax_j(q_i . k_j / sqrt(D) + bias_j) v_j,  over the keys j that i may see

Vaswani et al., 2017 (https://arxiv.org/abs/1706.03762, eq. 1); windows: Beltagy et al., 2020 (https://arxiv.org/abs/2004.05150);
sinks: Xiao et al., 2023 (https://arxiv.org/abs/2309.17453), as one more logit in the denominator.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mixers.ops.chunks import shared

BLOCK = 512  # queries at a time where a matrix of what they see is needed


def attention_definition(q, k, v, state=None, mask=None, causal=True, window=None, bias=None, sink=None, prefix=0):
    """The whole matrix. Shapes as in `attention`."""
    k, v = join(state, k, v)
    groups = q.shape[1] // k.shape[1]
    scores = q @ k.repeat_interleave(groups, 1).mT * q.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias.unsqueeze(-2)
    T, S = q.shape[2], k.shape[2]
    seen = visible(range(S - T, S), range(S), causal, window, prefix, q.device)
    if mask is not None:
        seen = seen & mask[:, None, None]
    scores = scores.masked_fill(~seen, -torch.inf)
    if sink is not None:
        scores = torch.cat([scores, sink[:, None, None].expand(*scores.shape[:3], 1)], -1)
    weights = scores.softmax(-1).nan_to_num(0)[..., : k.shape[2]]  # a row that sees nothing reads nothing
    return weights @ v.repeat_interleave(groups, 1), remember(k, v, window, prefix)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: tuple[Tensor, Tensor] | None = None,
    mask: Tensor | None = None,
    causal: bool = True,
    window: int | None = None,
    bias: Tensor | None = None,
    sink: Tensor | None = None,
    prefix: int = 0,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """q (B, H, T, D), scaled here; k, v (B, H', T', D), H a multiple of H'; state: k and v of the past, put in front,
    S keys in all. The queries are the last T positions. mask (B, S) bool, True on real keys, if not causal. window: a
    query sees that many keys, its own included (|i - j| < window if not causal). bias (B, H, S): one number per key,
    added to its logits. sink (H,): a logit in the denominator only. The first `prefix` keys are seen by all. Returns
    o (B, H, T, D) and the k and v that later queries need. Full attention takes T S time; memory is linear.
    """
    if mask is not None and causal:
        raise ValueError("attention takes a mask only with causal=False: a causal query never sees what comes after it")
    k, v = join(state, k, v)
    T, S = q.shape[2], k.shape[2]
    after = remember(k, v, window, prefix)
    grouped = k.shape[1] != q.shape[1]
    plain = mask is None and sink is None and not prefix and (window is None or window >= S)
    added = bias is not None and q.is_meta  # counted as what it is, not as one more dimension
    if plain and not added and (not causal or T == S or T == 1):
        causal = causal and T > 1
        if bias is None:
            o = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped)
        else:
            o = _biased(q, shared(k, q.shape[1]), shared(v, q.shape[1]), bias, causal)
        return o, after
    out = []
    for start in range(0, T, BLOCK):
        stop = min(start + BLOCK, T)
        first, last = 0, S
        if causal:
            last = min(S, max(S - T + stop, prefix))
        if window is not None and not prefix:
            first = max(0, S - T + start - window + 1)
            last = last if causal else min(S, S - T + stop + window - 1)
        seen = visible(range(S - T + start, S - T + stop), range(first, last), causal, window, prefix, q.device)
        if mask is not None:
            seen = seen & mask[:, None, None, first:last]
        part_bias = None if bias is None else bias[:, :, first:last]
        pairs = n_visible(start, stop, T, S, causal, window, prefix) if q.is_meta else 0
        out.append(
            _block(q[:, :, start:stop], k[:, :, first:last], v[:, :, first:last], seen, part_bias, sink, grouped, pairs)
        )
    return torch.cat(out, 2) if out else torch.zeros_like(q[..., : v.shape[-1]]), after


def _biased(q, k, v, bias, causal):
    """The number per key as one more dimension, in which every query is 1: it takes no matrix of scores."""
    scale = q.shape[-1] ** -0.5
    bias = (bias.to(torch.promote_types(bias.dtype, k.dtype)) / scale).to(k.dtype)
    q, k = F.pad(q, (0, 1), value=1.0), torch.cat([k, bias.unsqueeze(-1)], -1)
    values = F.pad(v, (0, max(0, q.shape[-1] - v.shape[-1])))  # as wide as the keys, which the fast kernels ask for
    return F.scaled_dot_product_attention(q, k, values, is_causal=causal, scale=scale)[..., : v.shape[-1]]


def _block(q, k, v, seen, bias, sink, grouped, pairs):
    """A few queries against the keys that any of them sees. A row that sees nothing reads nothing.

    pairs: how many see each other, for whoever counts work on the meta device, where a mask has no values.
    """
    added = torch.zeros(seen.shape, dtype=q.dtype, device=q.device).masked_fill(~seen, -torch.inf)
    if bias is not None:
        added = added + bias.unsqueeze(-2).to(q.dtype)
    if sink is not None:  # a key of zeros with a value of zeros has just the sink as its logit
        k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
        shape = (q.shape[0], q.shape[1], q.shape[2])
        column = sink.to(q.dtype)[:, None].expand(shape).unsqueeze(-1)
        added = torch.cat([added.expand(*shape, added.shape[-1]), column], -1)
        blind, pairs = None, pairs + q.shape[2]
    else:
        blind = ~seen.any(-1, keepdim=True)
        added = added.masked_fill(blind, 0)
    if q.is_meta:
        setattr(added, "pairs", pairs)  # noqa: B010 - a tensor takes any attribute, which types do not know
    o = F.scaled_dot_product_attention(q, k, v, attn_mask=added, enable_gqa=grouped)
    return o if blind is None else o.masked_fill(blind, 0)


def join(state, k, v):
    """The keys and values of the past in front of these."""
    return (k, v) if state is None else (torch.cat([state[0], k], 2), torch.cat([state[1], v], 2))


def remember(k, v, window, prefix):
    """What later queries may see: all of it, or the prefix and the last window - 1."""
    if window is None or k.shape[2] <= prefix + window - 1:
        return k, v
    start = k.shape[2] - (window - 1)
    return tuple(torch.cat([x[:, :, :prefix], x[:, :, start:]], 2) if prefix else x[:, :, start:] for x in (k, v))


def visible(queries: range, keys: range, causal, window, prefix, device):
    """(queries, keys) bool: which keys the queries at such positions may see."""
    i, j = (torch.arange(x.start, x.stop, device=device) for x in (queries, keys))
    i = i.unsqueeze(1)
    seen = j <= i if causal else torch.ones(len(queries), len(keys), dtype=torch.bool, device=device)
    if window is not None:
        seen = seen & (i - j < window) & (j - i < window)
    return seen | (j < prefix)


def n_visible(start, stop, T, S, causal, window, prefix) -> int:
    """How many are True in `visible`."""
    n, prefix = 0, min(prefix, S)
    for i in range(S - T + start, S - T + stop):
        low = 0 if window is None else max(0, i - window + 1)
        high = min(S, i + 1 if causal else S if window is None else i + window)
        n += prefix if prefix >= high else high - low + min(prefix, low)
    return n
