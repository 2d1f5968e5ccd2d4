"""What `benchmarks.gpu` does in processes of its own: a function is a task, and returns what goes into the JSON."""

import fcntl
import functools
import hashlib
import importlib.util
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu_cases import CASES, OWN, Sizes, inputs, streams
from mixers import registry, testing
from mixers.ops import engines
from mixers.ops.fla import calls

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CHOSEN: set[Any] = set()  # the kernels of this process that are tuned
SLOW = 1.0  # seconds: what takes longer is measured once
PACKAGES = ("torch", "triton", "fla-core", "pytorch-lightning", "numpy")


def machine(device: str) -> dict:
    """Where this is, which engine would serve, and what it can do at the most."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    cuda, visible = device == "cuda", os.environ.get("CUDA_VISIBLE_DEVICES")
    gpu = torch.cuda.get_device_properties(0) if cuda else None
    return {
        "device": gpu.name if gpu else platform.processor() or platform.machine(),
        "devices": visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count() or 1)],
        "memory_gib": round(gpu.total_memory / 2**30, 1) if gpu else None,
        "python": platform.python_version(),
        "versions": versions,
        "cuda": torch.version.cuda,
        "engine": list(engines.choice(device)),
        "scalar_decay_excluded": calls.excluded() if versions["triton"] else None,
    }


def ceilings(device: str, tiny: bool) -> dict:
    """Measured: bf16 products in TFLOP/s, and copies in GB/s, read and written."""
    n = 256 if tiny else 8192
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    x = torch.empty(2**20 if tiny else 2**30, device=device, dtype=torch.uint8)
    multiply, copy = (timed(call, device, 2.0)["ms"] / 1e3 for call in (lambda: a @ b, x.clone))
    return {"bf16_tflops": 2 * n**3 / multiply / 1e12, "gb_per_s": 2 * x.numel() / copy / 1e9}


def labels(names: list[str]) -> dict:
    """The variants of these mixers, or of all."""
    return {"labels": [label for name in names or registry.names() for label, _ in testing.variants(name)]}


@functools.cache
def variant(label: str) -> Callable:
    return dict(testing.variants(label.rpartition("-")[0]))[label]


def conform(label: str, check: str, dtype: str, engine: str, device: str) -> dict:
    """One check of the conformance suite, and what served; FLA's kernels untuned, which would take all the time."""
    engines.use(engine, device)
    engines.ran.clear()
    if engine == "fla":
        tuned(1, timing=False)
    setting = testing.Setting(device, DTYPES[dtype])
    testing.check_mixer(variant(label), [getattr(testing, check)], setting)
    return {"served": {op: sorted(names) for op, names in engines.ran.items()}}


def tuned(among: int, timing: bool = True, first: int = 0) -> None:
    """Each kernel of this process is tuned among so few of its configurations that the device can run: all of them take
    minutes to compile. The most usual go first, or the first is another. Without timing it serves, and the others are
    only compiled.
    """
    if importlib.util.find_spec("triton") is None:
        return
    from triton.runtime.autotuner import Autotuner

    measure, prune = getattr(Autotuner, "measure", Autotuner._bench), getattr(Autotuner, "prune", None)
    Autotuner.measure, Autotuner.prune = measure, prune or Autotuner.prune_configs
    if not timing:  # another task may have chosen, with another first
        for tuner in CHOSEN:
            tuner.cache.clear()

    def prune_configs(self, *arguments, **more):
        self.left = among
        CHOSEN.add(self)
        configurations = sorted(Autotuner.prune(self, *arguments, **more), key=unusual)
        turn = first % len(configurations)
        return configurations[turn:] + configurations[:turn]

    def bench(self, *arguments, **more):
        if not self.left:
            return [math.inf] * 3
        self.__dict__["do_bench"] = quickly if timing else once
        took = Autotuner.measure(self, *arguments, **more)
        self.left -= took[0] < math.inf
        return took

    Autotuner.prune_configs, Autotuner._bench = prune_configs, bench
    compile_once()


@functools.cache
def compile_once() -> None:
    """What another process is compiling is waited for, and then found in Triton's cache."""
    from triton import compiler

    compile, locks = compiler.compile, Path(tempfile.gettempdir(), "triton-locks")
    locks.mkdir(exist_ok=True)

    def alone(src, target=None, options=None, **more):
        name = hashlib.sha256(f"{src.hash()} {options}".encode()).hexdigest()
        with (locks / name).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return compile(src, target=target, options=options, **more)

    compiler.compile = alone


def unusual(configuration) -> float:
    """Less for large blocks, 3 stages, and 4 warps or else 8."""
    block = math.prod(n for n in configuration.kwargs.values() if isinstance(n, int) and n > 1)
    stages, warps = abs(configuration.num_stages - 3), abs(math.log2(configuration.num_warps) - 2.1)
    return 2 * stages + warps - math.log2(block)


def once(call: Callable, **options: Any) -> list[float]:
    call()
    return [0.0] * 3


def quickly(call: Callable, **options: Any) -> list[float]:
    from triton.testing import do_bench

    return do_bench(call, warmup=2, rep=10, **options)


def against_definition(
    name: str, engine: str, dtype: str, device: str, sizes: Sizes, T: int, configuration: int = 0
) -> dict:
    """Relative errors, max |a - b| / max |b|, of outputs, state and gradients, against the definition in float64 on the
    same numbers. engine: torch, fla, own (what FLA or torch offers itself), or forced (own, its refusals overridden).
    configuration: which one of each of FLA's kernels.
    """
    case = CASES[name]
    if engine != "torch":
        tuned(1, timing=False, first=configuration)
    leaves = inputs(case, 1, T, sizes, DTYPES[dtype], device, state=name != "attention")
    op, given, served = prepared(name, engine, leaves, device)
    exact = {n: x.detach().to(torch.complex128 if x.is_complex() else torch.float64) for n, x in leaves.items()}
    exact = {n: x.requires_grad_() for n, x in exact.items()}
    theirs = everything(case.definition, exact, exact, lambda o: o)
    layout = (lambda o: o.transpose(1, 2)) if given is not leaves and "q" in leaves else (lambda o: o)
    ours = everything(op, given, leaves, layout)
    errors = {n: error(a, b) for (n, a), b in zip(ours.items(), theirs.values(), strict=True)}
    return {"errors": errors, "worst": max(errors.values()), "served": served()}


def prepared(name: str, engine: str, leaves: dict, device: str) -> tuple[Callable, dict, Callable[[], Any]]:
    """The function, what it is to be given, and what will have served."""
    if engine in ("own", "forced"):
        own, function = OWN[name]
        if own == "FLA" and device == "cuda":
            refuse(engine != "forced")
        return function, (streams(leaves) if own == "FLA" else leaves), lambda: own
    engines.use(engine, device)
    engines.ran.clear()
    return CASES[name].op, leaves, lambda: {op: sorted(names) for op, names in engines.ran.items()}


def refuse(as_usual: bool) -> None:
    """Whether FLA refuses what this Triton miscompiles, or runs it all the same: to see how wrong it is."""
    module = importlib.import_module("fla.ops.common.chunk_o")
    module.TRITON_ABOVE_3_7_1 = not (as_usual and calls.excluded())


def everything(op: Callable, given: dict, leaves: dict, layout: Callable) -> dict[str, Tensor]:
    o, state = op(**given)
    o = layout(o)
    results = {"o": o} | ({"state": state} if isinstance(state, Tensor) and "state" in leaves else {})
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device) for x in results.values()]
    loss = sum((x * w).sum().real for x, w in zip(results.values(), weights, strict=True))
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return results | {f"d{n}": gradient for n, gradient in zip(leaves, gradients, strict=True)}


def error(a: Tensor, b: Tensor) -> float:
    wide = torch.complex128 if b.is_complex() else torch.float64
    difference = (a.detach().to(wide) - b.detach()).abs().max() / b.detach().abs().max().clamp(min=1e-9)
    return difference.item()


def op_speed(name: str, engine: str, B: int, T: int, device: str, sizes: Sizes, budget: float, among: int = 0) -> dict:
    """Forward and backward in bfloat16, without a first state: milliseconds, MiB beyond the inputs, least bytes and
    FLOPs. With budget 0 kernels are only compiled. among: see `tuned`.
    """
    case = CASES[name]
    if among:
        tuned(among, timing=budget > 0)
    leaves = inputs(case, B, T, sizes, torch.bfloat16, device, state=False)
    op, given, served = prepared(name, engine, leaves, device)
    given = {n: x.detach().requires_grad_() for n, x in given.items()}
    with torch.no_grad():
        do = torch.randn_like(op(**given)[0])

    def step():
        torch.autograd.grad(op(**given)[0], list(given.values()), do)

    if not budget:
        step()
        return {}
    read = sum(x.numel() * x.element_size() for x in given.values())
    return timed(step, device, budget) | {
        "served": served(),
        # forwards reads the inputs and writes o; backwards reads both gradients' sources and writes as many gradients
        "least_bytes": 3 * read + 2 * do.numel() * do.element_size(),
        "least_flops": case.flops(T, sizes) * B * T,
    }


def mixer_speed(
    name: str, B: int, T: int, device: str, d_model: int, n_heads: int, budget: float, among: int = 0
) -> dict:
    """Forward, loss and backward of one mixer under bfloat16 autocast: milliseconds and MiB beyond its parameters. With
    budget 0 kernels are only compiled. among: see `tuned`.
    """
    if among:
        tuned(among, timing=budget > 0)
    engines.use("auto", device)
    engines.ran.clear()
    torch.manual_seed(0)
    causal = registry.directions(name)[0]
    heads = headed(registry.knobs(name, causal=causal, length=T), n_heads)
    mixer: nn.Module = registry.factory(name, causal=causal, length=T, **heads)(d_model).to(device)
    x = torch.randn(B, T, d_model, device=device, requires_grad=True)

    def step():
        mixer.zero_grad(set_to_none=True)
        x.grad = None
        with torch.autocast(device, dtype=torch.bfloat16):
            y = mixer(x)[0]
            loss = y.float().square().mean()
        loss.backward()

    if not budget:
        step()
        return {}
    parameters = sum(p.numel() for p in mixer.parameters())
    result = timed(step, device, budget)
    served = {op: sorted(names) for op, names in engines.ran.items()}
    return result | {"served": served, "parameters": parameters, "causal": causal}


def headed(knobs: dict[str, Any], n_heads: int) -> dict[str, Any]:
    """The knobs that change when a mixer, and any mixer within it, gets so many heads."""
    changed: dict[str, Any] = {}
    for key, value in knobs.items():
        if key == "n_heads" and isinstance(value, int):
            changed[key] = n_heads
        elif isinstance(value, dict) and (inner := headed(value, n_heads)):
            changed[key] = value | inner
    return changed


def timed(step: Callable, device: str, budget: float) -> dict:
    cuda = device == "cuda"
    start = time.monotonic()
    step()  # compiles, and tunes
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    first = time.monotonic() - start
    took, spread, repeats = seconds(step, device, budget)
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20 if cuda else None
    return {"ms": took * 1e3, "spread": spread, "repeats": repeats, "first_s": round(first, 2), "peak_mib": peak}


def seconds(call: Callable, device: str, budget: float, most: int = 20) -> tuple[float, float, int]:
    """The median by CUDA events, half the range over it, and of how many calls: three or more, of slow ones one."""
    took, start = [], time.monotonic()
    while len(took) < most and (time.monotonic() - start < budget or (len(took) < 3 and sum(took) < SLOW)):
        if device == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            took.append(begin.elapsed_time(end) / 1e3)
        else:
            began = time.perf_counter()
            call()
            took.append(time.perf_counter() - began)
    middle = median(took)
    return middle, (max(took) - min(took)) / 2 / middle, len(took)
