"""Conformance, exactness, speed and training on one CUDA device, in under 10 minutes.

    python -m benchmarks.gpu --json gpu.json

    1  the conformance suite of every mixer in every direction, in fp32 and in bf16 (autocast)
    2  the torch and fla engines, and FLA's own functions, against the definitions in float64
    3  forward and backward of every op, and a training step of every mixer: 32k tokens at T = 2k, 8k and 32k, H = 16,
       K = V = 128, bf16; by CUDA events, medians; beside them FLA's own functions, torch's flash attention and the
       floor that the device's measured bandwidth and products set
    4  `experiment=recall_full` (Zoology's sizes) for five mixers, as far as the time allows

A part ends when its seconds are used up, and says what it left out. The JSON is whole at any time. `inner_loop` and
`block_attention` have no rows of their own: they are measured in the mixers that use them.
"""

import argparse
import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks import gpu_work, pool
from benchmarks.gpu_cases import CASES, OWN, Sizes
from benchmarks.pool import Task

ROOT = Path(__file__).resolve().parents[1]
BUDGETS = {1: 150.0, 2: 80.0, 3: 200.0, 4: 100.0}
TRAINED = ("softmax", "linear_attention", "gla", "gated_delta_net", "mamba2")
SLOW = ("check_law", "check_causality", "check_remembers")  # last, so that all else is seen of every mixer
FLA_OPS = {"linear_attention", "delta_rule", "gated_delta", "dplr", "scan"}
TOKENS = 32768
LENGTHS = [2048, 8192, 32768]
FORCED = ("linear_attention, scalar decay", "delta_rule, scalar decay")  # what FLA refuses on Hopper with some Tritons
AMONG = 4  # configurations of each of FLA's kernels, where it would tune among up to 48
TRAIN = f"from benchmarks.gpu_work import tuned; tuned({AMONG}); import train; train.main()"
TRUSTED = {"fp32": 1e-2, "bf16": 1e-1}  # relative errors above these are wrong, not rounded: tf32 makes 1e-3


class Report:
    """The JSON, replaced as a whole now and then. One that is there is continued: a result is replaced by a later one,
    unless that was not reached.
    """

    def __init__(self, path: Path):
        self.path, self.written = path, 0.0
        self.data: dict[str, dict[str, dict]] = json.loads(path.read_text()) if path.exists() else {}

    def put(self, part: str, name: str, result: dict) -> None:
        results = self.data.setdefault(part, {})
        if name not in results or kind(result) != "not reached":
            results[name] = result
        if time.monotonic() - self.written > 2:
            self.write()

    def write(self) -> None:
        text = json.dumps(self.data, indent=1)
        fresh = self.path.with_suffix(".part")
        fresh.write_text(text)
        os.replace(fresh, self.path)
        self.written = time.monotonic()


class Bench:
    def __init__(self, options: argparse.Namespace):
        self.tiny, self.report = options.tiny, Report(options.json)
        self.device = "cpu" if options.tiny else "cuda"
        self.workers = options.workers
        self.names: list[str] = options.mixers
        self.steps: int | None = options.steps
        self.what: list[str] = options.what
        self.sizes = Sizes(2, 16, 4) if self.tiny else Sizes()
        self.tokens, lengths = (128, [64, 128]) if self.tiny else (TOKENS, LENGTHS)
        self.lengths = options.lengths or lengths

    def go(self, part: str, tasks: list[Task], workers: int, seconds: float) -> dict[str, dict]:
        pool.run(tasks, workers, time.monotonic() + seconds, lambda name, r: self.report.put(part, name, r))
        self.report.write()
        return self.report.data.get(part, {})

    def about(self) -> None:
        facts = Task("machine", gpu_work.machine, {"device": self.device}, 60)
        listing = Task("mixers", gpu_work.labels, {"names": self.names}, 60)
        found = self.go("about", [facts, listing], 2, 90)
        if "error" in found["machine"] or "error" in found["mixers"]:
            raise RuntimeError(f"cannot begin: {found['machine'].get('error') or found['mixers']['error']}")
        self.labels: list[str] = found["mixers"]["labels"]

    def conformance(self, seconds: float) -> None:
        """By the torch engine; then those of the mixers that have ops in the fla engine, by that."""
        start = time.monotonic()
        done = self.conform("torch", self.labels, 0.7 * seconds if self.device == "cuda" else seconds)
        if self.device == "cuda":
            served = {name.split()[0] for name, r in done.items() if FLA_OPS & set(r.get("served", {}))}
            labels = [label for label in self.labels if label in served]
            self.conform("fla", labels, seconds - (time.monotonic() - start))

    def conform(self, engine: str, labels: list[str], seconds: float) -> dict[str, dict]:
        from mixers import testing

        checks = {"fp32": testing.CHECKS, "bf16": testing.ABOUT_NUMBERS}
        order = [(check.__name__ in SLOW, dtype, check.__name__) for dtype in checks for check in checks[dtype]]
        tasks = []
        for _, dtype, check in sorted(order, key=lambda row: row[0]):
            for label in labels:
                arguments = {"label": label, "check": check, "dtype": dtype, "engine": engine, "device": self.device}
                tasks.append(Task(f"{label} {dtype} {engine} {check}", gpu_work.conform, arguments, 30))
        return self.go("conformance", tasks, self.workers, seconds)

    def engines(self, name: str) -> list[str]:
        """What can be asked for this case: own is what FLA or torch offers, forced what FLA refuses."""
        if self.tiny:
            return ["torch"] + ["own"] * (name == "attention")
        fla = CASES[name].op.__name__ in FLA_OPS
        return ["torch"] + ["fla"] * fla + ["own"] * (name in OWN) + ["forced"] * (name in FORCED)

    def exactness(self, seconds: float) -> None:
        common = {"device": self.device, "sizes": self.sizes}
        tasks = []
        for name, dtype in itertools.product(CASES, gpu_work.DTYPES):
            T = 20 if self.tiny else 40 if name == "log_linear" else 130  # whose definition grows with T^2
            for engine in self.engines(name):
                arguments = {"name": name, "engine": engine, "dtype": dtype, "T": T, **common}
                tasks.append(Task(f"{name} {dtype} {engine}", gpu_work.against_definition, arguments, seconds))
        self.go("exactness", tasks, self.workers, seconds)

    def speed(self, seconds: float) -> None:
        """First all kernels are compiled, many at once, for short sequences; then one after the other is timed."""
        start = time.monotonic()
        each = 0.01 if self.tiny else 0.25
        common = {"device": self.device, "budget": each}
        ceilings = Task("ceilings", gpu_work.ceilings, {"device": self.device, "tiny": self.tiny}, 30)
        tasks = []
        for T in self.lengths if "ops" in self.what else []:
            size = {"B": self.tokens // T, "T": T, **common}
            for name in CASES:
                for engine in self.engines(name):
                    arguments = {"name": name, "engine": engine, "sizes": self.sizes, **size}
                    tasks.append(Task(f"{name} {engine} T={T}", gpu_work.op_speed, arguments, 40))
        mixers = list(dict.fromkeys(label.rpartition("-")[0] for label in self.labels))
        for T in self.lengths if "mixers" in self.what else []:
            size = {"B": self.tokens // T, "T": T, **common}
            for name in mixers:
                arguments = {"name": name, "d_model": self.sizes.channels, "n_heads": self.sizes.H, **size}
                tasks.append(Task(f"mixer {name} T={T}", gpu_work.mixer_speed, arguments, 100))
        if not self.tiny:
            tasks = [task._replace(arguments=task.arguments | {"among": AMONG}) for task in tasks]
            self.go("compiled", compiling(tasks), self.workers, 0.6 * seconds)
        self.go("speed", [ceilings, *tasks], 1, seconds - (time.monotonic() - start))

    def training(self, seconds: float) -> None:
        """All at once: none of them fills the device. SIGINT ends a run after the step that is under way."""
        experiment = "smoke" if self.tiny else "recall_full"
        more = ["task.data.train=[{length: 64, pairs: 4, n: 100}]", "trainer.max_steps=2"] if self.tiny else []
        more += [f"trainer.max_steps={self.steps}"] if self.steps else []
        names = TRAINED[:1] if self.tiny else TRAINED
        with tempfile.TemporaryDirectory() as directory:
            runs = {name: self.start(name, experiment, more, Path(directory) / name) for name in names}
            deadline = time.monotonic() + seconds - min(20.0, seconds / 4)
            while time.monotonic() < deadline and any(run.poll() is None for run in runs.values()):
                time.sleep(0.2)
            for run in runs.values():
                if run.poll() is None:
                    run.send_signal(signal.SIGINT)
            for name, run in runs.items():
                try:
                    run.wait(max(1.0, deadline + 20 - time.monotonic()))
                except subprocess.TimeoutExpired:
                    run.kill()
                    run.wait()
                self.report.put("training", name, learned(Path(directory) / name, run.returncode))
        self.report.write()

    def start(self, name: str, experiment: str, more: list[str], place: Path) -> subprocess.Popen:
        place.mkdir()
        command = [sys.executable, "-c", TRAIN, f"experiment={experiment}", f"mixer={name}", "logger=none", *more]
        command += ["probe=false", "trainer.enable_progress_bar=false", f"runs={place / 'runs'}"]
        with (place / "log").open("w") as log:
            return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)


def compiling(tasks: list[Task]) -> list[Task]:
    """What compiles all that FLA's kernels need for these tasks: some are compiled for each size of a batch, and none
    for a length.
    """
    return [
        Task(
            f"{task.name.split(' T=')[0]} B={task.arguments['B']}",
            task.function,
            task.arguments | {"T": 256, "budget": 0.0},
            300,
        )
        for task in tasks
        if task.arguments.get("engine") != "torch"
    ]


def learned(place: Path, code: int | None) -> dict:
    """What a run's record says, or the end of what it printed."""
    records = [json.loads(path.read_text()) for path in place.rglob("result.json")]
    if not records:
        return {"error": f"no record, exit code {code}", "trace": (place / "log").read_text().splitlines()[-15:]}
    record = records[0]
    kept = {key: record.get(key) for key in ("outcome", "reason", "engine", "engine_details", "validation", "test")}
    curve = [row for row in record.get("curve", []) if any("validation" in key for key in row)]
    rows = []
    for path in place.rglob("metrics.csv"):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    return kept | {"validations": curve, "last": rows[-1] if rows else None}


def table(data: dict[str, Any]) -> str:
    """The short version."""
    lines = [json.dumps(data.get("about", {}).get("machine", {}))]
    lines += conformance_lines(data.get("conformance", {}))
    lines += exactness_lines(data.get("exactness", {}))
    lines += speed_lines(data.get("speed", {}))
    for name, run in data.get("training", {}).items():
        scores = [value for key, value in (run.get("validations") or [{}])[-1].items() if "accuracy" in key]
        said = run.get("error") or f"{run['outcome']} {run['reason']}"
        lines.append(f"recall_full {name}: {said}; last validation {scores or run.get('validation')}")
    return "\n".join(lines)


def conformance_lines(results: dict[str, dict]) -> list[str]:
    lines, failed = [], {}
    for dtype, engine in itertools.product(gpu_work.DTYPES, ("torch", "fla")):
        own = {name: r for name, r in results.items() if f" {dtype} {engine} " in name}
        kinds = Counter(kind(r) for r in own.values())
        if own:
            lines.append(
                f"conformance {dtype} {engine}: {', '.join(f'{n} {what}' for what, n in sorted(kinds.items()))}"
            )
        failed |= {name: r["error"] for name, r in own.items() if kind(r) in ("failed", "too slow")}
    return lines + [f"  {name}: {why}"[:150] for name, why in sorted(failed.items())]


def kind(result: dict) -> str:
    error = result.get("error")
    if error is None:
        return "ok"
    if error.startswith("not reached"):
        return "not reached"
    return "too slow" if error.startswith(("TimeoutError", "hung")) else "failed"


def exactness_lines(results: dict[str, dict]) -> list[str]:
    lines = []
    for name in CASES:
        for dtype, trusted in TRUSTED.items():
            cells = []
            for engine in ("torch", "fla", "own", "forced"):
                r = results.get(f"{name} {dtype} {engine}")
                if r is not None:
                    wrong = " WRONG" if r.get("worst", 0) > trusted or r.get("worst") != r.get("worst") else ""
                    by = "" if engine != "fla" or any("fla" in s for s in r.get("served", {}).values()) else " (torch)"
                    cells.append(f"{engine}{by} " + (r["error"][:60] if "error" in r else f"{r['worst']:.1e}{wrong}"))
            if cells:
                lines.append(f"{name}, {dtype}: {'; '.join(cells)}")
    return lines


def speed_lines(results: dict[str, dict]) -> list[str]:
    if not results:
        return []
    ceilings = results.get("ceilings", {})
    flops, rate = ceilings.get("bf16_tflops", 0) * 1e12, ceilings.get("gb_per_s", 0) * 1e9
    lines = [f"ceilings: {flops / 1e12:.0f} TFLOP/s in bf16, {rate / 1e9:.0f} GB/s; milliseconds below"]
    lengths = list(dict.fromkeys(name.rpartition("T=")[2] for name in results if "T=" in name))
    lines.append(f"T = {' / '.join(lengths)}")
    for name in CASES:
        cells = []
        for engine in ("torch", "fla", "own", "forced"):
            found = [results.get(f"{name} {engine} T={T}") for T in lengths]
            if any(found):
                cells.append(f"{engine} {' / '.join(map(milliseconds, found))}")
        known = [results.get(f"{name} torch T={T}", {}) for T in lengths]
        if rate and any("least_bytes" in r for r in known):
            floors = [1e3 * max(r["least_flops"] / flops, r["least_bytes"] / rate) for r in known if "least_bytes" in r]
            cells.append(f"floor {' / '.join(f'{ms:.2g}' for ms in floors)}")
        if cells:
            lines.append(f"{name}: {'; '.join(cells)}")
    mixers = list(dict.fromkeys(name.split()[1] for name in results if name.startswith("mixer ")))
    for name in mixers:
        found = [results.get(f"mixer {name} T={T}") for T in lengths]
        lines.append(f"mixer {name}: {' / '.join(map(milliseconds, found))}")
    return lines


def milliseconds(result: dict | None) -> str:
    if not result:
        return "-"
    if "error" in result:
        text = result["error"]
        return "memory" if "OutOfMemory" in text else "-" if text.startswith("not reached") else text[:30]
    return f"{result['ms']:.3g}"


def numbers(kind: type) -> Any:
    return lambda text: [kind(part) for part in text.split(",")]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="the results; continued if there")
    parser.add_argument("--parts", type=numbers(int), default=[1, 2, 3, 4], help="such as 1,3")
    parser.add_argument("--seconds", type=numbers(float), help="of each part that runs, or one number for each")
    parser.add_argument("--mixers", type=numbers(str), default=[], help="only these, in parts 1 and 3")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 1) - 2), help="processes at once")
    parser.add_argument("--lengths", type=numbers(int), default=[], help="of part 3, instead of 2048,8192,32768")
    parser.add_argument("--what", type=numbers(str), default=["ops", "mixers"], help="of part 3: ops, mixers, or both")
    parser.add_argument("--steps", type=int, help="train for so many, instead of the experiment's")
    parser.add_argument("--show", action="store_true", help="only print the table of the results that are there")
    parser.add_argument("--tiny", action="store_true", help="on a CPU, at sizes that only show that it runs")
    options = parser.parse_args(arguments)
    if options.show:
        if not options.json.is_file():
            parser.error(f"there is no {options.json}: give the results with --json")
        print(table(json.loads(options.json.read_text())))
        return 0
    unknown = set(options.parts) - set(BUDGETS)
    if unknown:
        parser.error(f"there is no part {', '.join(map(str, unknown))}: choose from 1,2,3,4")
    budgets = options.seconds or [BUDGETS[part] for part in options.parts]
    budgets = budgets * len(options.parts) if len(budgets) == 1 else budgets
    if len(budgets) != len(options.parts):
        parser.error("--seconds takes one number, or as many as --parts")
    os.environ["FLA_CACHE_RESULTS"] = "0"  # what is tuned beside other processes is tuned badly
    bench = Bench(options)
    parts = {1: bench.conformance, 2: bench.exactness, 3: bench.speed, 4: bench.training}
    try:
        bench.about()
        for part, seconds in zip(options.parts, budgets, strict=True):
            start = time.monotonic()
            parts[part](seconds)
            print(f"part {part}: {time.monotonic() - start:.0f} s", flush=True)
    finally:
        bench.report.write()
        print(table(bench.report.data), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
