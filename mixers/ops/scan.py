"""Diagonal recurrences.

    h_t = a_t * h_{t-1} + b_t

On a CPU the loop itself, one fused operation per step, is the fastest. Elsewhere each step would be a launch: there,
(a, b) and (a', b') compose to (a' a, a' b + b') (Blelloch, 1990, Prefix sums and their applications, section 1.4), and
inside a chunk the composition doubles its reach at each step, while the carry walks over chunks. Only products of a
occur, no logarithm and no quotient, so a may be zero, negative or complex.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mixers.ops import engines
from mixers.ops.precision import exact, wide

CHUNK = 32
Run = Callable[[Tensor, Tensor, Tensor], Tensor]


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
    fused = engines.fused("scan", a, b, state)
    if fused is not None:
        return fused(a, b, state)
    dtype = torch.promote_types(wide(b.dtype), a.dtype)
    a, b = a.to(dtype), b.to(dtype)
    state = torch.zeros_like(b[:, 0]) if state is None else state.to(dtype)
    if b.shape[1] == 1:
        h = torch.addcmul(b, a, state.unsqueeze(1))
        return h, h[:, 0].clone()
    return Scan.apply(a.expand_as(b), b, state, run, run_back)


def run(a: Tensor, b: Tensor, h: Tensor) -> Tensor:
    """The recurrence from h on: (B, T, ...), all of one dtype. Not for autograd."""
    if not loops(b):
        return by_doubling(a, b, h)
    out = torch.empty_like(b)
    for a_t, b_t, out_t in zip(steps(a), steps(b), steps(out), strict=True):
        h = torch.addcmul(b_t, a_t, h, out=out_t)
    return out


def run_back(a: Tensor, dh: Tensor, last: Tensor) -> Tensor:
    """Its adjoint: l_t = dh_t + conj(a_{t+1}) l_{t+1}, from l = last + dh at the end: (B, T, ...). Not for autograd."""
    if not loops(dh):
        return reversed_by(by_doubling, a, dh, last)
    out = torch.empty_like(dh)
    l = torch.add(dh[:, -1], last, out=out[:, -1])
    later = a[:, 1:].conj().resolve_conj()
    for a_t, dh_t, out_t in zip(steps(later, -1), steps(dh[:, :-1], -1), steps(out[:, :-1], -1), strict=True):
        l = torch.addcmul(dh_t, a_t, l, out=out_t)
    return out


def reversed_by(run: Run, a: Tensor, dh: Tensor, last: Tensor) -> Tensor:
    """The adjoint by what runs the recurrence forwards."""
    later = torch.cat([torch.ones_like(a[:, :1]), a.flip(1)[:, :-1]], 1).conj()
    return run(later, dh.flip(1), last).flip(1)


def steps(x: Tensor, way: int = 1) -> Iterator[Tensor]:
    """x[:, t], forwards or backwards; views of a part at a time, since Python walks over all that live."""
    for piece in x.split(1024, 1)[::way]:
        yield from piece.unbind(1)[::way]


def loops(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def by_doubling(a: Tensor, b: Tensor, h: Tensor) -> Tensor:
    """The same with few large operations."""
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


class Scan(torch.autograd.Function):
    """By functions like `run` and `run_back`, which gives l; db = l, da_t = l_t conj(h_{t-1})."""

    @staticmethod
    def forward(ctx, a, b, state, run: Run, run_back: Run):
        h = run(a, b, state)
        ctx.save_for_backward(a, h, state)
        ctx.run_back = run_back
        return h, (h[:, -1] if h.shape[1] else state).clone()

    @staticmethod
    @exact
    def backward(ctx, dh, dlast):
        if torch.is_grad_enabled():
            raise RuntimeError("the gradient of a scan cannot be differentiated: drop create_graph=True")
        a, h, state = ctx.saved_tensors
        if not h.shape[1]:
            return torch.zeros_like(a), dh, dlast, None, None
        l = ctx.run_back(a, dh, dlast)
        da = torch.empty_like(l)
        da[:, 0] = l[:, 0] * state.conj()
        da[:, 1:] = l[:, 1:] * h[:, :-1].conj()
        return da, l, a[:, 0].conj() * l[:, 0], None, None
