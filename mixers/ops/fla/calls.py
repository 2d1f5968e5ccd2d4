"""Whether fla-core can serve here, and how tensors get to its kernels: (B, T, H, D), gates in float32."""

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

LEAST_VERSION = (0, 6, 0)
HALF = (torch.bfloat16, torch.float16)
FLOATS = (torch.float32, *HALF)
NARROWEST, WIDEST = 16, 256  # of keys: tensor cores multiply no less than 16, and most kernels hold no more than 256
NARROW = 64  # the least width at which kernels without a decay are right, see `miscompiled`
FORGOTTEN = -30.0  # a log-decay below is as good as -inf, of which the kernels would take differences: exp(-30) = 1e-13
EXCLUSION = (
    "kernels per channel serve scalar decays too, since this Triton miscompiles the gradient of theirs on Hopper"
)


def obstacle() -> str:
    """Why fla-core cannot be used here; "" where it can. Cheap answers first: importing it takes seconds."""
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install 'seqmix[cuda]'"
    os.environ.setdefault("FLA_DISABLE_BACKEND_DISPATCH", "1")  # the same kernels whatever else is installed
    try:
        importlib.import_module("fla.ops")
        found = metadata.version("fla-core")
    except (ImportError, metadata.PackageNotFoundError) as error:
        return f"fla-core cannot be imported ({error}): pip install 'seqmix[cuda]'"
    if version(found) < LEAST_VERSION:
        return f"fla-core {found} is too old: pip install 'fla-core>={'.'.join(map(str, LEAST_VERSION))}'"
    return ""


@functools.cache
def excluded() -> bool:
    """Whether this Triton miscompiles the backward pass of the kernels for a scalar decay: 3.4 to 3.7 on Hopper
    (https://github.com/fla-org/flash-linear-attention/issues/640). fla-core refuses them; those per channel serve.
    """
    hopper = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
    return hopper and (3, 4) <= version(metadata.version("triton")) < (3, 7, 1)


def miscompiled(keys: Tensor, v: Tensor) -> bool:
    """Whether the same compilers make wrong kernels of those without a decay: in half precision, where keys or values
    are this narrow. Of narrow values gradients are wrong, up to all of them (`python -m benchmarks.gpu --parts 5`
    shows them); of narrow keys shared memory is read beyond its end, as compute-sanitizer saw of one configuration in
    six. Kernels per channel are right at all widths.
    """
    return min(keys.shape[3], v.shape[3]) < NARROW and v.dtype in HALF and excluded()


def version(text: str) -> tuple[int, ...]:
    """(3, 7, 1) of "3.7.1+git"."""
    numbers = []
    for part in text.split("+")[0].split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


@functools.cache
def kernel(family: str, name: str) -> Callable[..., Any]:
    return getattr(importlib.import_module(f"fla.ops.{family}"), name)


def fits(
    keys: tuple[Tensor, ...],
    v: Tensor,
    g: Tensor | None,
    state: Tensor | None,
    dtypes: tuple[torch.dtype, ...] = FLOATS,
    widest: int = WIDEST,
) -> bool:
    """Whether keys (B, H', T, K), v (B, H, T, V), g (B, H or H', T, 1 or K) and state (B, H, K, V) go together, and are
    of a dtype and width that the kernels take. A single token is left to torch: there, nothing is faster.
    """
    if any(x.ndim != 4 for x in (*keys, v)) or v.dtype not in dtypes or torch._C._functorch.maybe_current_level():
        return False
    if any(x is not None and x.dtype not in FLOATS for x in (*keys, g, state)):
        return False
    (B, H, T, V), (_, few, _, K) = v.shape, keys[0].shape
    if not v.numel() or T == 1 or H % few or any(x.shape != (B, few, T, K) for x in keys):
        return False
    if not (NARROWEST <= K <= widest and V >= NARROWEST) or (v.dtype in HALF and (K % 2 or V % 2)):
        return False
    if state is not None and state.shape != (B, H, K, V):
        return False
    return g is None or g.shape in ((B, heads, T, width) for heads in (H, few) for width in (1, K))


def stream(x: Tensor, dtype: torch.dtype, heads: int) -> Tensor:
    """(B, H', T, D) -> (B, T, H, D), with as many heads as asked for."""
    if x.shape[1] != heads:
        x = x.repeat_interleave(heads // x.shape[1], 1)
    return x.to(dtype).transpose(1, 2)


def decay(g: Tensor | None, heads: int, like: Tensor) -> Tensor:
    """The log-decay of each channel of `like` (B, H', T, K): (B, T, H, K) float32, finite."""
    B, _, T, K = like.shape
    if g is None:
        return torch.zeros(B, T, heads, K, device=like.device)
    return stream(g, torch.float32, heads).clamp(min=FORGOTTEN).expand(B, T, heads, K)


def scalar(g: Tensor, heads: int) -> Tensor:
    """The log-decay of each head: (B, T, H) float32, finite."""
    return stream(g, torch.float32, heads).squeeze(-1).clamp(min=FORGOTTEN)


def initial(state: Tensor | None) -> Tensor | None:
    return None if state is None else state.float()


def returned(o: Tensor, state: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """As ops return them: o (B, H, T, V) in v's dtype, and the state in float32."""
    o, state = _Once.apply(o.transpose(1, 2).to(v.dtype), state.float())
    return o, state


class _Once(torch.autograd.Function):
    """The identity. The kernels' gradients have no graph, and a second derivative would be wrong without a word."""

    @staticmethod
    def forward(ctx, o, state):
        return o.view_as(o), state.view_as(state)

    @staticmethod
    def backward(ctx, do, dstate):
        if torch.is_grad_enabled():
            raise RuntimeError("the gradient of fla-core's kernels cannot be differentiated: drop create_graph=True")
        return do, dstate
