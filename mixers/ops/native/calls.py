"""How Python's tensors get to the C kernels, and which do."""

import ctypes
import functools
from collections.abc import Callable
from ctypes import c_int64, c_void_p

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
def kernel(name: str, signature: str) -> Callable[..., None]:
    """A C function. The signature has p for a pointer, i for an integer; spaces are for the reader."""
    function = getattr(build.library(), name)
    function.argtypes = [{"p": c_void_p, "i": c_int64}[letter] for letter in signature.replace(" ", "")]
    function.restype = c_int64 if name.endswith("_room") else None
    return function


def plain(*xs: Tensor | None, dtypes: tuple[torch.dtype, ...] = FLOATS) -> bool:
    """Whether these are ordinary tensors of such dtypes, on the CPU, with numbers in them."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    return all(
        x is None or (type(x) in PLAIN and x.dtype in dtypes and x.is_cpu and x.layout == torch.strided and x.numel())
        for x in xs
    )


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
    if not plain(*keys, v, g, state) or any(x.ndim != 4 for x in (*keys, v)):
        return False
    (B, H, T, V), (_, few, _, K) = v.shape, keys[0].shape
    if H % few or any(x.shape != (B, few, T, K) for x in keys):
        return False
    if state is not None and (state.shape != (B, H, K, V) or state.dtype != torch.float32):
        return False
    return g is None or g.shape in ((B, heads, T, width) for heads in (H, few) for width in (1, K))


def step(q: Tensor, k: Tensor, p: Tensor | None, v: Tensor, g: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
    """A single token through step.c, and the state after it; what is not dense float32 is made so."""
    (B, H, _, V), K = v.shape, q.shape[3]
    heads = (None if x is None else spread_out(x, H) for x in (q, k, p, v, g))
    q_, k_, p_, v_, g_ = heads
    last, o = torch.empty_like(state), floats(B, H, 1, V)
    width = 0 if g is None else g.shape[3]
    kernel("step", "iii ppppp i ppp")(
        *(B * H, K, V, at(q_), at(k_), at(p_), at(v_), at(g_), width, at(state), at(last), at(o))
    )
    return o.to(v.dtype), last


def spread_out(x: Tensor, heads: int) -> Tensor:
    """x (B, H', 1, D) as dense float32, for each head."""
    if x.shape[1] != heads:
        x = x.repeat_interleave(heads // x.shape[1], 1)
    return x.float().contiguous()


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
