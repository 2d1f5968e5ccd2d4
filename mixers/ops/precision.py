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
        kind = next(x for x in (*tensors, *options.values()) if isinstance(x, Tensor)).device.type
        if kind == "meta" or not torch.is_autocast_enabled(kind):  # meta tensors know no autocast
            return engine(*tensors, **options)
        with torch.autocast(kind, enabled=False):
            return engine(*tensors, **options)

    return wrapped


def widened(definition: Callable, dtype: torch.dtype, *xs, **more) -> tuple[Tensor, Tensor]:
    """The definition in wide precision, o in `dtype`: for a single token nothing is faster."""
    to = wide(dtype)
    more = {name: None if x is None else x.to(to) for name, x in more.items()}
    o, state = definition(*(None if x is None else x.to(to) for x in xs), **more)
    return o.to(dtype), state
