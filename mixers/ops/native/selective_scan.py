"""selective_scan.c's side of `mixers.ops.selective_scan.selective_scan`."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mixers.ops.native.calls import (
    at,
    dense,
    floats,
    kernel,
    numbers,
    plain,
    recorded,
    refuse_a_second_derivative,
    view,
)

W, SPAN = 16, 32  # selective_scan.c's, W at its widest
FORWARD = "iiii pppppp ppp piii"
BACKWARD = "iiii ppppppp ppp ppppp piii"


def serves(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor | None = None) -> bool:
    if not plain(x, dt, A, B, C, D, state) or x.ndim != 3 or A.ndim != 2:
        return False
    (batch, T, width), N = x.shape, A.shape[1]
    streams = dt.shape == x.shape and B.shape == C.shape == (batch, T, N)
    weights = D.shape == (width,) and A.shape[0] == width
    return streams and weights and (state is None or state.shape == (batch, width, N))


def selective_scan(x, dt, A, B, C, D, state=None) -> tuple[Tensor, Tensor]:
    state = x.new_zeros(x.shape[0], *A.shape, dtype=torch.float32) if state is None else state
    if x.shape[1] == 1 and not recorded(x, dt, A, B, C, D, state):
        return step(x.dtype, *map(numbers, (x, dt, A, B, C, D, state)))
    inputs = (*map(dense, (x, dt)), A, *map(dense, (B, C)), D, state.float())
    return _SelectiveScan.apply(*inputs) if recorded(*inputs) else forward(False, *inputs)[:2]


def step(dtype, x, dt, A, B, C, D, state):
    """A single token, and the state after it."""
    y, last = torch.empty_like(x), torch.empty_like(state)
    kernel("selective_scan_step", "iii ppppppp pp")(
        *(x.shape[0], *A.shape, *map(at, (x, dt, A, B, C, D, state, last, y))),
    )
    return y if dtype is torch.float32 else y.to(dtype), last


def channels_last(x: Tensor) -> Tensor:
    """x (..., D, N) -> (..., N, D), in float32, dense, with D padded."""
    return F.pad(x.float().mT, (0, -x.shape[-2] % W)).contiguous()


def channels_first(x: Tensor, width: int) -> Tensor:
    return x[..., :width].mT.contiguous()


def forward(keep, x, dt, A, B, C, D, state):
    (batch, T, width), N = x.shape, A.shape[1]
    y, S, rates = torch.empty_like(x, memory_format=torch.contiguous_format), channels_last(state), channels_last(A)
    padded, threads = rates.shape[1], torch.get_num_threads()
    if S.data_ptr() == state.data_ptr():
        S = S.clone()  # the kernel writes into it
    starts = floats(batch, -(-T // SPAN), N, padded) if keep else None
    room = W * (N + 3 * SPAN) + padded_to(2 * SPAN * N)
    many = pieces(padded, threads)
    scratch = floats(batch * many, room)
    skip = F.pad(D.float(), (0, padded - width))
    kernel("selective_scan_forward", FORWARD)(
        *(batch, T, N, padded, view(x), view(dt), at(rates), view(B), view(C), at(skip)),
        *(at(S), view(y), at(starts), at(scratch), room, many, threads),
    )
    return y, channels_first(S, width), starts


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs):
        y, last, starts = forward(True, *inputs)
        ctx.save_for_backward(*inputs[:-1], starts)
        return y, last

    @staticmethod
    def backward(ctx, dy, dlast):
        refuse_a_second_derivative("selective_scan")
        x, dt, A, B, C, D, starts = ctx.saved_tensors
        (batch, T, width), N = x.shape, A.shape[1]
        dy, dS, rates, threads = dense(dy), channels_last(dlast), channels_last(A), torch.get_num_threads()
        if dS.data_ptr() == dlast.data_ptr():
            dS = dS.clone()
        padded = rates.shape[1]
        many = pieces(padded, threads)
        dx, ddt = (torch.empty_like(z, memory_format=torch.contiguous_format) for z in (x, dt))
        dA, dskip = floats(batch, N, padded).zero_(), floats(batch, padded).zero_()
        dB, dC = floats(batch, many, T, N), floats(batch, many, T, N)
        room = W * (3 * N + 5 * SPAN + 4 * SPAN * N) + padded_to(2 * SPAN * N)
        scratch = floats(batch * many, room)
        skip = F.pad(D.float(), (0, padded - width))
        kernel("selective_scan_backward", BACKWARD)(
            *(batch, T, N, padded, view(x), view(dt), at(rates), view(B), view(C), at(skip), at(starts)),
            *(
                view(dy),
                view(dx),
                view(ddt),
                at(dA),
                at(dB),
                at(dC),
                at(dskip),
                at(dS),
                at(scratch),
                room,
                many,
                threads,
            ),
        )
        dB, dC = (z.squeeze(1) if many == 1 else z.sum(1) for z in (dB, dC))
        grads = dx, ddt, channels_first(dA.sum(0), width), dB, dC, dskip.sum(0)[:width]
        cast = (g.to(z.dtype) for g, z in zip(grads, (x, dt, A, B, C, D), strict=True))
        return *cast, channels_first(dS, width)


def pieces(width: int, threads: int) -> int:
    return min(width // W, 8) if threads > 1 else 1


def padded_to(n: int) -> int:
    return -(-n // W) * W
