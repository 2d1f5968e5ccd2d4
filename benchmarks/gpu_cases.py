"""The ops as `benchmarks.gpu` checks and measures them: inputs, definitions, FLA's own functions, and their floors."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mixers.ops.attention import attention, attention_definition
from mixers.ops.causal_conv import causal_conv, causal_conv_definition
from mixers.ops.dplr import dplr, dplr_definition
from mixers.ops.fla.calls import kernel
from mixers.ops.gated_delta import delta_rule, gated_delta, gated_delta_definition
from mixers.ops.linear_attention import linear_attention, linear_attention_definition
from mixers.ops.log_linear import log_linear, log_linear_definition
from mixers.ops.scan import scan, scan_definition
from mixers.ops.selective_scan import selective_scan, selective_scan_definition

Inputs = dict[str, Tensor]


class Sizes(NamedTuple):
    """Heads, the widths of their keys and values, states per channel of the selective scan; channels are heads times
    values' width.
    """

    H: int = 16
    K: int = 128
    V: int = 128
    N: int = 16

    @property
    def channels(self) -> int:
        return self.H * self.V


class Case(NamedTuple):
    make: Callable[[int, int, Sizes], Inputs]  # of (batch, tokens, sizes), in float32
    op: Callable
    definition: Callable
    flops: Callable[[int, Sizes], float]  # per token, forward and backward, at the least
    fla: Callable | None = None  # FLA's own function, of `streams`
    state: Callable[[int, Sizes], Tensor] | None = None
    wide: tuple[str, ...] = ("g", "gv", "state")  # what stays in float32


def heads(B: int, T: int, s: Sizes) -> Inputs:
    q, k, v = (torch.randn(B, s.H, T, width) for width in (s.K, s.K, s.V))
    return {"q": q * s.K**-0.5, "k": F.normalize(k, dim=-1), "v": v}


def scalar(B: int, T: int, s: Sizes) -> Inputs:
    return heads(B, T, s) | {"g": decays(B, s.H, T, 1)}


def channel(B: int, T: int, s: Sizes) -> Inputs:
    return heads(B, T, s) | {"g": decays(B, s.H, T, s.K)}


def decays(*shape: int) -> Tensor:
    """Most of them weak, some strong: memories of 1 to 1000 tokens."""
    return -torch.exp(torch.rand(*shape) * math.log(1000.0)) / 1000


def beta(make: Callable) -> Callable:
    return lambda B, T, s: make(B, T, s) | {"beta": torch.rand(B, s.H, T, 1)}


def erase(B: int, T: int, s: Sizes) -> Inputs:
    """p is another vector than k, and no longer than it."""
    x = scalar(B, T, s)
    p = 0.5 * x["k"] + 0.4 * F.normalize(torch.randn(B, s.H, T, s.K), dim=-1)
    return {"q": x["q"], "k": x["k"], "p": p, "z": x["v"], "g": x["g"]}


def steered(B: int, T: int, s: Sizes) -> Inputs:
    x = channel(B, T, s)
    kappa = F.normalize(torch.randn(B, s.H, T, s.K), dim=-1)
    return x | {"a": -kappa * torch.rand(B, s.H, T, s.K), "b": kappa, "g": x["g"].clamp(min=-0.6)}


def rows(B: int, T: int, s: Sizes) -> Inputs:
    return {"a": torch.rand(B, T, s.channels), "b": torch.randn(B, T, s.channels)}


def complex_rows(B: int, T: int, s: Sizes) -> Inputs:
    a = torch.polar(torch.rand(B, T, s.channels), 3 * torch.rand(B, T, s.channels))
    return {"a": a, "b": torch.randn(B, T, s.channels, dtype=torch.complex64)}


def selective(B: int, T: int, s: Sizes) -> Inputs:
    streams = {"x": torch.randn(B, T, s.channels), "dt": 0.1 * torch.rand(B, T, s.channels)}
    A = -torch.arange(1.0, s.N + 1).repeat(s.channels, 1)
    return streams | {"A": A, "B": torch.randn(B, T, s.N), "C": torch.randn(B, T, s.N), "D": torch.ones(s.channels)}


def filtered(B: int, T: int, s: Sizes) -> Inputs:
    return {"x": torch.randn(B, T, s.channels), "h": torch.randn(s.channels, T) / T**0.5}


def levels(B: int, T: int, s: Sizes) -> Inputs:
    x = scalar(B, T, s)
    return {"q": x["q"], "k": x["k"], "z": x["v"], "weight": torch.rand(B, s.H, T, T.bit_length() + 1), "g": x["g"]}


def matrix(B: int, s: Sizes) -> Tensor:
    return torch.randn(B, s.H, s.K, s.V)


def delta_definition(q, k, v, beta, g=None, state=None):
    return gated_delta_definition(q, k, beta * k, beta * v, g, state)


def streams(x: Inputs) -> Inputs:
    """In FLA's layout: (B, T, H, D), one number per head without its dimension."""
    moved = {n: t.transpose(1, 2).contiguous() if t.ndim == 4 and n != "state" else t for n, t in x.items()}
    return {n: t.squeeze(-1) if n in ("g", "beta") and t.shape[-1] == 1 else t for n, t in moved.items()}


def fla(family: str, name: str, **names: str) -> Callable:
    """FLA's function, its names for our inputs where they differ."""

    def call(state=None, **x):
        x = {names.get(n, n): t for n, t in x.items()}
        options = {"normalize": False} if name == "chunk_linear_attn" else {}
        return kernel(family, name)(**x, scale=1.0, initial_state=state, output_final_state=True, **options)

    return call


def fla_scan(a, b, state=None):
    return kernel("hgrn", "fused_recurrent_hgrn")(x=b, g=a.log(), initial_state=state, output_final_state=True)


def sdpa(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True), None


def per_state(times: int) -> Callable[[int, Sizes], float]:
    """So many multiplications of each number of the state per token, with as much twice again backwards."""
    return lambda T, s: 3 * times * 2 * s.H * s.K * s.V


def transform(T: int, s: Sizes) -> float:
    return 3 * 3 * 2.5 * s.channels * math.log2(2 * T) * 2


def nothing(T: int, s: Sizes) -> float:
    return 0.0


def row(B: int, s: Sizes) -> Tensor:
    return torch.randn(B, s.channels)


CASES = {
    "linear_attention, no decay": Case(
        heads,
        linear_attention,
        linear_attention_definition,
        per_state(2),
        fla("linear_attn", "chunk_linear_attn"),
        matrix,
    ),
    "linear_attention, scalar decay": Case(
        scalar,
        linear_attention,
        linear_attention_definition,
        per_state(2),
        fla("simple_gla", "chunk_simple_gla"),
        matrix,
    ),
    "linear_attention, decay per channel": Case(
        channel, linear_attention, linear_attention_definition, per_state(2), fla("gla", "chunk_gla"), matrix
    ),
    "linear_attention, bonus": Case(
        lambda B, T, s: channel(B, T, s) | {"u": torch.rand(s.H, s.K)},
        linear_attention,
        linear_attention_definition,
        per_state(2),
        fla("rwkv6", "chunk_rwkv6", q="r", g="w"),
        matrix,
        wide=("g", "u", "state"),
    ),
    "linear_attention, decay of values": Case(
        lambda B, T, s: heads(B, T, s) | {"gv": decays(B, s.H, T, s.V)},
        linear_attention,
        linear_attention_definition,
        per_state(2),
        None,
        matrix,
    ),
    "delta_rule, no decay": Case(
        beta(heads), delta_rule, delta_definition, per_state(3), fla("delta_rule", "chunk_delta_rule"), matrix
    ),
    "delta_rule, scalar decay": Case(
        beta(scalar),
        delta_rule,
        delta_definition,
        per_state(3),
        fla("gated_delta_rule", "chunk_gated_delta_rule"),
        matrix,
    ),
    "delta_rule, decay per channel": Case(
        beta(channel), delta_rule, delta_definition, per_state(3), fla("kda", "chunk_kda"), matrix
    ),
    "gated_delta, any p": Case(erase, gated_delta, gated_delta_definition, per_state(3), None, matrix),
    "dplr": Case(
        steered,
        dplr,
        dplr_definition,
        per_state(4),
        fla("generalized_delta_rule.dplr", "chunk_dplr_delta_rule", a="b", b="a", g="gk"),
        matrix,
    ),
    "scan": Case(rows, scan, scan_definition, nothing, fla_scan, row, wide=("a", "state")),
    "scan, complex": Case(complex_rows, scan, scan_definition, nothing),
    "selective_scan": Case(
        selective,
        selective_scan,
        selective_scan_definition,
        nothing,
        None,
        lambda B, s: torch.randn(B, s.channels, s.N),
        wide=("dt", "A", "D", "state"),
    ),
    "causal_conv, L = T": Case(filtered, causal_conv, causal_conv_definition, transform, wide=("h",)),
    "log_linear": Case(levels, log_linear, log_linear_definition, lambda T, s: per_state(2)(T, s) * math.log2(T)),
    "attention": Case(heads, attention, attention_definition, lambda T, s: 3.5 * s.H * (s.K + s.V) * T),
}
OWN = {"attention": ("SDPA", sdpa)} | {name: ("FLA", case.fla) for name, case in CASES.items() if case.fla}


def inputs(case: Case, B: int, T: int, sizes: Sizes, dtype: torch.dtype, device: str, state: bool) -> Inputs:
    """The same numbers whatever runs: leaves that ask for gradients."""
    torch.manual_seed(0)
    with torch.device(device):  # a GPU takes milliseconds for what takes a CPU seconds
        x = case.make(B, T, sizes)
        if state and case.state is not None:
            x["state"] = case.state(B, sizes)
    kept = {n: t if n in case.wide or t.is_complex() else t.to(dtype) for n, t in x.items()}
    return {n: t.requires_grad_() for n, t in kept.items()}
