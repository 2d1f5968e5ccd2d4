"""scan.c's side of `mixers.ops.scan.scan`."""

from math import prod

import torch
from torch import Tensor

from mixers.ops.native.calls import FLOATS, at, kernel, plain, recorded, refuse_a_second_derivative

FORWARD = "iiii piii ppppi"
BACKWARD = "iiii piii pp piii pppp i"


def serves(a: Tensor, b: Tensor, state: Tensor | None = None) -> bool:
    if not plain(a, b, state, dtypes=(*FLOATS, torch.complex64)) or b.ndim < 2 or a.ndim > b.ndim:
        return False
    if a.shape != b.shape and any(n not in (1, m) for n, m in zip(a.shape[::-1], b.shape[::-1], strict=False)):
        return False
    return state is None or state.shape == b.shape[:1] + b.shape[2:]


def scan(a: Tensor, b: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(torch.promote_types(b.dtype, torch.float32), a.dtype)
    if state is None:
        state = b.new_zeros(b.shape[0], *b.shape[2:], dtype=dtype)
    a, b, state = (x if x.dtype is dtype else x.to(dtype) for x in (a, b, state))
    a = a if a.shape == b.shape else a.expand_as(b)
    return _Scan.apply(a, b, state) if recorded(a, b, state) else forward(a, dense(b), dense(state))


def forward(a, b, state):
    h, last = torch.empty_like(b), torch.empty_like(state)
    rows, _alive = spread(a)
    kernel("scan_forward", FORWARD)(*sizes(b), *rows, at(b), at(state), at(h), at(last), torch.get_num_threads())
    return h, last


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b, state):
        b, state = dense(b), dense(state)
        h, last = forward(a, b, state)
        ctx.save_for_backward(a, h, state)
        return h, last

    @staticmethod
    def backward(ctx, dh, dlast):
        refuse_a_second_derivative("a scan")
        a, h, state = ctx.saved_tensors
        dlast = dense(dlast)
        da, db, dstate = torch.empty_like(h), torch.empty_like(h), torch.empty_like(state)
        (rows, _alive), (coming, _also) = spread(a), spread(dh)
        kernel("scan_backward", BACKWARD)(
            *sizes(h), *rows, at(h), at(state), *coming, at(dlast), at(da), at(db), at(dstate), torch.get_num_threads()
        )
        return da, db, dstate


def sizes(b: Tensor) -> tuple[int, ...]:
    return 2 if b.is_complex() else 1, b.shape[0], b.shape[1], prod(b.shape[2:])


def settled(x: Tensor) -> Tensor:
    """x without a pending sign or conjugation: asking is faster than doing nothing."""
    return x.resolve_neg().resolve_conj() if x.is_neg() or x.is_conj() else x


def dense(x: Tensor) -> Tensor:
    return settled(x).contiguous()


def spread(x: Tensor):
    """Pointer and strides of x (B, T, ...), of which the rest is dense or one repeated number; and x, to keep."""
    x = settled(x)
    if x.is_contiguous():
        step = 1
    elif x.ndim == 2:
        step = 0
    elif all(s == 0 or n == 1 for s, n in zip(x.stride()[2:], x.shape[2:], strict=True)):
        step = 0
    else:
        step = 1
        x = x if x[0, 0].is_contiguous() else x.contiguous()
    return (at(x), x.stride(0), x.stride(1), step), x
