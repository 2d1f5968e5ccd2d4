"""gated_delta.c's side of `mixers.ops.gated_delta.gated_delta`."""

import torch
from torch import Tensor

from mixers.ops.native import calls
from mixers.ops.native.calls import at, dense, kernel, recorded, refuse_a_second_derivative, view

SPAN = 64  # tokens between the states that are kept for the backward pass
FORWARD = "iii ppppp p ppp p i"
BACKWARD = "iii ppppp p ppppp pp p i"


def serves(q, k, p, z, g=None, state=None) -> bool:
    return calls.fits((q, k, p), z, g, state)


def gated_delta(q: Tensor, k: Tensor, p: Tensor, z: Tensor, g=None, state=None) -> tuple[Tensor, Tensor]:
    state = z.new_zeros(*z.shape[:2], q.shape[3], z.shape[3], dtype=torch.float32) if state is None else state
    if z.shape[2] == 1 and not recorded(q, k, p, z, g, state):
        return calls.step(q, k, p, z, g, state)
    inputs = (*map(dense, (q, k, p, z, g)), state.contiguous())
    return _GatedDelta.apply(*inputs) if recorded(*inputs) else forward(False, *inputs)[:2]


def forward(keep, q, k, p, z, g, state):
    (B, H, T, V), K = z.shape, q.shape[3]
    o, last = torch.empty_like(z), torch.empty_like(state)
    starts = calls.floats(B, H, -(-T // SPAN), K, V) if keep else None
    threads = min(torch.get_num_threads(), B * H)
    scratch = calls.floats(threads * kernel("gated_delta_room", "iii")(K, V, 0))
    kernel("gated_delta_forward", FORWARD)(
        *(B, H, T, *(view(x, H) for x in (q, k, p, z, g, o))),
        *(at(state), at(last), at(starts), at(scratch), threads),
    )
    return o, last, starts


class _GatedDelta(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs):
        o, last, starts = forward(True, *inputs)
        ctx.save_for_backward(*inputs[:-1], starts)
        return o, last

    @staticmethod
    def backward(ctx, do, dlast):
        refuse_a_second_derivative("gated_delta")
        *inputs, starts = ctx.saved_tensors
        q, g, (B, H, T, V) = inputs[0], inputs[4], inputs[3].shape
        do, dstate = dense(do), dlast.clone(memory_format=torch.contiguous_format)
        grads = [calls.gradient(x, H) if x is not g or ctx.needs_input_grad[4] else None for x in inputs]
        threads = min(torch.get_num_threads(), B * H)
        scratch = calls.floats(threads * kernel("gated_delta_room", "iii")(q.shape[3], V, 1))
        kernel("gated_delta_backward", BACKWARD)(
            *(B, H, T, *(view(x, H) for x in (*inputs, do, *grads))),
            *(at(starts), at(dstate), at(scratch), threads),
        )
        return *map(calls.gathered, grads, inputs), dstate
