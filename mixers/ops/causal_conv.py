"""Causal convolution with filters of any length.

    y_t = sum_l h_l x_{t-l}

Short filters are summed directly; long ones go through the FFT (Gu et al., 2021, https://arxiv.org/abs/2111.00396,
section 2.4).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mixers.ops.precision import exact, wide

DIRECT = 16  # up to this many taps a direct sum is faster than two transforms


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
    dtype = wide(x.dtype)
    if T == 1:  # one sum needs no transform
        return (seen.to(dtype) * h.to(dtype).mT.flip(0)).sum(1, keepdim=True).to(x.dtype), last
    n = smooth(seen.shape[1] + taps - 1)
    spectrum = torch.fft.rfft(seen.to(dtype), n, dim=1) * torch.fft.rfft(h.to(dtype), n, dim=1).mT
    y = torch.fft.irfft(spectrum, n, dim=1)[:, seen.shape[1] - T : seen.shape[1]]
    return y.to(x.dtype), last


def smooth(n: int) -> int:
    """The least length of at least n that is 1, 3, 5, 9 or 15 times a power of two: the FFT is slow at primes."""
    return min(odd << max(0, (-(-n // odd) - 1).bit_length()) for odd in (1, 3, 5, 9, 15))
