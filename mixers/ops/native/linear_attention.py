"""linear_attention.c's side of `mixers.ops.linear_attention.linear_attention`."""

import torch
from torch import Tensor

from mixers.ops.native import calls
from mixers.ops.native.calls import at, dense, kernel, recorded, refuse_a_second_derivative, view

SPAN = 256  # tokens between the states that are kept for the backward pass
FORWARD = "iii pppp p ppp p i"
BACKWARD = "iii pppp p pppp pp p i"


def serves(q, k, v, g=None, state=None, u=None, gv=None) -> bool:
    return u is None and gv is None and calls.fits((q, k), v, g, state)


def linear_attention(q: Tensor, k: Tensor, v: Tensor, g=None, state=None, u=None, gv=None) -> tuple[Tensor, Tensor]:
    state = v.new_zeros(*v.shape[:2], q.shape[3], v.shape[3], dtype=torch.float32) if state is None else state
    if v.shape[2] == 1 and not recorded(q, k, v, g, state):
        return calls.step(q, k, None, v, g, state)
    inputs = (*map(dense, (q, k, v, g)), state.contiguous())
    return _LinearAttention.apply(*inputs) if recorded(*inputs) else forward(False, *inputs)[:2]


def forward(keep, q, k, v, g, state):
    (B, H, T, V), K = v.shape, q.shape[3]
    o, last = torch.empty_like(v), torch.empty_like(state)
    starts = calls.floats(B, H, -(-T // SPAN), K, V) if keep else None
    threads = min(torch.get_num_threads(), B * H)
    scratch = calls.floats(threads * kernel("linear_attention_room", "iii")(K, V, 0))
    kernel("linear_attention_forward", FORWARD)(
        *(B, H, T, *(view(x, H) for x in (q, k, v, g, o))),
        *(at(state), at(last), at(starts), at(scratch), threads),
    )
    return o, last, starts


class _LinearAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs):
        o, last, starts = forward(True, *inputs)
        ctx.save_for_backward(*inputs[:-1], starts)
        return o, last

    @staticmethod
    def backward(ctx, do, dlast):
        refuse_a_second_derivative("linear_attention")
        *inputs, starts = ctx.saved_tensors
        q, g, (B, H, T, V) = inputs[0], inputs[3], inputs[2].shape
        do, dstate = dense(do), dlast.clone(memory_format=torch.contiguous_format)
        grads = [calls.gradient(x, H) if x is not g or ctx.needs_input_grad[3] else None for x in inputs]
        threads = min(torch.get_num_threads(), B * H)
        scratch = calls.floats(threads * kernel("linear_attention_room", "iii")(q.shape[3], V, 1))
        kernel("linear_attention_backward", BACKWARD)(
            *(B, H, T, *(view(x, H) for x in (*inputs, do, *grads))),
            *(at(starts), at(dstate), at(scratch), threads),
        )
        return *map(calls.gathered, grads, inputs), dstate
