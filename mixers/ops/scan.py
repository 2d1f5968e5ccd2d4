"""Diagonal recurrences.

    h_t = a_t * h_{t-1} + b_t

Blelloch, 1990 (Prefix sums and their applications, section 1.4): (a, b) and (a', b') compose to (a' a, a' b + b').
Inside a chunk the composition doubles its reach at each step; the carry walks over chunks. Only products of a occur,
no logarithm and no quotient, so a may be zero, negative or complex.
"""

import torch
from torch import Tensor

from mixers.ops.precision import exact, wide

CHUNK = 32


def scan_definition(a, b, state=None):
    """The loop. Shapes as in `scan`."""
    h = torch.zeros_like(b[:, 0]) if state is None else state
    a, out = a.expand_as(b), []
    for t in range(b.shape[1]):
        h = a[:, t] * h + b[:, t]
        out.append(h)
    return torch.stack(out, 1), h


@exact
def scan(a: Tensor, b: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """b (B, T, ...), real or complex; a broadcasts to b; state (B, ...). Returns h (B, T, ...) and the last h (B,
    ...), in float32 or complex64 at least. Time and memory are linear in T.
    """
    dtype = torch.promote_types(wide(b.dtype), a.dtype)
    a, b = a.to(dtype), b.to(dtype)
    state = torch.zeros_like(b[:, 0]) if state is None else state.to(dtype)
    return _Scan.apply(a.expand_as(b), b, state)


def _run(a: Tensor, b: Tensor, h: Tensor) -> Tensor:
    """The recurrence from h on: (B, T, ...)."""
    T, size = b.shape[1], min(CHUNK, max(1, b.shape[1]))
    padding = -T % size
    if padding:
        a = torch.cat([a, a.new_zeros(a.shape[0], padding, *a.shape[2:])], 1)
        b = torch.cat([b, b.new_zeros(b.shape[0], padding, *b.shape[2:])], 1)
    a, b = a.unflatten(1, (-1, size)), b.unflatten(1, (-1, size))
    reach = 1
    while reach < size:
        b = torch.cat([b[:, :, :reach], a[:, :, reach:] * b[:, :, :-reach] + b[:, :, reach:]], 2)
        a = torch.cat([a[:, :, :reach], a[:, :, reach:] * a[:, :, :-reach]], 2)
        reach *= 2
    out = []
    for a_n, b_n in zip(a.unbind(1), b.unbind(1), strict=True):
        out.append(a_n * h.unsqueeze(1) + b_n)
        h = out[-1][:, -1]
    return torch.cat(out, 1)[:, :T] if out else b.flatten(1, 2)


class _Scan(torch.autograd.Function):
    """Its gradient is the same recurrence, backwards: l_t = dh_t + conj(a_{t+1}) l_{t+1}; db = l, da_t = l_t
    conj(h_{t-1}).
    """

    @staticmethod
    def forward(ctx, a, b, state):
        h = _run(a, b, state)
        ctx.save_for_backward(a, h, state)
        return h, (h[:, -1] if h.shape[1] else state).clone()

    @staticmethod
    def backward(ctx, dh, dlast):
        a, h, state = ctx.saved_tensors
        if not h.shape[1]:
            return torch.zeros_like(a), dh, dlast
        dh = torch.cat([dh[:, :-1], (dh[:, -1] + dlast).unsqueeze(1)], 1)
        later = torch.cat([a[:, 1:], torch.zeros_like(a[:, :1])], 1).conj()
        l = _run(later.flip(1), dh.flip(1), torch.zeros_like(state)).flip(1)
        before = torch.cat([state.unsqueeze(1), h[:, :-1]], 1)
        return l * before.conj(), l, a[:, 0].conj() * l[:, 0]
