"""The gated delta rule: forget, recall what a key holds, and write the difference.

    S_t = (I - k_t p_t^T) diag(e^{g_t}) S_{t-1} + k_t z_t^T,    o_t = S_t^T q_t

Schlag et al., 2021 (https://arxiv.org/abs/2102.11174, eq. 23-24); Yang et al., 2024
(https://arxiv.org/abs/2406.06484, section 3) for the chunks, in which the values that are really written, U, solve a
triangular system; Yang et al., 2024 (https://arxiv.org/abs/2412.06464, eq. 10) with decay.
"""

import torch
from torch import Tensor

from mixers.ops import chunks, engines
from mixers.ops.chunks import Recurrence, kept, shared, walk
from mixers.ops.decay import add, decay_of
from mixers.ops.precision import exact, widened


def gated_delta_definition(q, k, p, z, g=None, state=None):
    """The loop. Shapes as in `gated_delta`."""
    q, k, p = (shared(x, z.shape[1]) for x in (q, k, p))
    S = k.new_zeros(*k.shape[:2], k.shape[3], z.shape[3]) if state is None else state
    out = []
    for t in range(z.shape[2]):
        if g is not None:
            S = g[:, :, t, :, None].exp() * S
        recalled = (p[:, :, t, :, None] * S).sum(-2)
        S = S + k[:, :, t, :, None] * (z[:, :, t] - recalled)[:, :, None]
        out.append((q[:, :, t, :, None] * S).sum(-2))
    return torch.stack(out, 2), S


@exact
def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor | None = None, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """S_t = (I - beta_t k_t k_t^T) diag(e^{g_t}) S_{t-1} + beta_t k_t v_t^T; beta (B, H, T, 1). See `gated_delta`.

    Keys are normalised by the caller: with |k| = 1 and 0 <= beta <= 2 no step can make the state grow.
    """
    fused = engines.fused("delta_rule", q, k, v, beta, g, state, special=True)
    if fused is not None:
        return fused(q, k, v, beta, g, state)
    return gated_delta(q, k, beta * k, beta * v, g, state)


@exact
def gated_delta(
    q: Tensor, k: Tensor, p: Tensor, z: Tensor, g: Tensor | None = None, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """q, k, p (B, H', T, K); z (B, H, T, V), H a multiple of H'; g None, (B, H, T, 1) or (B, H, T, K): log-decay
    <= 0, -inf forgets everything; state (B, H, K, V). Returns o (B, H, T, V) in z's dtype and the state after the
    last step, in float32 at least. q is scaled by the caller. Time and memory are linear in T. Its gradient cannot be
    differentiated again.
    """
    fused = engines.fused("gated_delta", q, k, p, z, g, state)
    if fused is not None:
        return fused(q, k, p, z, g, state)
    if z.shape[2] == 1:
        return widened(step, z.dtype, q, k, p, z, g, state)
    size = chunks.CHUNK if g is None or g.shape[3] == 1 else chunks.CHANNEL_CHUNK
    return walk(GatedDelta, state, size, q, k, p, g, z)


def step(q, k, p, z, g, S):
    """A single token: what is left of the chunks, in as few operations as there are."""
    q, k, p = (shared(x, z.shape[1]) for x in (q, k, p))
    S = k.new_zeros(*k.shape[:2], k.shape[3], z.shape[3]) if S is None else S
    S = S if g is None else g.exp().mT * S
    S = torch.addcmul(S, k.mT, z - p @ S)
    return q @ S, S


class GatedDelta(Recurrence):
    """With L = strict scores of p and k, the values that are really written solve (I + L) U = Z - read(P) S.

    I + L is inverted by substitution: powers of L, as in a Neumann series, overflow for keys that resemble each other.
    """

    @staticmethod
    def forward(S, q, k, p, g, z):
        decay = decay_of(g)
        ks = decay.age(k)
        inverse = invert(decay.scores(p, ks, strict=True))
        starts, U, S = solve(S, inverse, decay.read(p), decay.leave(k), z, decay.keep)
        return decay.read(q) @ starts + decay.scores(q, ks) @ U, S

    @staticmethod
    def backward(S, do, dS, q, k, p, g, z):
        decay = decay_of(g)
        ks = decay.age(k)
        inverse, A = invert(decay.scores(p, ks, strict=True)), decay.scores(q, ks)
        q_read, p_read, k_left = decay.read(q), decay.read(p), decay.leave(k)
        starts, U, _ = solve(S, inverse, p_read, k_left, z, decay.keep)

        dU, inherited, ends, dzs = A.mT @ do, q_read.mT @ do, [], []
        for n in range(do.shape[-3] - 1, -1, -1):
            ends.append(dS)
            dz = inverse[..., n, :, :].mT @ (dU[..., n, :, :] + k_left[..., n, :, :] @ dS)
            dS = kept(dS, n, (decay.keep,)) + inherited[..., n, :, :] - p_read[..., n, :, :].mT @ dz
            dzs.append(dz)
        ends, dz = torch.stack(ends[::-1], -3), torch.stack(dzs[::-1], -3)

        dq, dks = decay.scores_grad(do @ U.mT, q, ks)
        dp, more = decay.scores_grad(-(dz @ U.mT), p, ks, strict=True)
        dk = decay.age_grad(add(dks, more), ks) + decay.leave_grad(U @ ends.mT, k_left)
        dq = dq + decay.read_grad(do @ starts.mT, q_read)
        dp = dp + decay.read_grad(-(dz @ starts.mT), p_read)
        decay.keep_grad(starts, ends)
        return dS, dq, dk, dp, decay.gradient(), dz


def invert(L: Tensor) -> Tensor:
    """(I + L)^{-1} of strictly lower triangular L (..., C, C)."""
    eye = torch.eye(L.shape[-1], dtype=L.dtype, device=L.device)
    return torch.linalg.solve_triangular(L, eye.expand_as(L), upper=False, unitriangular=True)


def solve(S: Tensor, inverse: Tensor, p_read: Tensor, k_left: Tensor, z: Tensor, keep: Tensor | None):
    """Chunk by chunk: the states that they begin with, what they write, and the last state."""
    starts, written = [], []
    for n in range(z.shape[-3]):
        starts.append(S)
        written.append(inverse[..., n, :, :] @ (z[..., n, :, :] - p_read[..., n, :, :] @ S))
        S = kept(S, n, (keep,)) + k_left[..., n, :, :].mT @ written[-1]
    return torch.stack(starts, -3), torch.stack(written, -3), S
