"""The selective scan of Mamba: a diagonal recurrence whose state, (D, N) per token, is never written out for a whole
sequence.

    h_t = e^{dt_t A} h_{t-1} + (dt_t x_t) B_t^T,    y_t = h_t C_t + D x_t

Gu and Dao, 2023 (https://arxiv.org/abs/2312.00752, algorithm 2 and section 3.3.2: the states are recomputed in the
backward pass).
"""

import torch
from torch import Tensor

from mixers.ops import engines
from mixers.ops.precision import exact, wide, widened
from mixers.ops.scan import run, run_back
from mixers.ops.work import wider

AT_ONCE = 2**18  # numbers of states that are in work: a MiB


def selective_scan_definition(x, dt, A, B, C, D, state=None):
    """The loop. Shapes as in `selective_scan`."""
    h = x.new_zeros(x.shape[0], *A.shape) if state is None else state
    out = []
    for t in range(x.shape[1]):
        h = (dt[:, t, :, None] * A).exp() * h + (dt[:, t] * x[:, t]).unsqueeze(-1) * B[:, t, None]
        out.append((h * C[:, t, None]).sum(-1) + D * x[:, t])
    return torch.stack(out, 1), h


@exact
def selective_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x, dt (B, T, D), dt >= 0; A (D, N) <= 0; B, C (B, T, N); D (D,); state (B, D, N). Returns y (B, T, D) in x's
    dtype and the state after the last step, in float32 at least. Time and memory are linear in T. Its gradient cannot
    be differentiated again.
    """
    fused = engines.fused("selective_scan", x, dt, A, B, C, D, state)
    if fused is not None:
        return fused(x, dt, A, B, C, D, state)
    dtype = wide(x.dtype)
    if state is None:
        state = torch.zeros(x.shape[0], *A.shape, dtype=dtype, device=x.device)
    if not x.numel():
        return x, state.to(dtype)
    if x.shape[1] == 1:
        return widened(step, x.dtype, x, dt, A, B, C, D, state)
    y, last = _SelectiveScan.apply(x, dt, A.to(dtype), B, C, state.to(dtype))
    return y + D.to(x.dtype) * x, last


def step(x, dt, A, B, C, D, h):
    """A single token, in as few operations as there are."""
    h = torch.addcmul((dt.mT * A).exp_() * h, (dt * x).mT, B)
    return torch.addcmul((h @ C.mT).mT, D, x), h


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dt, A, B, C, h):
        step = max(1, wider(AT_ONCE, h) // h.numel())
        starts, out = [], []
        for pieces in zip(*(z.split(step, 1) for z in (x, dt, B, C)), strict=True):
            starts.append(h)
            x_, dt_, B_, C_ = (z.to(h.dtype) for z in pieces)
            H = run(*discrete(x_, dt_, A, B_), h)
            out.append((H @ C_.unsqueeze(-1)).squeeze(-1).to(x.dtype))
            h = H[:, -1].clone()
        ctx.step = step
        ctx.save_for_backward(x, dt, A, B, C, *starts)
        return torch.cat(out, 1), h

    @staticmethod
    @exact
    def backward(ctx, dy, dh):
        if torch.is_grad_enabled():
            raise RuntimeError("the gradient of selective_scan cannot be differentiated: drop create_graph=True")
        x, dt, A, B, C, *starts = ctx.saved_tensors
        grads, dA = [torch.empty_like(z) for z in (x, dt, B, C)], torch.zeros_like(A)
        pieces = list(zip(*(z.split(ctx.step, 1) for z in (dy, x, dt, B, C, *grads)), strict=True))
        for h, (dy_, *inputs, dx_, ddt_, dB_, dC_) in zip(reversed(starts), reversed(pieces), strict=True):
            dy_, x_, dt_, B_, C_ = (z.to(A.dtype) for z in (dy_, *inputs))
            a, b = discrete(x_, dt_, A, B_)
            H = run(a, b, h)
            dC_.copy_((dy_.unsqueeze(-2) @ H).squeeze(-2))
            l = run_back(a, dy_.unsqueeze(-1) * C_.unsqueeze(-2), dh)
            dh = a[:, 0] * l[:, 0]
            moved = (l @ B_.unsqueeze(-1)).squeeze(-1)  # the gradient of dt x
            dB_.copy_(((dt_ * x_).unsqueeze(-2) @ l).squeeze(-2))
            rates = l * a  # the gradient of dt A
            rates[:, 0] *= h
            rates[:, 1:] *= H[:, :-1]
            dA += torch.einsum("btdn,btd->dn", rates, dt_)
            ddt_.copy_((rates * A).sum(-1) + moved * x_)
            dx_.copy_(moved * dt_)
        dx, ddt, dB, dC = grads
        return dx, ddt, dA, dB, dC, dh


def discrete(x: Tensor, dt: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """e^{dt A} and (dt x) B^T, (B, T, D, N) each."""
    return (dt.unsqueeze(-1) * A).exp_(), (dt * x).unsqueeze(-1) * B.unsqueeze(-2)
