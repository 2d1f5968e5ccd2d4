"""Causal convolution with filters of any length.

    y_t = sum_l h_l x_{t-l}

Short filters are summed directly; long ones go through the FFT (Gu et al., 2021, https://arxiv.org/abs/2111.00396,
section 2.4).
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fft import irfft, rfft

from mixers.ops.precision import exact, wide
from mixers.ops.work import wider

DIRECT = 16  # up to this many taps a direct sum is faster than two transforms
AT_ONCE = 2**20  # numbers that are transformed at once


def causal_conv_definition(x, h, state=None):
    """The loop. Shapes as in `causal_conv`."""
    taps = h.shape[1]
    past = x.new_zeros(x.shape[0], taps - 1, x.shape[2]) if state is None else state
    seen = torch.cat([past, x], 1)
    y = [sum(h[:, l] * seen[:, t + taps - 1 - l] for l in range(taps)) for t in range(x.shape[1])]
    return torch.stack(y, 1), seen[:, x.shape[1] :]


@exact
def causal_conv(x: Tensor, h: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x (B, T, D); h (D, L), tap l weighs the input l steps ago; state (B, L - 1, D), the inputs before x, oldest
    first. Returns y (B, T, D) in x's dtype and the last L - 1 inputs. L may exceed T. Time T log(T + L).
    """
    T, taps = x.shape[1], h.shape[1]
    if taps <= DIRECT or state is not None or T <= DIRECT:
        past = x.new_zeros(x.shape[0], taps - 1, x.shape[2]) if state is None else state
        seen = torch.cat([past, x], 1)
        last = seen[:, T:]
    else:
        seen = x  # nothing came before: zeros need no transform
        last = F.pad(x, (0, 0, max(0, taps - 1 - T), 0))[:, -(taps - 1) :]
    if not x.numel():
        return x * h[:, 0].to(x.dtype), last  # the FFT refuses to be given nothing
    if taps <= DIRECT:
        h = h.to(x.dtype)  # shifted sums: torch's depthwise convolution is many times slower on a CPU
        y = h[:, 0] * seen[:, taps - 1 :]
        for l in range(1, taps):
            y = y + h[:, l] * seen[:, taps - 1 - l : taps - 1 - l + T]
        return y, last
    if T == 1:  # one sum needs no transform
        dtype = wide(x.dtype)
        return (seen.to(dtype) * h.to(dtype).mT.flip(0)).sum(1, keepdim=True).to(x.dtype), last
    y = _Transformed.apply(seen.to(wide(x.dtype)), h.to(wide(x.dtype)))
    return y[:, seen.shape[1] - T :].to(x.dtype), last


class _Transformed(torch.autograd.Function):
    """x (B, S, D) and h (D, L) in one dtype -> y (B, S, D), a few channels at a time; spectra are computed again in the
    backward pass, where dx and dh are correlations: products with conjugate spectra.
    """

    @staticmethod
    def forward(ctx, x, h):
        ctx.save_for_backward(x, h)
        out = [irfft(X * H, n)[..., : x.shape[1]] for X, H, n in spectra(x.mT, h)]
        return torch.cat(out, 1).mT

    @staticmethod
    @exact
    def backward(ctx, dy):
        if torch.is_grad_enabled():
            raise RuntimeError("the gradient of causal_conv cannot be differentiated: drop create_graph=True")
        x, h = ctx.saved_tensors
        dx, dh = [], []
        for (X, H, n), (dY, _, _) in zip(spectra(x.mT, h), spectra(dy.mT, h), strict=True):
            dx.append(irfft(dY * H.conj(), n)[..., : x.shape[1]])
            dh.append(irfft((dY * X.conj()).sum(0), n)[..., : h.shape[1]])
        return torch.cat(dx, 1).mT, torch.cat(dh, 0)


def spectra(x: Tensor, h: Tensor) -> Iterator[tuple[Tensor, Tensor, int]]:
    """x (B, D, S), h (D, L), a few channels at a time: their spectra at a length that they cannot wrap around."""
    n = smooth(x.shape[2] + h.shape[1] - 1)
    channels = max(1, wider(AT_ONCE, x) // (n * x.shape[0]))
    for x_, h_ in zip(x.split(channels, 1), h.split(channels, 0), strict=True):
        yield rfft(x_.contiguous(), n), rfft(h_, n), n


def smooth(n: int) -> int:
    """The least length of at least n that is 1, 3, 5, 9 or 15 times a power of two: the FFT is slow at primes."""
    return min(odd << max(0, (-(-n // odd) - 1).bit_length()) for odd in (1, 3, 5, 9, 15))
