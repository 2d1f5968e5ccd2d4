"""Our engines against what is installed of their peers: forward and backward of the operation alone.

    python -m benchmarks.ops                 # everything, about 30 minutes
    python -m benchmarks.ops --only delta --length 2048 --tables peers slopes
    python -m benchmarks.ops --seconds 2 --longest 16384     # roughly, in a few minutes

One thread and CPU time. Our engines, in float32 and where it pays in bfloat16, and all peers, in float32, take turns in
one process, so that a busy machine disturbs all alike: ratios are of times of the same turn, medians with their range.
B = 1, H = 4, K = V = 64 (256 channels), gradients for every input. Peak is of live tensors beyond the inputs, the
gradients included.
"""

import argparse
import math
import platform
import sys
import time
from collections.abc import Callable, Iterable
from functools import cache, partial
from importlib import metadata
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from benchmarks import peers
from compare.speed import LiveBytes
from mixers import registry
from mixers.ops import engines
from mixers.ops.attention import attention
from mixers.ops.causal_conv import causal_conv
from mixers.ops.gated_delta import delta_rule
from mixers.ops.linear_attention import linear_attention
from mixers.ops.scan import scan
from mixers.ops.selective_scan import selective_scan

H, D, N = 4, 64, 16
CHANNELS = H * D
TURNS = 7
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


def layer(T: int) -> Inputs:
    return [torch.randn(1, T, CHANNELS)]


def faded(T: int) -> Inputs:
    return [*heads(T), torch.randn(1, H, T)]


def faded_attention(q, k, v, bias):
    return attention(q, k, v, bias=bias)[0]


def first(op: Callable) -> Callable:
    """The outputs without the state."""
    return lambda *inputs: op(*inputs)[0]


@cache
def s5(width: int) -> torch.nn.Module:
    return registry.build("s5", width, d_state=2 * width, n_blocks=1)


class Family(NamedTuple):
    make: Callable[[int], Inputs]
    ours: Callable
    peers: dict[str, Callable]
    engines: tuple[str, ...] = ("torch", "native")
    half: bool = False  # measured in bfloat16 too
    longest: int = 131072  # where its slopes end; 0: it has none


FAMILIES = {
    "linear attention": Family(
        heads,
        first(linear_attention),
        {
            "SDPA, causal": peers.sdpa,
            "fast-transformers causal_dot_product": peers.fast_transformers,
            "FLA naive_chunk_linear_attn": peers.fla_chunk_linear,
            "performer-pytorch": peers.performer_pytorch,
        },
        half=True,
    ),
    "linear attention, scalar decay": Family(
        scalar,
        first(linear_attention),
        {
            "transformers mamba2_chunk_scan": peers.transformers_mamba2,
            "fast-transformers causal_dot_product": peers.fast_transformers,
            "FLA naive_chunk_simple_gla": peers.fla_chunk_scalar,
            "SDPA, causal": peers.sdpa,
        },
        half=True,
    ),
    "linear attention, decay per channel": Family(
        channel, first(linear_attention), {"FLA naive_recurrent_gla": peers.fla_recurrent_channel}, half=True
    ),
    "gated delta": Family(
        delta,
        first(delta_rule),
        {
            "transformers torch_chunk_gated_delta_rule": peers.transformers_delta,
            "FLA naive_chunk_gated_delta_rule": peers.fla_chunk_delta,
        },
        half=True,
    ),
    "selective scan": Family(selective, first(selective_scan), {"mambapy pscan": peers.mambapy_selective_scan}),
    "scan": Family(rows, first(scan), {"mambapy pscan": peers.mambapy_scan}),
    "scan, complex": Family(complex_rows, first(scan), {}),
    "causal convolution, L = T": Family(filtered, first(causal_conv), {}, engines=("torch",)),
    "S5 layer": Family(layer, lambda x: s5(CHANNELS)(x)[0], {"s5-pytorch": peers.s5_layer}, longest=0),
    "attention": Family(heads, first(attention), {"SDPA, causal": peers.sdpa}, engines=("torch",), longest=8192),
    "attention, a number per key": Family(faded, faded_attention, {}, engines=("torch",), longest=8192),
}


class Ours(NamedTuple):
    engine: str
    dtype: torch.dtype

    @property
    def name(self) -> str:
        return f"{self.engine} {str(self.dtype).removeprefix('torch.')}"

    def inputs(self, inputs: Inputs) -> Inputs:
        return [x.to(self.dtype) if x.is_floating_point() else x for x in inputs]


COLUMNS = [Ours(engine, dtype) for engine in ("torch", "native") for dtype in (torch.float32, torch.bfloat16)]


def variants(family: str) -> list[Ours]:
    """Our engines that have the family here, each in what it is measured in."""
    there = [name for name in FAMILIES[family].engines if name == "torch" or not engines.obstacle(name)]
    return [
        ours for ours in COLUMNS if ours.engine in there and (FAMILIES[family].half or ours.dtype != torch.bfloat16)
    ]


def cost(op: Callable, inputs: Inputs, engine: str = "auto") -> float:
    """Seconds of CPU for forward and backward, with one of our engines where the op has several."""
    engines.use(engine)
    leaves = [x.detach().requires_grad_() for x in inputs]
    start = time.process_time()
    o = op(*leaves)
    (o.real if o.is_complex() else o).float().sum().backward()
    return time.process_time() - start


def peak(op: Callable, inputs: Inputs, engine: str = "auto") -> int:
    """Bytes of live tensors beyond the inputs, the gradients included."""
    engines.use(engine)
    leaves = [x.detach().requires_grad_() for x in inputs]
    with LiveBytes(leaves) as live:
        before = live.live
        o = op(*leaves)
        (o.real if o.is_complex() else o).float().sum().backward()
        return live.peak - before


def versus(family: str, T: int, seconds: float) -> tuple[list[list[str]], list[list[str]]]:
    """One length: lines of our engines, and lines of the peers with how many times as long they take. A peer that takes
    half the time by itself is measured once.
    """
    torch.manual_seed(0)
    inputs = FAMILIES[family].make(T)
    calls = {ours.name: (FAMILIES[family].ours, ours.inputs(inputs), ours.engine) for ours in variants(family)}
    failed, slow = {}, {}
    for name, peer in FAMILIES[family].peers.items():
        try:
            cost(peer, FAMILIES[family].make(64))  # imports and compilation, which are no part of the time
            first_call = cost(peer, inputs)
        except (ImportError, RuntimeError, AssertionError) as error:
            failed[name] = f"not measured: {str(error).splitlines()[0][:80]}"
            continue
        if first_call > seconds / 2:
            slow[name] = [first_call]
        else:
            calls[name] = (peer, inputs, "auto")
    for op, xs, engine in calls.values():
        cost(op, xs, engine)
    took: dict[str, list[float]] = {name: [] for name in calls}
    began = time.process_time()
    while len(took[next(iter(took))]) < (2 if time.process_time() - began > seconds else TURNS):
        for name, call in calls.items():
            took[name].append(cost(*call))
    peaks = {name: peak(*call) for name, call in calls.items()}
    peaks |= {name: peak(FAMILIES[family].peers[name], inputs) for name in slow if T <= 2048}
    mine = [
        [family, str(T), ours.name, micro(took[ours.name], T), mebi(peaks[ours.name]), str(len(took[ours.name]))]
        for ours in variants(family)
    ]
    theirs = []
    for name in FAMILIES[family].peers:
        head = [family, str(T), name]
        if name in failed:
            theirs.append([*head, failed[name], "", *("" for _ in COLUMNS), ""])
            continue
        times = took.get(name) or slow[name]
        ratios = [over(times, took[ours.name]) if ours in variants(family) else "" for ours in COLUMNS]
        theirs.append([*head, micro(times, T), mebi(peaks[name]) if name in peaks else "", *ratios, str(len(times))])
    return mine, theirs


def over(theirs: list[float], ours: list[float]) -> str:
    """How many times as long, turn by turn: median and range."""
    pairs = zip(theirs, ours, strict=True) if len(theirs) == len(ours) else ((theirs[0], mine) for mine in ours)
    ratios = sorted(a / b for a, b in pairs)
    return f"{number(median(ratios))} [{number(ratios[0])}, {number(ratios[-1])}]"


def slopes(family: str, ours: Ours, longest: int) -> list[str]:
    """The exponents of time and memory from 2k tokens to `longest`, by least squares on logarithms."""
    op, lengths = FAMILIES[family].ours, [2**i for i in range(11, longest.bit_length())]
    times, peaks = [], []
    for T in lengths:
        torch.manual_seed(0)
        inputs = ours.inputs(FAMILIES[family].make(T))
        cost(op, inputs, ours.engine)
        times.append(min(cost(op, inputs, ours.engine) for _ in range(3)))
        peaks.append(peak(op, inputs, ours.engine))
    each = " ".join(micro([t], T) for t, T in zip(times, lengths, strict=True))
    return [family, ours.name, f"{lengths[0]} to {lengths[-1]}", each, slope(lengths, times), slope(lengths, peaks)]


def slope(xs: list[int], ys: list[float]) -> str:
    a, b = [math.log(x) for x in xs], [math.log(y) for y in ys]
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    over = sum((x - mean_a) ** 2 for x in a)
    return f"{sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True)) / over:.3f}"


def crossover(family: str, ours: Ours) -> list[str]:
    """The shortest sequence that takes no longer than SDPA in float32 takes."""
    for T in (32, 64, 128, 256, 512, 1024, 2048, 4096):
        torch.manual_seed(0)
        inputs, qkv = FAMILIES[family].make(T), heads(T)
        cost(FAMILIES[family].ours, inputs, ours.engine), cost(peers.sdpa, qkv)
        pairs = [(cost(FAMILIES[family].ours, inputs, ours.engine), cost(peers.sdpa, qkv)) for _ in range(15)]
        if median(b / a for a, b in pairs) >= 1:
            return [family, ours.name, str(T)]
    return [family, ours.name, "above 4096"]


@torch.no_grad()
def decode(context: int, each: int = 200) -> list[list[str]]:
    """One token with what is carried after `context` tokens: microseconds, and how much faster than attention."""
    q, k, v, beta, g = delta(1)
    keys, values, S = torch.randn(1, H, context, D), torch.randn(1, H, context, D), torch.randn(1, H, D, D)
    calls: dict[str, Callable[[], Any]] = {
        "linear attention, scalar decay": lambda: linear_attention(q, k, v, g, S),
        "gated delta": lambda: delta_rule(q, k, v, beta, g, S),
        "selective scan": partial(selective_scan, *selective(1), torch.randn(1, CHANNELS, N)),
        "scan": partial(scan, *rows(1), torch.randn(1, CHANNELS)),
    }
    took: dict[tuple[str, str], list[float]] = {}
    for _ in range(TURNS):
        start = time.process_time()
        F.scaled_dot_product_attention(q, keys, values)
        took.setdefault(("SDPA over its keys and values", ""), []).append(time.process_time() - start)
        for engine in ("torch", "native"):
            if engine != "torch" and engines.obstacle(engine):
                continue
            engines.use(engine)
            for name, call in calls.items():
                call()
                start = time.process_time()
                for _ in range(each):
                    call()
                took.setdefault((name, engine), []).append((time.process_time() - start) / each)
    attend = took["SDPA over its keys and values", ""]
    return [[*name, f"{median(t) * 1e6:.1f}", over(attend, t), str(len(t))] for name, t in took.items()]


def ceilings() -> list[list[str]]:
    """What this machine reaches on one thread where nothing but arithmetic, or memory, is in the way."""

    def best(call: Callable[[], Any]) -> float:
        call()
        took = []
        for _ in range(TURNS):
            start = time.process_time()
            call()
            took.append(time.process_time() - start)
        return min(took)

    lines = []
    for dtype in (torch.float32, torch.bfloat16):
        kind = str(dtype).removeprefix("torch.")
        large, small = torch.randn(1024, 1024).to(dtype), torch.randn(512, 64, 64).to(dtype)
        for name, x in (("1024 x 1024 matrix product", large), ("512 products of 64 x 64 matrices", small)):
            flops = 2 * x.numel() * x.shape[-1]
            lines.append([f"{kind}: {name}", f"{number(flops / best(lambda x=x: x @ x) / 1e9)} GFLOP/s"])
    for name, n in (("in cache, 256 KiB", 2**15), ("in memory, 256 MiB", 2**25)):
        x, y, many = torch.randn(n), torch.empty(n), 2**25 // n

        def copies(x=x, y=y, many=many):
            for _ in range(many):
                y.copy_(x)

        lines.append([f"copying {name} read and written", f"{number(8 * n * many / best(copies) / 1e9)} GB/s"])
    x = torch.randn(2**14)
    lines.append(
        ["e^x, float32, in cache", f"{number(100 * len(x) / best(lambda: [x.exp() for _ in range(100)]) / 1e9)} G/s"]
    )
    return lines


def micro(seconds: list[float], T: int) -> str:
    each = sorted(t / T * 1e6 for t in seconds)
    return f"{number(median(each))} [{number(each[0])}, {number(each[-1])}]" if len(each) > 1 else number(each[0])


def number(x: float) -> str:
    return f"{x:.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}"


def mebi(size: float) -> str:
    return number(size / 2**20)


def show(title: str, head: list[str], lines: Iterable[list[str]]) -> None:
    print(f"\n### {title}\n\n| {' | '.join(head)} |\n| {' | '.join('---' for _ in head)} |")
    for line in lines:
        print(f"| {' | '.join(line)} |", flush=True)


def machine() -> str:
    names = (
        "torch",
        "transformers",
        "mambapy",
        "performer-pytorch",
        "fla-core",
        "s5-pytorch",
        "pytorch-fast-transformers",
    )
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
    native = engines.obstacle("native") or "built"
    return (
        f"{cpu}, {torch.backends.cpu.get_cpu_capability()}, Python {platform.python_version()}; {', '.join(versions)}; "
        f"native engine: {native}"
    )


def peer_tables(families: list[str], options: argparse.Namespace) -> None:
    mine, theirs = [], []
    for family in families:
        for T in options.length:
            ours, others = versus(family, T, options.seconds)
            mine, theirs = mine + ours, theirs + others
            print(".", end="", file=sys.stderr, flush=True)
    show("Ours, forward and backward", ["operation", "tokens", "engine", "us/token", "peak MiB", "N"], mine)
    head = ["operation", "tokens", "peer, float32", "us/token", "peak MiB"]
    show("Peers, and peer / ours", [*head, *(f"/ {ours.name}" for ours in COLUMNS), "N"], theirs)


def slope_table(families: list[str], options: argparse.Namespace) -> None:
    """Attention takes quadratic time: it ends earlier, and its memory is what counts."""
    lines = (
        slopes(name, ours, min(options.longest, FAMILIES[name].longest))
        for name in families
        for ours in variants(name)
        if FAMILIES[name].longest
    )
    show("Slopes", ["operation", "engine", "tokens", "us/token", "of time", "of memory"], lines)


def crossover_table(families: list[str], options: argparse.Namespace) -> None:
    lines = (
        crossover(name, ours)
        for name in families
        if FAMILIES[name].half
        for ours in variants(name)
        if ours.dtype == torch.float32
    )
    show("Shortest sequence at which SDPA is not faster", ["operation", "engine", "tokens"], lines)


def decode_table(families: list[str], options: argparse.Namespace) -> None:
    show("Decoding, context 100,000", ["operation", "engine", "us", "SDPA / this", "N"], decode(100_000))


def ceiling_table(families: list[str], options: argparse.Namespace) -> None:
    show("Ceilings of this machine", ["what", "reached"], ceilings())


TABLES = {
    "ceilings": ceiling_table,
    "peers": peer_tables,
    "slopes": slope_table,
    "crossover": crossover_table,
    "decode": decode_table,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ops", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="the family of this name, or those whose name contains it")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--length", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--longest", type=int, default=131072, help="where the slopes end")
    parser.add_argument("--seconds", type=float, default=30.0, help="of CPU, for the turns of a family at a length")
    options = parser.parse_args()
    torch.set_num_threads(1)
    families = [name for name in FAMILIES if name == options.only] or [n for n in FAMILIES if options.only in n]
    if not families:
        sys.exit(f"error: no family contains '{options.only}'; there are: {', '.join(FAMILIES)}")
    print(f"{machine()}; one thread, CPU time")
    for table in options.tables:
        TABLES[table](families, options)


if __name__ == "__main__":
    main()
