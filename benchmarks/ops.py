"""Our engines against what is installed of their peers: forward and backward of the operation alone.

    python -m benchmarks.ops                 # the whole table, about 20 minutes
    python -m benchmarks.ops --only delta --length 2048

One thread and CPU time, contenders interleaved in one process, so that a busy machine disturbs all alike: ratios are
of times taken right after each other, medians with their range. B = 1, H = 4, K = V = 64 (256 channels), gradients for
every input. Peak is of live tensors beyond the inputs.
"""

import argparse
import math
import platform
import sys
import time
from collections.abc import Callable
from importlib import metadata
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks import peers
from compare.speed import LiveBytes
from mixers.ops.attention import attention
from mixers.ops.causal_conv import causal_conv
from mixers.ops.gated_delta import delta_rule
from mixers.ops.linear_attention import linear_attention
from mixers.ops.scan import scan
from mixers.ops.selective_scan import selective_scan

H, D, N = 4, 64, 16
CHANNELS = H * D
SECONDS = 20.0  # for the repeats of one row
Inputs = list[torch.Tensor]


def heads(T: int) -> Inputs:
    return [torch.randn(1, H, T, D), F.normalize(torch.randn(1, H, T, D), dim=-1), torch.randn(1, H, T, D)]


def scalar(T: int) -> Inputs:
    return [*heads(T), -0.01 - torch.rand(1, H, T, 1)]


def channel(T: int) -> Inputs:
    return [*heads(T), -torch.rand(1, H, T, D)]


def delta(T: int) -> Inputs:
    return [*heads(T), torch.rand(1, H, T, 1), -torch.rand(1, H, T, 1)]


def selective(T: int) -> Inputs:
    x, dt, A = torch.randn(1, T, CHANNELS), torch.rand(1, T, CHANNELS), -torch.rand(CHANNELS, N)
    return [x, dt, A, torch.randn(1, T, N), torch.randn(1, T, N), torch.randn(CHANNELS)]


def rows(T: int) -> Inputs:
    return [torch.rand(1, T, CHANNELS), torch.randn(1, T, CHANNELS)]


def complex_rows(T: int) -> Inputs:
    return [torch.rand(1, T, CHANNELS, dtype=torch.complex64), torch.randn(1, T, CHANNELS, dtype=torch.complex64)]


def filtered(T: int) -> Inputs:
    return [torch.randn(1, T, CHANNELS), torch.randn(CHANNELS, T) / T]


def plain(T: int) -> Inputs:
    return [torch.randn(1, T, CHANNELS)]


def first(op: Callable) -> Callable:
    """The outputs without the state."""
    return lambda *inputs: op(*inputs)[0]


FAMILIES: dict[str, tuple[Callable[[int], Inputs], Callable, dict[str, Callable]]] = {
    "linear attention": (
        heads,
        first(linear_attention),
        {
            "SDPA, causal": peers.sdpa,
            "FLA naive_chunk_linear_attn": peers.fla_chunk_linear,
            "performer-pytorch": peers.performer_pytorch,
        },
    ),
    "linear attention, scalar decay": (
        scalar,
        first(linear_attention),
        {
            "transformers mamba2_chunk_scan": peers.transformers_mamba2,
            "FLA naive_chunk_simple_gla": peers.fla_chunk_scalar,
            "SDPA, causal": peers.sdpa,
        },
    ),
    "linear attention, decay per channel": (
        channel,
        first(linear_attention),
        {"FLA naive_recurrent_gla": peers.fla_recurrent_channel, "SDPA, causal": peers.sdpa},
    ),
    "gated delta": (
        delta,
        first(delta_rule),
        {
            "transformers torch_chunk_gated_delta_rule": peers.transformers_delta,
            "FLA naive_chunk_gated_delta_rule": peers.fla_chunk_delta,
        },
    ),
    "selective scan": (selective, first(selective_scan), {"mambapy pscan": peers.mambapy_selective_scan}),
    "scan": (rows, first(scan), {"mambapy pscan": peers.mambapy_scan}),
    "scan, complex": (complex_rows, first(scan), {}),
    "causal convolution, L = T": (filtered, first(causal_conv), {}),
    "attention": (heads, first(attention), {"SDPA, causal": peers.sdpa}),
    "a diagonal state space layer": (plain, peers.s5_layer, {}),
}


def cost(op: Callable, inputs: Inputs) -> float:
    """Seconds of CPU for forward and backward."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    start = time.process_time()
    o = op(*leaves)
    (o.real if o.is_complex() else o).float().sum().backward()
    return time.process_time() - start


def peak(op: Callable, inputs: Inputs) -> int:
    """Bytes of live tensors beyond the inputs, the gradients included."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    with LiveBytes(leaves) as live:
        before = live.live
        o = op(*leaves)
        (o.real if o.is_complex() else o).float().sum().backward()
        return live.peak - before


def versus(family: str, T: int, dtype: torch.dtype) -> list[list[str]]:
    make, ours, others = FAMILIES[family]
    torch.manual_seed(0)
    inputs = make(T)
    own = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
    lines = []
    for name, peer in others.items() or {"": None}.items():
        head = [family, str(T), str(dtype).removeprefix("torch.")]
        if peer is None:
            cost(ours, own)
            mine = median(cost(ours, own) for _ in range(3))
            lines.append([*head, micro(mine, T), mebi(peak(ours, own)), "", "", "", ""])
            continue
        try:
            cost(peer, inputs)  # to warm up
        except (ImportError, RuntimeError, AssertionError) as error:
            lines.append([*head, "", "", name, f"not measured: {str(error).splitlines()[0][:80]}", "", ""])
            continue
        cost(ours, own)
        mine, theirs, began = [], [], time.monotonic()
        while len(mine) < 2 or (len(mine) < 7 and time.monotonic() - began < SECONDS):
            mine.append(cost(ours, own))
            theirs.append(cost(peer, inputs))
        ratios = sorted(b / a for a, b in zip(mine, theirs, strict=True))
        ratio = f"{median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]"
        cells = [
            micro(median(mine), T),
            mebi(peak(ours, own)),
            name,
            micro(median(theirs), T),
            mebi(peak(peer, inputs)),
        ]
        lines.append([*head, *cells, ratio])
    return lines


def slopes(family: str, dtype: torch.dtype, longest: int) -> list[str]:
    """The exponents of time and memory from 2k tokens to `longest`, by least squares on logarithms."""
    make, ours, _ = FAMILIES[family]
    lengths = [2**i for i in range(11, longest.bit_length())]
    times, peaks = [], []
    for T in lengths:
        torch.manual_seed(0)
        inputs = [x.to(dtype) if x.is_floating_point() else x for x in make(T)]
        cost(ours, inputs)
        times.append(min(cost(ours, inputs) for _ in range(3)))
        peaks.append(peak(ours, inputs))
    each = " ".join(micro(t, T) for t, T in zip(times, lengths, strict=True))
    kind = str(dtype).removeprefix("torch.")
    return [family, kind, f"{lengths[0]} to {lengths[-1]}", each, slope(lengths, times), slope(lengths, peaks)]


def slope(xs: list[int], ys: list[float]) -> str:
    a, b = [math.log(x) for x in xs], [math.log(y) for y in ys]
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    over = sum((x - mean_a) ** 2 for x in a)
    return f"{sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True)) / over:.3f}"


def crossover(family: str) -> list[str]:
    """The shortest sequence that takes no longer than SDPA takes."""
    make, ours, _ = FAMILIES[family]
    for T in (32, 64, 128, 256, 512, 1024, 2048, 4096):
        torch.manual_seed(0)
        inputs, qkv = make(T), heads(T)
        for op, xs in ((ours, inputs), (peers.sdpa, qkv)):
            cost(op, xs)
        pairs = [(cost(ours, inputs), cost(peers.sdpa, qkv)) for _ in range(15)]
        if median(b / a for a, b in pairs) >= 1:
            return [family, str(T)]
    return [family, "above 4096"]


@torch.no_grad()
def decode(context: int) -> list[list[str]]:
    """One token with what is carried after `context` tokens: microseconds, and how much faster than attention."""
    q, k, v, beta, g = delta(1)
    keys, values, S = torch.randn(1, H, context, D), torch.randn(1, H, context, D), torch.randn(1, H, D, D)
    calls: dict[str, Callable[[], Any]] = {
        "SDPA over its keys and values": lambda: F.scaled_dot_product_attention(q, keys, values),
        "linear attention, scalar decay": lambda: linear_attention(q, k, v, g, S),
        "gated delta": lambda: delta_rule(q, k, v, beta, g, S),
    }
    took = {}
    for name, call in calls.items():
        call()
        many = 1 if "SDPA" in name else 200
        starts = []
        for _ in range(7):
            start = time.process_time()
            for _ in range(many):
                call()
            starts.append((time.process_time() - start) / many)
        took[name] = median(starts)
    attend = took["SDPA over its keys and values"]
    return [[name, f"{t * 1e6:.1f}", f"{attend / t:.0f}x"] for name, t in took.items()]


def micro(seconds: float, T: int) -> str:
    return f"{seconds / T * 1e6:.1f}"


def mebi(size: float) -> str:
    return f"{size / 2**20:.0f}"


def show(title: str, head: list[str], lines: list[list[str]]) -> None:
    print(f"\n### {title}\n\n| {' | '.join(head)} |\n| {' | '.join('---' for _ in head)} |")
    for line in lines:
        print(f"| {' | '.join(line)} |", flush=True)


def machine() -> str:
    names = ("torch", "transformers", "mambapy", "performer-pytorch", "fla-core", "s5-pytorch")
    versions = []
    for name in names:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            versions.append(f"{name} not installed")
    try:
        with open("/proc/cpuinfo") as file:
            cpu = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor()
    return (
        f"{cpu}, {torch.backends.cpu.get_cpu_capability()}, Python {platform.python_version()}; {', '.join(versions)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ops", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="families whose name contains this")
    parser.add_argument("--length", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--longest", type=int, default=131072, help="where the slopes end; 0 for none")
    options = parser.parse_args()
    torch.set_num_threads(1)
    families = [name for name in FAMILIES if options.only in name]
    if not families:
        sys.exit(f"error: no family contains '{options.only}'; there are: {', '.join(FAMILIES)}")
    print(f"{machine()}; one thread, CPU time")
    lines = []
    for family in families:
        for dtype in (torch.float32, torch.bfloat16):
            if dtype == torch.bfloat16 and family not in list(FAMILIES)[:4]:
                continue
            for T in options.length:
                lines += versus(family, T, dtype)
                print(".", end="", file=sys.stderr, flush=True)
    head = [
        "operation",
        "tokens",
        "ours in",
        "us/token",
        "peak MiB",
        "peer, float32",
        "us/token",
        "peak MiB",
        "peer / ours",
    ]
    show("Against peers, forward and backward", head, lines)
    if options.longest:
        recurrent = [name for name in families if name not in ("attention", "a diagonal state space layer")]
        lines = []
        for family in recurrent:
            for dtype in (torch.float32, torch.bfloat16) if family in list(FAMILIES)[:4] else (torch.float32,):
                lines.append(slopes(family, dtype, options.longest))
                print(".", end="", file=sys.stderr, flush=True)
        if "attention" in families:
            lines.append(slopes("attention", torch.float32, min(options.longest, 8192)))
        show("Slopes", ["operation", "in", "tokens", "us/token", "of time", "of memory"], lines)
    crossing = [name for name in families if name in list(FAMILIES)[:4]]
    show("Shortest sequence at which SDPA is not faster", ["operation", "tokens"], [crossover(n) for n in crossing])
    show("Decoding, context 100,000", ["operation", "us", "against SDPA"], decode(100_000))


if __name__ == "__main__":
    main()
