"""Long sequences in linear memory: walked in segments of chunks, of which a backward pass keeps the first states only.

A recurrence says what it does with one segment, forwards and backwards; `walk` does the rest: grouped heads, padding,
precision, the order of segments, and the recomputation.
"""

from typing import Any

import torch
from torch import Tensor

from mixers.ops.precision import exact, wide
from mixers.ops.work import wider

CHUNK = 64  # without decay, or with one number per head
CHANNEL_CHUNK = 16  # with one per channel: pairs are walked one by one
SEGMENT = 512  # tokens that are recomputed at once,
AT_ONCE = 2048  # and how many of them times heads and rows


class Recurrence:
    """One segment. Parts are (B, H', 1 or H / H', n, C, .), or None where the caller gave none; S is (B, H', H / H', K,
    V).
    """

    @staticmethod
    def forward(S: Tensor, *parts: Any) -> tuple[Tensor, Tensor]:
        """The outputs (B, H', H / H', n, C, V), and the state after the segment."""
        raise NotImplementedError

    @staticmethod
    def backward(S: Tensor, do: Tensor, dS: Tensor, *parts: Any) -> tuple[Tensor, ...]:
        """dS at the segment's start, then the parts' gradients."""
        raise NotImplementedError


def walk(recurrence: type[Recurrence], state: Tensor | None, size: int, *xs: Tensor | None) -> tuple[Tensor, Tensor]:
    """xs are (B, h, T, .), or None; the last one has all H heads and gives o its shape and dtype, the second its K.

    h is H, or the same divisor of it for all others. Returns o (B, H, T, V), and the state (B, H, K, V) in float32 at
    least.
    """
    given = [x for x in xs if x is not None]
    B, H, T, V = given[-1].shape
    few = min(x.shape[1] for x in given)
    for x in given:
        if x.shape[1] not in (few, H) or H % few:
            heads = ", ".join(str(x.shape[1]) for x in given)
            raise ValueError(f"inputs have {heads} heads: each needs the last one's, or the same divisor of it")
    dtype = wide(given[-1].dtype)
    if state is None:
        state = torch.zeros(B, H, given[1].shape[-1], V, dtype=dtype, device=given[0].device)
    if not B * T:
        return given[-1], state.to(dtype)
    rows = max(1, wider(AT_ONCE, given[0]) // (H * min(T, segment(given[0]))))
    pieces = [
        _Walk.apply(recurrence, (few, H // few), min(size, T), S, *piece)
        for S, *piece in zip(*(cut(x, rows, B) for x in (state.to(dtype), *xs)), strict=True)
    ]
    if len(pieces) == 1:
        return pieces[0]
    outputs, states = zip(*pieces, strict=True)
    return torch.cat(outputs), torch.cat(states)


def segment(x: Tensor) -> int:
    return wider(SEGMENT, x, 16)


def shared(x: Tensor, heads: int) -> Tensor:
    """x (B, H', T, D) for each of `heads` heads. Raises ValueError where they cannot be shared out."""
    if heads % x.shape[1]:
        raise ValueError(f"inputs have {x.shape[1]} and {heads} heads: the one must divide the other")
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)


def cut(x: Tensor | None, rows: int, batch: int) -> tuple[Tensor | None, ...]:
    """x (B, ...) in pieces of so many rows."""
    return (None,) * -(-batch // rows) if x is None else x.split(rows)


def carry(write: Tensor, S: Tensor, *keeps: Tensor | None) -> tuple[Tensor, Tensor]:
    """The states that chunks begin with, (..., n, K, V), and the last one: S <- keeps * S + write_n."""
    starts = []
    for n, w in enumerate(write.unbind(-3)):
        starts.append(S)
        S = kept(S, n, keeps) + w
    return torch.stack(starts, -3), S


def carry_grad(read: Tensor, dS: Tensor, *keeps: Tensor | None) -> tuple[Tensor, Tensor]:
    """The gradients of the states that chunks end with, and of the first state: dS <- keeps * dS + read_n."""
    ends = []
    for n in range(read.shape[-3] - 1, -1, -1):
        ends.append(dS)
        dS = kept(dS, n, keeps) + read[..., n, :, :]
    return torch.stack(ends[::-1], -3), dS


def kept(S: Tensor, n: int, keeps: tuple[Tensor | None, ...]) -> Tensor:
    for keep in keeps:
        S = S if keep is None else keep[..., n, :, :] * S
    return S


class _Walk(torch.autograd.Function):
    @staticmethod
    def forward(ctx, recurrence, groups, size, state, *xs):
        S, T = state.unflatten(1, groups), xs[-1].shape[2]
        starts, out = [], []
        step = T if state.is_meta else segment(state)  # what is not computed needs no cache: fewer calls take less time
        for start in range(0, T, step):
            starts.append(S)
            stop = min(start + step, T)
            o, S = recurrence.forward(S, *(part(x, start, stop, size, groups) for x in xs))
            out.append(whole(o, stop - start).to(xs[-1].dtype))
        ctx.save_for_backward(*starts, *xs)
        ctx.recurrence, ctx.groups, ctx.size, ctx.segment = recurrence, groups, size, step
        return torch.cat(out, 2), S.flatten(1, 2)

    @staticmethod
    @exact
    def backward(ctx, do, dS):
        if torch.is_grad_enabled():
            raise RuntimeError("the gradient of a chunked recurrence cannot be differentiated: drop create_graph=True")
        groups, size, step = ctx.groups, ctx.size, ctx.segment
        T = do.shape[2]
        n = -(-T // step)
        starts, xs = ctx.saved_tensors[:n], ctx.saved_tensors[n:]
        dS = dS.unflatten(1, groups)
        grads = [None if x is None else torch.empty_like(x) for x in xs]
        for i in range(n - 1, -1, -1):
            start, stop = i * step, min((i + 1) * step, T)
            parts = [part(x, start, stop, size, groups) for x in xs]
            dS, *dparts = ctx.recurrence.backward(starts[i], part(do, start, stop, size, groups), dS, *parts)
            for grad, x, d in zip(grads, parts, dparts, strict=True):
                if grad is not None:
                    d = d.sum(2, keepdim=True) if d.shape[2] != x.shape[2] else d
                    grad[:, :, start:stop] = whole(d, stop - start)
        return None, None, None, dS.flatten(1, 2), *grads


def part(x: Tensor | None, start: int, stop: int, size: int, groups: tuple[int, int]) -> Tensor | None:
    """(B, h, T, D) -> (B, H', h / H', n, C, D), wide; zeros after the end: no write, no decay, an output cut off."""
    if x is None:
        return None
    x = x[:, :, start:stop].to(wide(x.dtype)).contiguous()  # once, or each product makes a copy of its own
    if x.shape[2] % size:
        x = torch.nn.functional.pad(x, (0, 0, 0, -x.shape[2] % size))
    return x.unflatten(2, (-1, size)).unflatten(1, (groups[0], -1))


def whole(x: Tensor, T: int) -> Tensor:
    """Back to (B, h, T, D)."""
    return x.flatten(3, 4)[..., :T, :].flatten(1, 2)
