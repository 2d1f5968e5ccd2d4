"""How Python's tensors get to the C kernels, and which do."""

import ctypes
import functools
from collections.abc import Callable
from ctypes import c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from mixers.ops.native import build

FLOATS = (torch.float32, torch.bfloat16)
PLAIN = (Tensor, torch.nn.Parameter)


class View(ctypes.Structure):
    """The C sources' `tensor`."""

    _fields_ = [("data", c_void_p), *((name, c_int64) for name in ("b", "h", "t", "width", "bf16", "group"))]


def view(x: Tensor | None, heads: int = 1):
    """x (B, T, D), or (B, H', T, D) to be shared by so many heads, dense in D. The caller keeps x alive."""
    if x is None:
        return None
    b, *h, t, _ = x.stride()
    bf16, group = x.dtype == torch.bfloat16, heads // x.shape[1] if h else 1
    return ctypes.byref(View(x.data_ptr(), b, h[0] if h else 0, t, x.shape[-1], bf16, group))


def floats(*shape: int) -> Tensor:
    """Room for a kernel to write to: float32, whatever the caller's default dtype and device are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def at(x: Tensor | None) -> int | None:
    """Where the numbers of a dense tensor are. The caller keeps x alive."""
    return None if x is None else x.data_ptr()


@functools.cache
def kernel(name: str, signature: str) -> Callable[..., Any]:
    """A C function. The signature has p for a pointer, i for an integer; spaces are for the reader."""
    function = getattr(build.library(), name)
    function.argtypes = [{"p": c_void_p, "i": c_int64}[letter] for letter in signature.replace(" ", "")]
    function.restype = c_int64 if name.endswith("_room") else None
    return function


def plain(*xs: Tensor | None, dtypes: tuple[torch.dtype, ...] = FLOATS) -> bool:
    """Whether these are ordinary tensors of such dtypes, on the CPU, with numbers in them."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    for x in xs:  # a loop, and no generator, is what a single token's time can be spent on
        if x is None:
            continue
        if type(x) not in PLAIN or x.dtype not in dtypes or not (x.is_cpu and x.layout is torch.strided and x.numel()):
            return False
    return True


def dense(x: Tensor | None) -> Tensor | None:
    """x, dense in its last dimension, without a pending sign or conjugation."""
    if x is None:
        return None
    x = x.resolve_neg()
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def recorded(*xs: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in xs)


def refuse_a_second_derivative(name: str) -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(f"the gradient of {name} cannot be differentiated: drop create_graph=True")


def fits(keys: tuple[Tensor, ...], v: Tensor, g: Tensor | None, state: Tensor | None) -> bool:
    """Whether keys (B, H', T, K), v (B, H, T, V), g (B, H or H', T, 1 or K) and state (B, H, K, V) go together."""
    if not plain(*keys, v, g, state) or v.ndim != 4 or keys[0].ndim != 4:
        return False
    (B, H, T, V), shape = v.shape, keys[0].shape
    few, K = shape[1], shape[3]
    if H % few or shape != (B, few, T, K):
        return False
    for key in keys:
        if key.shape != shape:
            return False
    if state is not None and (state.shape != (B, H, K, V) or state.dtype != torch.float32):
        return False
    return g is None or g.shape in ((B, H, T, 1), (B, H, T, K), (B, few, T, 1), (B, few, T, K))


def step(q: Tensor, k: Tensor, p: Tensor | None, v: Tensor, g: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
    """A single token through step.c, and the state after it; what is not dense float32 is made so."""
    (B, H, _, V), dtype = v.shape, v.dtype
    q, k, v, state = spread_out(q, H), spread_out(k, H), spread_out(v, H), spread_out(state, H)
    p, g = None if p is None else spread_out(p, H), None if g is None else spread_out(g, H)
    last, o = torch.empty_like(state), torch.empty_like(v)
    kernel("step", "iii ppppp i ppp")(
        *(B * H, q.shape[3], V, at(q), at(k), at(p), at(v), at(g), 0 if g is None else g.shape[3]),
        *(at(state), at(last), at(o)),
    )
    return o if dtype is torch.float32 else o.to(dtype), last


def spread_out(x: Tensor, heads: int) -> Tensor:
    """x (B, H', 1, D) as dense float32, for each head."""
    if x.shape[1] != heads:
        x = x.repeat_interleave(heads // x.shape[1], 1)
    return numbers(x)


def numbers(x: Tensor) -> Tensor:
    """x, dense and in float32: asking takes a tenth of the time that doing nothing takes."""
    if x.dtype is torch.float32 and x.is_contiguous() and not x.is_neg():
        return x
    return x.float().resolve_neg().contiguous()


def gradient(x: Tensor | None, heads: int) -> Tensor | None:
    """Room for x's gradient, each head by itself."""
    if x is None or x.shape[1] == heads:
        return None if x is None else torch.empty_like(x)
    return floats(x.shape[0], heads, *x.shape[2:])


def gathered(dx: Tensor | None, x: Tensor | None) -> Tensor | None:
    """The gradient of x, from that of each head."""
    if dx is None or x is None or dx.shape == x.shape:
        return dx
    return dx.unflatten(1, (x.shape[1], -1)).sum(2).to(x.dtype)
