"""Diagonal recurrences.

    h_t = a_t * h_{t-1} + b_t

On a CPU the loop itself, one fused operation per step, is the fastest where a step has many numbers. Where it has few,
blocks of tokens walk side by side, twice: from zero, for the states that they begin with, and from those. Elsewhere
each step would be a launch: there, (a, b) and (a', b') compose to (a' a, a' b + b') (Blelloch, 1990, Prefix sums and
their applications, section 1.4), and inside a chunk the composition doubles its reach at each step, while the carry
walks over chunks. Only products of a occur, no logarithm and no quotient, so a may be zero, negative or complex.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mixers.ops import engines
from mixers.ops.precision import exact, wide

CHUNK = 32
BLOCK = 64  # tokens of those that walk side by side,
FEW = 8  # as many at least,
AT_ONCE = 2**15  # and as many as have so many numbers in a step
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
    a = a.expand_as(b)
    if b.shape[1] == 1:
        h = torch.addcmul(b, a, state.unsqueeze(1))
        return h, h[:, 0].clone()
    return Scan.apply(a, b, state, run, run_back)


def run(a: Tensor, b: Tensor, h: Tensor) -> Tensor:
    """The recurrence from h on: (B, T, ...), all of one dtype. Not for autograd."""
    if not loops(b):
        return by_doubling(a, b, h)
    out = torch.empty_like(b)
    chain(a, b, out, h, 1)
    return out


def run_back(a: Tensor, dh: Tensor, last: Tensor) -> Tensor:
    """Its adjoint: l_t = dh_t + conj(a_{t+1}) l_{t+1}, from l = last + dh at the end: (B, T, ...). Not for autograd."""
    if not loops(dh):
        return reversed_by(by_doubling, a, dh, last)
    out = torch.empty_like(dh)
    l = torch.add(dh[:, -1], last, out=out[:, -1])
    chain(a[:, 1:].conj().resolve_conj(), dh[:, :-1], out[:, :-1], l, -1)
    return out


def chain(a: Tensor, b: Tensor, out: Tensor, h: Tensor, way: int) -> None:
    """h = out_t = b_t + a_t h for every t, upwards, or downwards where the way is -1."""
    T, many = b.shape[1], AT_ONCE // max(1, h.numel())
    whole = T // BLOCK * BLOCK if min(many, T // BLOCK) >= FEW else 0
    # one by one in parts too, since Python walks over all views that live
    for walk, size, start, stop in ((in_blocks, many * BLOCK, 0, whole), (one_by_one, 1024, whole, T))[::way]:
        if start < stop:
            pieces = zip(*(x[:, start:stop].split(size, 1)[::way] for x in (a, b, out)), strict=True)
            for piece in pieces:
                h = walk(*piece, h, way)


def one_by_one(a: Tensor, b: Tensor, out: Tensor, h: Tensor, way: int) -> Tensor:
    for a_t, b_t, out_t in zip(*(x.unbind(1)[::way] for x in (a, b, out)), strict=True):
        h = torch.addcmul(b_t, a_t, h, out=out_t)
    return h


def in_blocks(a: Tensor, b: Tensor, out: Tensor, h: Tensor, way: int) -> Tensor:
    steps = list(zip(*(x.unflatten(1, (-1, BLOCK)).unbind(2)[::way] for x in (a, b, out)), strict=True))
    keep, write, _ = steps[0]  # of a whole block, (B, blocks, ...): its last state is write + keep * its first one
    for a_t, b_t, _ in steps[1:]:
        keep, write = keep * a_t, torch.addcmul(b_t, a_t, write)
    starts, state = torch.empty_like(write), h
    for start, keep_n, write_n in zip(*(x.unbind(1)[::way] for x in (starts, keep, write)), strict=True):
        start.copy_(state)
        state = torch.addcmul(write_n, keep_n, state)
    if not state.isfinite().all():  # products may leave all numbers where the states themselves do not
        return one_by_one(a, b, out, h, way)
    for a_t, b_t, out_t in steps:
        starts = torch.addcmul(b_t, a_t, starts, out=out_t)
    return starts[:, -1 if way == 1 else 0]


def reversed_by(run: Run, a: Tensor, dh: Tensor, last: Tensor) -> Tensor:
    """The adjoint by what runs the recurrence forwards."""
    later = torch.cat([torch.ones_like(a[:, :1]), a.flip(1)[:, :-1]], 1).conj()
    return run(later, dh.flip(1), last).flip(1)


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
        da = l.clone()  # in place, since each temporary is as long as the sequence
        da[:, 0].mul_(state.conj())
        da[:, 1:].mul_(h[:, :-1].conj())
        return da, l, a[:, 0].conj() * l[:, 0], None, None
