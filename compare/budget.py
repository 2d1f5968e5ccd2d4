"""What a model costs before anything is computed: parameters, state bytes and FLOPs, measured, never a formula.

State and FLOPs are measured on the meta device: real shapes and dtypes, nothing computed, so 64k tokens are cheap.
Models are called as `model(tokens, states) -> (output, states)` with tokens (B, T) int64.
"""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from hydra.errors import HydraException
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from mixers.base import Mixer, State

aten = torch.ops.aten
TOLERANCE = 0.02  # of a budget that counts as met
LARGEST = 1 << 20  # size that is tried
GAP = 128  # sizes in a row that a mixer may refuse, for instance because they do not divide


def parameters(model: nn.Module) -> dict[str, int]:
    """How many numbers are learned: {"total", "mixer", "embedding"}; shared ones count once."""

    def count(kind: type[nn.Module]) -> int:
        modules = (module for module in model.modules() if isinstance(module, kind))
        return sum(p.numel() for p in {p for module in modules for p in module.parameters()})

    return {"total": count(nn.Module), "mixer": count(Mixer), "embedding": count(nn.Embedding)}


def tensors(state: State | list | dict) -> Iterator[Tensor]:
    """The tensors of a nested state."""
    if isinstance(state, Tensor):
        yield state
    elif state is not None:
        for part in state.values() if isinstance(state, dict) else state:
            yield from tensors(part)


@torch.no_grad()
def state_bytes(make_model: Callable[[], nn.Module], length: int, batch: int = 1) -> int:
    """The bytes of the state after `length` tokens, summed over the layers; a pair's two sequences count both."""
    model = _on_meta(make_model)
    with Counter():
        _, states = model(_tokens(model, length, batch))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors(states))


@torch.no_grad()
def flops(make_model: Callable[[], nn.Module], length: int) -> dict[str, float | None]:
    """FLOPs per token at `length` tokens and batch 1; a multiply-add is two.

    Counted are matrix products, convolutions, FFTs, triangular solves, exp and cumsum; other elementwise work is not.
    Training is three forwards by convention. Decoding is the last of the `length` tokens, given the state before it; it
    is None for a model that looks ahead and for pairs.
    """
    model = _on_meta(make_model)
    tokens = _tokens(model, length)
    forward = _count(lambda: model(tokens)) / tokens.numel()
    decode = None
    if tokens.ndim == 2 and all(module.causal for module in model.modules() if isinstance(module, Mixer)):
        states = model(tokens[:, 1:])[1] if length > 1 else None
        decode = float(_count(lambda: model(tokens[:, :1], states)))
    return {
        "at": length,
        "forward_per_token": forward,
        "training_per_token": 3 * forward,
        "decode_per_token": decode,
    }


def cost(make_model: Callable[[], nn.Module], by: str, length: int) -> float:
    """What is matched: "params" of the model's backbone, "state" bytes after `length` tokens, or "flops" per token of a
    forward over as many."""
    if by == "params":
        return parameters(_on_meta(make_model).get_submodule("backbone"))["total"]
    if by == "state":
        return state_bytes(make_model, length)
    model = _on_meta(make_model)
    tokens = _tokens(model, length)
    with torch.no_grad():
        return _count(lambda: model(tokens)) / tokens.numel()


def solve(measure: Callable[[dict[str, int]], float], sizes: dict[str, int], target: float) -> tuple[dict, float]:
    """The sizes whose measure is closest to the target, and that measure. One size alone is moved, the first that comes
    within TOLERANCE; where none does, each after those before it. A measure must rise with a size, or fall with it;
    sizes for which it raises are left out.
    """
    measure = _once(measure)
    best, reached = dict(sizes), measure(sizes)
    for names in (*((name,) for name in sizes), tuple(sizes)):
        start, value = dict(sizes), measure(sizes)
        for name in names:
            if abs(reached - target) <= TOLERANCE * target:
                return best, reached
            near = _approach(lambda n, s=dict(start), k=name: measure(s | {k: n}), start[name], value, target)
            for n, got in near:
                if abs(got - target) < abs(value - target):
                    start, value = start | {name: n}, got
        if abs(value - target) < abs(reached - target):
            best, reached = start, value
    return best, reached


def _once(measure: Callable[[dict[str, int]], float]) -> Callable[[dict[str, int]], float]:
    known: dict[tuple, float] = {}

    def remembered(sizes: dict[str, int]) -> float:
        key = tuple(sizes.items())
        if key not in known:
            known[key] = measure(sizes)
        return known[key]

    return remembered


def _approach(measure: Callable[[int], float], n: int, value: float, target: float) -> Iterator[tuple[int, float]]:
    """Sizes and what they measure, ever closer to the target: from n, where the measure is `value`, in doublings and
    halvings until two of them have the target between them, and then by bisection."""

    def first(start: int, stop: int) -> tuple[int, float] | None:
        """The smallest size from start up to, not including, stop, that can be measured."""
        for m in range(max(1, start), min(stop, start + GAP)):
            try:
                return m, measure(m)
            except (ValueError, RuntimeError, HydraException):
                continue
        return None

    for step in (lambda m: first(2 * m, LARGEST), lambda m: first(m // 2, m)):
        at, last = n, value
        while (tried := step(at)) is not None:
            yield tried
            if (last - target) * (tried[1] - target) <= 0:
                (low, below), (high, above) = sorted([(at, last), tried])
                while high - low > 1:
                    middle = (low + high) // 2
                    if (tried := first(middle, high)) is None:
                        high = middle
                        continue
                    yield tried
                    low, high = (tried[0], high) if (tried[1] < target) == (above > below) else (low, middle)
                return
            if abs(tried[1] - target) >= abs(last - target):  # away from it, or it moves nothing any more
                break
            at, last = tried


def _on_meta(make_model: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return make_model().eval()


def _tokens(model: nn.Module, length: int, batch: int = 1) -> Tensor:
    """(B, T), or (B, 2, T) for a model of pairs, which says so by `pool`."""
    shape = (batch, 2, length) if getattr(model, "pool", None) == "pair" else (batch, length)
    return torch.zeros(shape, dtype=torch.int64, device="meta")


def _count(call: Callable[[], object]) -> int:
    with Counter() as counter, _VisiblePairs(counter) as hidden:
        call()
    return counter.flops - hidden.flops


KNOWN: dict[tuple, tuple] = {}  # what Counter remembers


class Counter(TorchDispatchMode):
    """Adds up FLOPs of operations on meta, by torch's own formulas and those below.

    What such an operation returns and costs depends on shapes, strides, dtypes and constants only, and is remembered by
    them: most of torch's kernels for meta are Python, and to work it out again takes ten times longer.
    """

    def __init__(self):
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.is_view:
            return func(*args, **kwargs)
        key = (func, _signature(args), _signature(tuple(kwargs.items())))
        if key not in KNOWN:
            out = func(*args, **kwargs)
            formula = FORMULAS.get(func._overloadpacket)
            flops = formula(*args, **kwargs, out_val=out) if formula else 0
            self.flops += flops
            parts = out if isinstance(out, tuple | list) else (out,)
            if not func._schema.is_mutable and all(isinstance(part, Tensor) and part.is_meta for part in parts):
                KNOWN[key] = flops, type(out), [(part.shape, part.stride(), part.dtype) for part in parts]
            return out
        flops, kind, parts = KNOWN[key]
        self.flops += flops
        made = [torch.empty_strided(shape, stride, dtype=dtype, device="meta") for shape, stride, dtype in parts]
        return made[0] if issubclass(kind, Tensor) else kind(made)


def _signature(value):
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, tuple | list):
        return tuple(map(_signature, value))
    return type(value), value  # for 1 == 1.0 == True


class _VisiblePairs(TorchFunctionMode):
    """Collects what attention does not need, of pairs that do not see each other: on meta it is two full products."""

    def __init__(self, counter: Counter):
        super().__init__()
        self.counter, self.flops = counter, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        before = self.counter.flops
        out = func(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention:
            visible, pairs = _pairs(*args, **(kwargs or {}))
            counted = self.counter.flops - before
            self.flops += counted - counted * visible // pairs
        return out


def _pairs(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """How many pairs of a query and a key are visible, and how many there are. What a mask hides counts as visible,
    unless the mask knows better: that of mixers.ops.attention does."""
    T, S = query.shape[-2], key.shape[-2]
    if is_causal:
        return sum(min(t + 1, S) for t in range(T)), T * S  # it starts at the top left
    return getattr(attn_mask, "pairs", T * S), T * S


def _fft(x, dims, *rest, out_val=None) -> int:
    """5 n log2 n for each transform of n points; the longer side of a real one is the real side."""
    full = x if x.numel() >= out_val.numel() else out_val
    points = math.prod(full.shape[d] for d in dims)
    return round(5 * full.numel() * math.log2(points)) if points > 1 else 0


def _solve(A, B, *, upper, left=True, unitriangular=False, out_val=None) -> int:
    """n^2 multiply-adds halved by the triangle, so n^2 FLOPs, for each of the right-hand sides."""
    return out_val.numel() * A.shape[-1]


def _elements(x, *rest, out_val=None, **options) -> int:
    return x.numel()


def _dot(x, y, *, out_val=None) -> int:
    return 2 * x.numel()


def _mv(A, x, *, out_val=None) -> int:
    return 2 * A.numel()


def _addmv(b, A, x, *, beta=1, alpha=1, out_val=None) -> int:
    return 2 * A.numel()


def _product(op):
    """The counter's own formula, times four for complex numbers, which it takes for real ones."""

    def formula(*args, out_val=None, **options) -> int:
        return flop_registry[op](*args, out_val=out_val, **options) * (4 if out_val.is_complex() else 1)

    return formula


FORMULAS = {
    **flop_registry,
    **dict.fromkeys((aten._fft_r2c, aten._fft_c2c, aten._fft_c2r), _fft),
    **dict.fromkeys((aten.exp, aten.exp_, aten.cumsum, aten.cumsum_), _elements),
    **dict.fromkeys((aten.dot, aten.vdot), _dot),
    aten.linalg_solve_triangular: _solve,
    aten.mv: _mv,
    aten.addmv: _addmv,
    **{op: _product(op) for op in (aten.mm, aten.addmm, aten.bmm, aten.baddbmm)},
}
