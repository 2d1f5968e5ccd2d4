"""`mixers.ops.scan.scan` of real numbers, by fused_recurrent_hgrn, which takes the logarithm of a.

The signs of a are gathered in front of it: with s_t the product of the signs up to t, h_t = s_t h'_t and h'_t = |a_t|
h'_{t-1} + s_t b_t. A zero has the logarithm -inf, of which the kernel takes nothing but the exponential. Its own
gradient would divide by a, so that the adjoint recurrence, too, is run by it forwards.
"""

import torch
from torch import Tensor

from mixers.ops import scan as op
from mixers.ops.fla import calls


def serves(a: Tensor, b: Tensor, state: Tensor | None = None) -> bool:
    if torch._C._functorch.maybe_current_level() or b.ndim < 2 or b.shape[1] < 2 or not b.numel():
        return False
    return all(x is None or x.dtype in calls.FLOATS for x in (a, b, state))


def scan(a: Tensor, b: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    a, b = a.float(), b.float()
    state = torch.zeros_like(b[:, 0]) if state is None else state.float()
    return op.Scan.apply(a.expand_as(b), b, state, run, run_back)


def run(a: Tensor, b: Tensor, h: Tensor) -> Tensor:
    sign = torch.where(a < 0, -1.0, 1.0).cumprod(1)
    rows = (sign * b).flatten(2) if b.ndim > 2 else (sign * b).unsqueeze(-1)
    fused_recurrent_hgrn = calls.kernel("hgrn", "fused_recurrent_hgrn")
    out, _ = fused_recurrent_hgrn(
        x=rows,
        g=a.abs().log().view_as(rows),
        initial_state=h.reshape(rows.shape[0], -1),
        output_final_state=False,
        cu_seqlens=None,
    )
    return sign * out.view_as(b)


def run_back(a: Tensor, dh: Tensor, last: Tensor) -> Tensor:
    return op.reversed_by(run, a, dh, last)
