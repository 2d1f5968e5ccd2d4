"""Diagonal plus low rank: what is read before the decay steers what is written after it, as in RWKV-7.

    S_t = diag(e^{g_t}) S_{t-1} + a_t (b_t^T S_{t-1}) + k_t v_t^T,    o_t = S_t^T q_t

Peng et al., 2025 (https://arxiv.org/abs/2503.14456, eq. 17). An erase before the decay, (diag(e^g) - k p^T) S + k z^T,
is dplr with a = -k, b = p.
"""

import torch
from torch import Tensor

from mixers.ops import chunks, engines
from mixers.ops.chunks import Recurrence, kept, shared, walk
from mixers.ops.decay import add, decay_of
from mixers.ops.gated_delta import invert
from mixers.ops.precision import exact, widened


def dplr_definition(q, k, v, a, b, g=None, state=None):
    """The loop. Shapes as in `dplr`."""
    q, k, a, b = (shared(x, v.shape[1]) for x in (q, k, a, b))
    S = k.new_zeros(*k.shape[:2], k.shape[3], v.shape[3]) if state is None else state
    out = []
    for t in range(v.shape[2]):
        steered = (b[:, :, t, :, None] * S).sum(-2)
        if g is not None:
            S = g[:, :, t, :, None].exp() * S
        S = S + a[:, :, t, :, None] * steered[:, :, None] + k[:, :, t, :, None] * v[:, :, t, None]
        out.append((q[:, :, t, :, None] * S).sum(-2))
    return torch.stack(out, 2), S


@exact
def dplr(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    g: Tensor | None = None,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """q, k, a, b (B, H', T, K); v (B, H, T, V), H a multiple of H'; g None, (B, H, T, 1) or (B, H, T, K): log-decay
    <= 0, -inf forgets everything; state (B, H, K, V). Returns o (B, H, T, V) in v's dtype and the state after the
    last step, in float32 at least. Nothing keeps the state from growing but the caller's a and b. Time and memory are
    linear in T. Its gradient cannot be differentiated again.
    """
    fused = engines.fused("dplr", q, k, v, a, b, g, state)
    if fused is not None:
        return fused(q, k, v, a, b, g, state)
    if v.shape[2] == 1:
        return widened(dplr_definition, v.dtype, q, k, v, a, b, g, state)
    size = chunks.CHUNK if g is None or g.shape[3] == 1 else chunks.CHANNEL_CHUNK
    return walk(DPLR, state, size, q, k, a, b, g, v)


class DPLR(Recurrence):
    """With scores N taken before the step, what a writes, Y, solves (I - N_ba) Y = read(B) S + N_bk V."""

    @staticmethod
    def forward(S, q, k, a, b, g, v):
        decay = decay_of(g)
        ks, aged = decay.age(k), decay.age(a)
        inverse, N_bk = invert(-decay.scores(b, aged, before=True)), decay.scores(b, ks, before=True)
        starts, Y, S = solve(
            S, inverse, decay.read(b, before=True), N_bk @ v, decay.leave(a), decay.leave(k).mT @ v, decay.keep
        )
        return decay.read(q) @ starts + decay.scores(q, aged) @ Y + decay.scores(q, ks) @ v, S

    @staticmethod
    def backward(S, do, dS, q, k, a, b, g, v):
        decay = decay_of(g)
        ks, aged = decay.age(k), decay.age(a)
        inverse, N_bk = invert(-decay.scores(b, aged, before=True)), decay.scores(b, ks, before=True)
        q_read, b_read, a_left, k_left = decay.read(q), decay.read(b, before=True), decay.leave(a), decay.leave(k)
        starts, Y, _ = solve(S, inverse, b_read, N_bk @ v, a_left, k_left.mT @ v, decay.keep)

        dY, inherited, ends, dRs = decay.scores(q, aged).mT @ do, q_read.mT @ do, [], []
        for n in range(do.shape[-3] - 1, -1, -1):
            ends.append(dS)
            dR = inverse[..., n, :, :].mT @ (dY[..., n, :, :] + a_left[..., n, :, :] @ dS)
            dS = kept(dS, n, (decay.keep,)) + inherited[..., n, :, :] + b_read[..., n, :, :].mT @ dR
            dRs.append(dR)
        ends, dR = torch.stack(ends[::-1], -3), torch.stack(dRs[::-1], -3)

        dv = decay.scores(q, ks).mT @ do + k_left @ ends + N_bk.mT @ dR
        dq_a, daged = decay.scores_grad(do @ Y.mT, q, aged)
        dq_k, dks = decay.scores_grad(do @ v.mT, q, ks)
        db_a, daged_b = decay.scores_grad(dR @ Y.mT, b, aged, before=True)
        db_k, dks_b = decay.scores_grad(dR @ v.mT, b, ks, before=True)
        da = decay.age_grad(add(daged, daged_b), aged) + decay.leave_grad(Y @ ends.mT, a_left)
        dk = decay.age_grad(add(dks, dks_b), ks) + decay.leave_grad(v @ ends.mT, k_left)
        dq = dq_a + dq_k + decay.read_grad(do @ starts.mT, q_read)
        db = db_a + db_k + decay.read_grad(dR @ starts.mT, b_read, before=True)
        decay.keep_grad(starts, ends)
        return dS, dq, dk, da, db, decay.gradient(), dv


def solve(S, inverse, b_read, recalled, a_left, write, keep):
    """Chunk by chunk: the states that they begin with, what a writes, and the last state."""
    starts, written = [], []
    for n in range(write.shape[-3]):
        starts.append(S)
        written.append(inverse[..., n, :, :] @ (recalled[..., n, :, :] + b_read[..., n, :, :] @ S))
        S = kept(S, n, (keep,)) + a_left[..., n, :, :].mT @ written[-1] + write[..., n, :, :]
    return torch.stack(starts, -3), torch.stack(written, -3), S
