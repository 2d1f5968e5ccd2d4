"""The gated delta rule: forget, recall what a key holds, and write the difference.

    S_t = (I - k_t p_t^T) diag(e^{g_t}) S_{t-1} + k_t z_t^T,    o_t = S_t^T q_t

Schlag et al., 2021 (https://arxiv.org/abs/2102.11174, eq. 23-24); Yang et al., 2024
(https://arxiv.org/abs/2406.06484, section 3) for the chunks, in which the values that are really written, U, solve a
triangular system; Yang et al., 2024 (https://arxiv.org/abs/2412.06464, eq. 10) with decay.
"""

import torch
from torch import Tensor

from mixers.ops.decay import between, chunks, exact, since_start, until_end, wide

CHUNK = 64
CHANNEL_CHUNK = 16  # see linear_attention.py


def gated_delta_definition(q, k, p, z, g=None, state=None):
    """The loop. Shapes as in `gated_delta`."""
    q, k, p = (x.repeat_interleave(z.shape[1] // x.shape[1], 1) for x in (q, k, p))
    S = k.new_zeros(*k.shape[:2], k.shape[3], z.shape[3]) if state is None else state
    out = []
    for t in range(z.shape[2]):
        if g is not None:
            S = g[:, :, t, :, None].exp() * S
        recalled = (p[:, :, t, :, None] * S).sum(-2)
        S = S + k[:, :, t, :, None] * (z[:, :, t] - recalled)[:, :, None]
        out.append((q[:, :, t, :, None] * S).sum(-2))
    return torch.stack(out, 2), S


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor | None = None, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """S_t = (I - beta_t k_t k_t^T) diag(e^{g_t}) S_{t-1} + beta_t k_t v_t^T; beta (B, H, T, 1). See `gated_delta`.

    Keys are normalised by the caller: with |k| = 1 and 0 <= beta <= 2 no step can make the state grow.
    """
    return gated_delta(q, k, beta * k, beta * v, g, state)


@exact
def gated_delta(
    q: Tensor, k: Tensor, p: Tensor, z: Tensor, g: Tensor | None = None, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """q, k, p (B, H', T, K); z (B, H, T, V), H a multiple of each H'; g None, (B, H, T, 1) or (B, H, T, K): log-decay
    <= 0, -inf forgets everything; state (B, H, K, V). Returns o (B, H, T, V) in z's dtype and the state after the
    last step, in float32 at least. q is scaled by the caller. Time and memory are linear in T.
    """
    given, dtype, T = z.dtype, wide(z.dtype), z.shape[2]
    size = max(1, min(CHUNK if g is None or g.shape[3] == 1 else CHANNEL_CHUNK, T))
    q, k, p = (x.repeat_interleave(z.shape[1] // x.shape[1], 1) for x in (q, k, p))
    q, k, p, z = (chunks(x.to(dtype), size) for x in (q, k, p, z))

    below = torch.ones(size, size, dtype=torch.bool, device=q.device).tril(-1)
    if g is None:
        recall, attend = p @ k.mT, (q @ k.mT).tril()
        p_start, q_start, k_end, keep = p, q, k, None
    else:
        g = chunks(g.to(dtype), size)
        decay, start = between(g), since_start(g).exp()
        if g.shape[-1] == 1:
            recall, attend = (p @ k.mT) * decay.squeeze(-1), (q @ k.mT) * decay.squeeze(-1)
        else:
            decayed = k.unsqueeze(-3) * decay
            recall, attend = (decayed @ p.unsqueeze(-1)).squeeze(-1), (decayed @ q.unsqueeze(-1)).squeeze(-1)
        p_start, q_start, k_end = p * start, q * start, k * until_end(g).exp()
        keep = g.sum(-2).exp().unsqueeze(-1)
    # U = (I + L)^{-1} (Z - P S): solved by substitution, since powers of L overflow for keys that resemble each other
    system = recall.masked_fill(~below, 0)
    solved = torch.linalg.solve_triangular(system, torch.cat([p_start, z], -1), upper=False, unitriangular=True)
    W, U = solved.split([p.shape[-1], z.shape[-1]], -1)

    S = torch.zeros_like(k[:, :, 0].mT @ z[:, :, 0]) if state is None else state.to(dtype)
    starts, written = [], []
    for n, (w, u, k_n) in enumerate(zip(W.unbind(2), U.unbind(2), k_end.unbind(2), strict=True)):
        starts.append(S)
        written.append(u - w @ S)
        S = (S if keep is None else keep[:, :, n] * S) + k_n.mT @ written[-1]
    o = q_start @ torch.stack(starts, 2) + attend @ torch.stack(written, 2)
    return o.flatten(2, 3)[:, :, :T].to(given), S
