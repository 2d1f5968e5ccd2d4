"""What the tests of mixers share: a mixer against a plain statement of its paper, outputs and gradients."""

import torch
import torch.nn.functional as F

from mixers import registry

D, HEADS, T = 16, 2, 21


def make(name, **knobs):
    torch.manual_seed(0)
    mixer = registry.build(name, D, **knobs).double()
    with torch.no_grad():  # away from initial values at which terms vanish
        for parameter in mixer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return mixer


def agrees(mixer, plain, tolerance=1e-8):
    """Both are functions of x (B, T, D): the same outputs, and the same gradients of x and of every parameter."""
    x = torch.randn(2, T, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    weights = torch.randn(2, T, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    inputs = [x, *mixer.parameters()]
    results = []
    for y in (mixer(x)[0], plain(mixer, x)):
        results.append([y, *torch.autograd.grad((y * weights).sum(), inputs)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def split(x, n=HEADS):
    """(B, T, n d) -> a list over heads of (B, T, d)."""
    return list(x.chunk(n, -1))


def conv(short, x):
    """The short convolution, tap by tap."""
    out = torch.zeros_like(x)
    for t in range(x.shape[1]):
        for l in range(min(t + 1, short.weight.shape[1])):
            out[:, t] = out[:, t] + short.weight[:, l] * x[:, t - l]
    return out if short.bias is None else out + short.bias


def unit(x):
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def rms(norm, x):
    y = x / (x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt()
    return y if norm.weight is None else y * norm.weight


def glu(linear, y):
    value, gate = linear(F.gelu(y)).chunk(2, -1)
    return value * gate.sigmoid()


def attend(q, k, v, bias=None, sees=lambda i, j: j <= i):
    """One head, row by row: (B, T, d) each; bias(i, j) (B,); sees(i, j): whether i looks at j, causal by default."""
    rows = []
    for i in range(q.shape[1]):
        seen = [j for j in range(q.shape[1]) if sees(i, j)]
        logits = torch.stack([(q[:, i] * k[:, j]).sum(-1) * q.shape[-1] ** -0.5 for j in seen], -1)
        if bias is not None:
            logits = logits + torch.stack([bias(i, j) for j in seen], -1)
        rows.append(torch.einsum("bj,bjd->bd", logits.softmax(-1), v[:, seen]))
    return torch.stack(rows, 1)


def rotate(x, base=10000.0):
    """Pairs (x_n, x_{n + d / 2}) as complex numbers, turned by t base^{-2n / d}."""
    half = x.shape[-1] // 2
    z = torch.complex(x[..., :half], x[..., half:])
    angle = torch.arange(x.shape[1], dtype=x.dtype)[:, None] * base ** (-torch.arange(half, dtype=x.dtype) / half)
    z = z * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([z.real, z.imag], -1)
