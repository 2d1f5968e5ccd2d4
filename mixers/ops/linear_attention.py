"""Linear attention with decay: the one recurrence behind most linear mixers.

    S_t = diag(e^{g_t}) S_{t-1} + k_t v_t^T,    o_t = S_t^T q_t

With a bonus u (RWKV-6) the read comes before the write, o_t = (S_{t-1} + diag(u) k_t v_t^T)^T q_t; gv decays the
value side instead, S_t = S_{t-1} diag(e^{gv_t}) + k_t v_t^T.

Katharopoulos et al., 2020 (https://arxiv.org/abs/2006.16236, eqs. 16-20) without decay; Dao and Gu, 2024
(https://arxiv.org/abs/2405.21060, section 6) for chunks with a scalar decay; Yang et al., 2023 (https://arxiv.org/abs/2312.06635,
section 4) per channel.
"""

import torch
from torch import Tensor

from mixers.ops.decay import between, chunks, exact, since_start, until_end, wide

CHUNK = 64  # without decay, or with one number per head
CHANNEL_CHUNK = 16  # with one per channel: the exact products take 16 numbers per token and channel


def linear_attention_definition(q, k, v, g=None, state=None, *, u=None, gv=None):
    """The loop. Shapes as in `linear_attention`."""
    q, k = (x.repeat_interleave(v.shape[1] // x.shape[1], 1) for x in (q, k))
    S = k.new_zeros(*k.shape[:2], k.shape[3], v.shape[3]) if state is None else state
    out = []
    for t in range(v.shape[2]):
        before = S
        if g is not None:
            S = g[:, :, t, :, None].exp() * S
        if gv is not None:
            S = gv[:, :, t, None].exp() * S
        write = k[:, :, t, :, None] * v[:, :, t, None]
        S = S + write
        read = S if u is None else before + u[:, :, None] * write
        out.append((q[:, :, t, :, None] * read).sum(-2))
    return torch.stack(out, 2), S


@exact
def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    state: Tensor | None = None,
    *,
    u: Tensor | None = None,
    gv: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """q, k (B, H', T, K); v (B, H, T, V), H a multiple of H'; g None, (B, H, T, 1) or (B, H, T, K): log-decay <= 0,
    -inf forgets everything; state (B, H, K, V); u (H, K); gv (B, H, T, V). Returns o (B, H, T, V) in v's dtype and
    the state after the last step, in float32 at least. q is scaled by the caller. Time and memory are linear in T.
    """
    if v.shape[1] % k.shape[1]:
        raise ValueError(f"v has {v.shape[1]} heads and k {k.shape[1]}: the former must be a multiple of the latter")
    given, dtype, T, heads = v.dtype, wide(v.dtype), v.shape[2], (k.shape[1], v.shape[1] // k.shape[1])
    per_channel = gv is not None or (g is not None and g.shape[3] > 1)
    size = max(1, min(CHANNEL_CHUNK if per_channel else CHUNK, T))
    # (B, H', H / H', n, C, .): grouped heads broadcast
    q, k = (chunks(x.to(dtype), size).unsqueeze(2) for x in (q, k))
    v = chunks(v.to(dtype), size).unflatten(1, heads)
    g, gv = (None if x is None else chunks(x.to(dtype), size).unflatten(1, heads) for x in (g, gv))

    attend, from_start, to_end, keep = weights(q, k, g, exclusive=u is not None)
    value_decay = None if gv is None else between(gv)
    if value_decay is None:
        o = attend @ v
        writes = to_end.mT @ v
    else:
        o = (attend.unsqueeze(-1) * value_decay * v.unsqueeze(-3)).sum(-2)
        writes = to_end.mT @ (v * until_end(gv).exp())
    if u is not None:
        bonus = (q * u.to(dtype).unflatten(0, heads)[None, :, :, None, None] * k).sum(-1, keepdim=True)
        o = o + bonus * v

    S = torch.zeros_like(writes[:, :, :, 0]) if state is None else state.to(dtype).unflatten(1, heads)
    value_keep = None if gv is None else gv.sum(-2).exp().unsqueeze(-2)
    starts = []
    for n, write in enumerate(writes.unbind(3)):
        starts.append(S)
        S = S if keep is None else keep[:, :, :, n] * S
        S = (S if value_keep is None else value_keep[:, :, :, n] * S) + write
    if starts:
        inherited = from_start @ torch.stack(starts, 3)
        o = o + (inherited if gv is None else inherited * since_start(gv).exp())
    return o.flatten(3, 4)[:, :, :, :T].flatten(1, 2).to(given), S.flatten(1, 2)


def weights(q: Tensor, k: Tensor, g: Tensor | None, exclusive: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """What decay makes of q and k (..., n, C, K) inside chunks, q reading before the write if `exclusive`.

    attend (..., C, C), row i on column j: q_i . k_j, decayed from j to i; from_start, to_end (..., C, K): q decayed
    since the chunk's start, k until its end; keep (..., n, 1 or K, 1): what the chunk leaves of the state, None for
    all of it.
    """
    size = q.shape[-2]
    if g is None:
        visible = torch.ones(size, size, dtype=torch.bool, device=q.device).tril(-1 if exclusive else 0)
        return (q @ k.mT).masked_fill(~visible, 0), q, k, None
    decay, start = between(g), since_start(g)
    if exclusive:  # the read at i has seen the decays before i
        decay = torch.cat([torch.zeros_like(decay[..., :1, :, :]), decay[..., :-1, :, :]], -3)
        start = torch.cat([torch.zeros_like(start[..., :1, :]), start[..., :-1, :]], -2)
    if g.shape[-1] == 1:
        attend = (q @ k.mT) * decay.squeeze(-1)
    else:
        attend = (q.unsqueeze(-2) * k.unsqueeze(-3) * decay).sum(-1)
    return attend, q * start.exp(), k * until_end(g).exp(), g.sum(-2).exp().unsqueeze(-1)
