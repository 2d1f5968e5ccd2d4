"""In what precision engines compute."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of states, sums and exponents: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def exact(engine: Callable) -> Callable:
    """The engine, or its backward pass, outside of autocast, which would round states and sums to bfloat16."""

    @functools.wraps(engine)
    def wrapped(*tensors, **options):
        if not torch._C._is_any_autocast_enabled():  # the usual case, in a tenth of the time
            return engine(*tensors, **options)
        kind = next(x for x in (*tensors, *options.values()) if isinstance(x, Tensor)).device.type
        if kind == "meta" or not torch.is_autocast_enabled(kind):  # meta tensors know no autocast
            return engine(*tensors, **options)
        with torch.autocast(kind, enabled=False):
            return engine(*tensors, **options)

    return wrapped


def widened(step: Callable, dtype: torch.dtype, *xs: Tensor | None) -> tuple[Tensor, Tensor]:
    """A step in wide precision, o in `dtype`."""
    to = wide(dtype)
    o, state = step(*(x if x is None or x.dtype == to else x.to(to) for x in xs))  # asking is faster than `to`
    return (o if o.dtype == dtype else o.to(dtype)), state
