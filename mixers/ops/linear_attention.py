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

from mixers.ops import chunks, engines
from mixers.ops.chunks import Recurrence, carry, carry_grad, shared, walk
from mixers.ops.decay import ChannelDecay, NoDecay, decay_of
from mixers.ops.precision import exact, wide, widened


def linear_attention_definition(q, k, v, g=None, state=None, *, u=None, gv=None):
    """The loop. Shapes as in `linear_attention`."""
    q, k = (shared(x, v.shape[1]) for x in (q, k))
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
    Its gradient cannot be differentiated again.
    """
    fused = engines.fused("linear_attention", q, k, v, g, state, u, gv)
    if fused is not None:
        return fused(q, k, v, g, state, u=u, gv=gv)
    if v.shape[2] == 1:
        return widened(step, v.dtype, q, k, v, g, state, u, gv)
    per_channel = gv is not None or (g is not None and g.shape[3] > 1)
    size = chunks.CHANNEL_CHUNK if per_channel else chunks.CHUNK
    o, S = walk(Inclusive if u is None else Exclusive, state, size, q, k, g, gv, v)
    if u is not None:
        few, dtype = q.shape[1], wide(v.dtype)
        bonus = (
            q.to(dtype).unsqueeze(2) * u.to(dtype).unflatten(0, (few, -1)).unsqueeze(2) * k.to(dtype).unsqueeze(2)
        ).sum(-1)
        o = o + (bonus.flatten(1, 2).unsqueeze(-1) * v).to(o.dtype)
    return o, S


def step(q, k, v, g, S, u, gv):
    """A single token: what is left of the chunks, o = q S in rows, in as few operations as there are."""
    q, k = (shared(x, v.shape[1]) for x in (q, k))
    S = k.new_zeros(*k.shape[:2], k.shape[3], v.shape[3]) if S is None else S
    kept = S if g is None else g.exp().mT * S
    kept = kept if gv is None else kept * gv.exp()
    last = torch.addcmul(kept, k.mT, v)
    return q @ (last if u is None else torch.addcmul(S, u.unsqueeze(-1) * k.mT, v)), last


class Inclusive(Recurrence):
    """The read comes after the write."""

    before = False

    @classmethod
    def forward(cls, S, q, k, g, gv, v):
        decay, values = decay_of(g), NoDecay() if gv is None else ChannelDecay(gv)
        A = decay.scores(q, decay.age(k), cls.before)
        starts, S = carry(decay.leave(k).mT @ values.leave(v), S, decay.keep, side(values.keep))
        return values.mix(A, values.age(v)) + values.read(decay.read(q, cls.before) @ starts), S

    @classmethod
    def backward(cls, S, do, dS, q, k, g, gv, v):
        decay, values = decay_of(g), NoDecay() if gv is None else ChannelDecay(gv)
        ks, vs, before = decay.age(k), values.age(v), cls.before
        A, k_left, v_left, q_read = decay.scores(q, ks, before), decay.leave(k), values.leave(v), decay.read(q, before)
        starts, _ = carry(k_left.mT @ v_left, S, decay.keep, side(values.keep))
        o_read = values.read(q_read @ starts)
        do_read = values.read_grad(do, o_read)
        ends, dS = carry_grad(q_read.mT @ do_read, dS, decay.keep, side(values.keep))

        dA, dvs = values.mix_grad(do, A, vs)
        dq, dks = decay.scores_grad(dA, q, ks, before)
        dq = dq + decay.read_grad(do_read @ starts.mT, q_read, before)
        dk = decay.age_grad(dks, ks) + decay.leave_grad(v_left @ ends.mT, k_left)
        dv = values.age_grad(dvs, vs) + values.leave_grad(k_left @ ends, v_left)
        decay.keep_grad(starts if values.keep is None else starts * values.keep.mT, ends)
        values.keep_grad((starts if decay.keep is None else starts * decay.keep).mT, ends.mT)
        return dS, dq, dk, decay.gradient(), values.gradient(), dv


class Exclusive(Inclusive):
    """The read comes before the decay and the write of its step."""

    before = True


def side(keep: Tensor | None) -> Tensor | None:
    """Of the values' decay, on the state's second dimension."""
    return None if keep is None else keep.mT
