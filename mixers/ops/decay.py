"""Sums of log-decays in chunks, each formed by adding, never subtracting: exact at g = -1e4, and -inf is a reset."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of states, sums and exponents: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def exact(engine: Callable) -> Callable:
    """The engine outside of autocast, which would round states and sums to bfloat16."""

    @functools.wraps(engine)
    def wrapped(*tensors, **options):
        kind = next(x for x in (*tensors, *options.values()) if isinstance(x, Tensor)).device.type
        if kind == "meta" or not torch.is_autocast_enabled(kind):  # meta tensors know no autocast
            return engine(*tensors, **options)
        with torch.autocast(kind, enabled=False):
            return engine(*tensors, **options)

    return wrapped


def chunks(x: Tensor, size: int) -> Tensor:
    """(B, H, T, D) -> (B, H, n, size, D), zeros after the end: no write, no decay, an output that is cut off."""
    padded = torch.nn.functional.pad(x, (0, 0, 0, -x.shape[2] % size))
    return padded.unflatten(2, (-1, size))


def since_start(g: Tensor) -> Tensor:
    """g (..., C, D) -> the sum over s <= i."""
    return g.cumsum(-2)


def until_end(g: Tensor) -> Tensor:
    """g (..., C, D) -> the sum over s > j."""
    later = torch.cat([g[..., 1:, :], torch.zeros_like(g[..., :1, :])], -2)
    return later.flip(-2).cumsum(-2).flip(-2)


def between(g: Tensor) -> Tensor:
    """g (..., C, D) -> (..., C, C, D): e to the sum over j < s <= i, and 0 where j > i."""
    size = g.shape[-2]
    later = torch.ones(size, size, dtype=torch.bool, device=g.device).tril(-1).unsqueeze(-1)  # row s, column j: s > j
    sums = torch.where(later, g.unsqueeze(-2), 0).cumsum(-3)
    seen = torch.ones(size, size, dtype=torch.bool, device=g.device).tril().unsqueeze(-1)
    return torch.where(seen, sums, -torch.inf).exp()
