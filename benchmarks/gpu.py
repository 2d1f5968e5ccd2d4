"""Conformance, exactness, speed and training on one CUDA device, in under 10 minutes.

    python -m benchmarks.gpu --json gpu.json

    1  the conformance suite of every mixer in every direction, in fp32 and in bf16 (autocast)
    2  the torch and fla engines, and FLA's own functions, against the definitions in float64
    3  forward and backward of every op, and a training step of every mixer: 32k tokens at T = 2k, 8k and 32k, H = 16,
       K = V = 128, bf16; by CUDA events, medians; beside them FLA's own functions, torch's flash attention and the
       floor that the device's measured bandwidth and products set
    4  `experiment=recall_full` (Zoology's sizes) for five mixers, as far as the time allows
    5  (if asked for) the fla engine, and FLA's own functions, against the definitions at other widths of keys and
       values, and with several configurations of the kernels: some compilers make wrong ones, which
       `mixers.ops.fla.calls` avoids

What is not timed goes first, many processes at once, on every device that there is: 4 in the background, meanwhile 1,
2 and the compiling for 3. Then everything else ends, and 3 is timed, one process on each device, what takes seconds
last. What there was no time for is named. The JSON is whole at any time. Devices must be of one kind. `inner_loop` and
`block_attention` have no rows of their own: they are measured in the mixers that use them.
"""

import argparse
import csv
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import gpu_work
from benchmarks.gpu_cases import CASES, OWN, Sizes
from benchmarks.gpu_table import kind, table
from benchmarks.pool import Pool, Task

ROOT = Path(__file__).resolve().parents[1]
PARTS = (1, 2, 3, 4, 5)
SECONDS = 570.0  # for all parts
UNTIMED = 0.5  # of them at the most for what is not timed
CONFORMING = 0.5  # and of those for what must be known before the rest can begin
LAST_STEP = 25.0  # seconds that a run of part 4 may take to end when it is asked to
TRAINED = ("softmax", "linear_attention", "gla", "gated_delta_net", "mamba2")
STEPS = 1000  # of training; the experiment's own are 22500
SLOW = ("check_law", "check_causality", "check_remembers")  # last, so that all else is seen of every mixer
FLA_OPS = {"linear_attention", "delta_rule", "gated_delta", "dplr", "scan"}
TOKENS = 32768
LENGTHS = [2048, 8192, 32768]
WIDTHS = list(itertools.product((16, 32, 64, 96, 128), (16, 32, 64, 128)))  # of keys and values
CONFIGURATIONS = [0, 1, 2]
FORCED = ("linear_attention, scalar decay", "delta_rule, scalar decay")  # what FLA refuses on Hopper with some Tritons
AMONG = 2  # configurations of each of FLA's kernels, which has up to 48: most of the time goes into compiling them
TRAIN = "from benchmarks.gpu_work import tuned; tuned(1, timing=False); import train; train.main()"


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
        self.steps: int = 2 if self.tiny else options.steps
        self.what: list[str] = options.what
        self.sizes = Sizes(2, 16, 16, 4) if self.tiny else Sizes()
        self.pairs, self.configurations = options.widths, options.configurations
        self.tokens, lengths = (128, [64, 128]) if self.tiny else (TOKENS, LENGTHS)
        self.lengths = options.lengths or lengths

    def run(self, parts: list[int], seconds: float) -> None:
        self.start = start = time.monotonic()
        last = start + seconds * (UNTIMED if 3 in parts else 1.0)
        with Pool(1) as first:
            self.about(first)
        self.say("the beginning")
        timed = self.timed() if 3 in parts else []
        with tempfile.TemporaryDirectory() as place:
            runs = self.train(Path(place)) if 4 in parts else {}
            try:
                with Pool(self.workers, self.devices) as pool:
                    tasks = self.untimed(pool, parts, timed, start, last)
                self.say("what is not timed")
                with self.one_each() as pool:
                    self.go(pool, [task for task in tasks if self.was_crowded_out(task)], last)
            finally:
                self.finish(runs, Path(place), last)
        self.say("training")
        if timed:
            with self.one_each() as pool:
                self.time(pool, timed, start + seconds)

    def say(self, done: str) -> None:
        print(f"{time.monotonic() - self.start:.0f} s: {done} done", flush=True)

    def one_each(self) -> Pool:
        return Pool(len(self.devices), self.devices)

    def go(self, pool: Pool, tasks: list[Task], deadline: float) -> None:
        pool.run(tasks, deadline, lambda task, result: self.report.put(task.part, task.name, result))
        self.report.write()

    def about(self, pool: Pool) -> None:
        facts = Task("about", "machine", gpu_work.machine, {"device": self.device}, 60)
        listing = Task("about", "mixers", gpu_work.labels, {"names": self.names}, 60)
        self.go(pool, [facts, listing], time.monotonic() + 180)
        found = self.report.data["about"]
        if "error" in found["machine"] or "error" in found["mixers"]:
            raise RuntimeError(f"cannot begin: {found['machine'].get('error') or found['mixers']['error']}")
        self.labels: list[str] = found["mixers"]["labels"]
        self.devices: list[str] = found["machine"]["devices"]

    def untimed(self, pool: Pool, parts: list[int], timed: list[list[Task]], start: float, last: float) -> list[Task]:
        """Conformance by the torch engine says which mixers have ops in the fla engine. What compiles for part 3 takes
        longest, and goes before part 2. Returns all tasks.
        """
        cuda = self.device == "cuda"
        first = self.conformance("torch", self.labels) if 1 in parts else []
        if first:
            self.go(pool, first, start + (last - start) * (CONFORMING if cuda else 1.0))
            self.say("conformance by torch")
        tasks: list[Task] = []
        served, without = serving(self.report.data.get("conformance", {}))
        if cuda:
            tasks += self.conformance("fla", [label for label in self.labels if label in served]) if 1 in parts else []
            tasks += compiling([task for tasks in timed for task in tasks], without)
        tasks += self.exactness() if 2 in parts else []
        tasks += self.widths() if 5 in parts else []
        self.go(pool, tasks, last)
        return first + tasks

    def was_crowded_out(self, task: Task) -> bool:
        return "out of memory" in self.report.data[task.part][task.name].get("error", "")

    def conformance(self, engine: str, labels: list[str]) -> list[Task]:
        from mixers import testing

        checks = {"fp32": testing.CHECKS, "bf16": testing.ABOUT_NUMBERS}
        order = [(check.__name__ in SLOW, dtype, check.__name__) for dtype in checks for check in checks[dtype]]
        limit = 30 if engine == "torch" else 100  # some kernels take 40 s to compile
        tasks = []
        for _, dtype, check in sorted(order, key=lambda row: row[0]):
            for label in labels:
                arguments = {"label": label, "check": check, "dtype": dtype, "engine": engine, "device": self.device}
                tasks.append(
                    Task("conformance", f"{label} {dtype} {engine} {check}", gpu_work.conform, arguments, limit)
                )
        return tasks

    def engines(self, name: str) -> list[str]:
        """What can be asked for this case: own is what FLA or torch offers."""
        if self.tiny:
            return ["torch"] + ["own"] * (name == "attention")
        fla = CASES[name].op.__name__ in FLA_OPS
        return ["torch"] + ["fla"] * fla + ["own"] * (name in OWN)

    def exactness(self) -> list[Task]:
        common = {"device": self.device, "sizes": self.sizes}
        tasks = []
        for name, dtype in itertools.product(CASES, gpu_work.DTYPES):
            T = 20 if self.tiny else 40 if name == "log_linear" else 130  # whose definition grows with T^2
            for engine in self.engines(name) + ["forced"] * (name in FORCED and not self.tiny):
                arguments = {"name": name, "engine": engine, "dtype": dtype, "T": T, **common}
                tasks.append(Task("exactness", f"{name} {dtype} {engine}", gpu_work.against_definition, arguments, 100))
        return tasks

    def widths(self) -> list[Task]:
        """By the fla engine, which must be right, and in half precision by FLA's own functions, which not all are."""
        given = itertools.product(self.configurations, self.pairs, gpu_work.DTYPES, CASES)
        tasks = []
        for configuration, (K, V), dtype, name in given:
            if not {"fla", "own"} <= set(self.engines(name)):
                continue  # nothing of FLA's, or the same as another
            sizes = self.sizes._replace(H=2, K=K, V=V)
            common = {"name": name, "dtype": dtype, "T": 130, "device": self.device, "sizes": sizes}
            for engine in ["fla"] + ["own"] * (dtype == "bf16" and name not in FORCED):
                arguments = {"engine": engine, "configuration": configuration, **common}
                label = f"{name} {dtype} {engine} {K}x{V} #{configuration}"
                tasks.append(Task("widths", label, gpu_work.against_definition, arguments, 100))
        return tasks

    def timed(self) -> list[list[Task]]:
        """What part 3 times: of ops, and of mixers, of each length."""
        common = {"device": self.device, "budget": 0.01 if self.tiny else 0.15}
        mixers = list(dict.fromkeys(label.rpartition("-")[0] for label in self.labels))
        of_ops, of_mixers = [], []
        for T in self.lengths:
            size = {"B": self.tokens // T, "T": T, **common}
            ops = [(name, engine) for name in CASES for engine in self.engines(name)]
            of_ops.append([self.op_task(name, engine, size) for name, engine in ops])
            of_mixers.append([self.mixer_task(name, size) for name in mixers])
        return of_ops * ("ops" in self.what) + of_mixers * ("mixers" in self.what)

    def op_task(self, name: str, engine: str, size: dict) -> Task:
        among = 0 if self.tiny else AMONG
        arguments = {"name": name, "engine": engine, "sizes": self.sizes, "among": among, **size}
        return Task("speed", f"{name} {engine} T={size['T']}", gpu_work.op_speed, arguments, 40)

    def mixer_task(self, name: str, size: dict) -> Task:
        among = 0 if self.tiny else AMONG
        arguments = {"name": name, "d_model": self.sizes.channels, "n_heads": self.sizes.H, "among": among, **size}
        return Task("speed", f"mixer {name} T={size['T']}", gpu_work.mixer_speed, arguments, 100)

    def time(self, pool: Pool, timed: list[list[Task]], deadline: float) -> None:
        """One after the other on each device, in processes that have tuned nothing yet. What was slow at another length
        goes last.
        """
        ceilings = Task("speed", "ceilings", gpu_work.ceilings, {"device": self.device, "tiny": self.tiny}, 30)
        self.go(pool, [ceilings], deadline)
        for tasks in timed:
            self.go(pool, sorted(tasks, key=self.slowest), deadline)
            self.say(f"timing of {len(tasks)} at T = {tasks[0].name.rpartition('=')[2]}")

    def slowest(self, task: Task) -> float:
        """Milliseconds that this took at any length that there is."""
        name = task.name.rpartition("T=")[0]
        known = [r for other, r in self.report.data["speed"].items() if other.startswith(name)]
        return max((r["ms"] for r in known if r.get("ms", 0) > 1000), default=0.0)

    def train(self, place: Path) -> dict[str, subprocess.Popen]:
        """All at once: none of them fills a device."""
        experiment = "smoke" if self.tiny else "recall_full"
        more = ["task.data.train=[{length: 64, pairs: 4, n: 100}]"] if self.tiny else []
        more += [f"trainer.max_steps={self.steps}", "logger=none", "probe=false", "trainer.enable_progress_bar=false"]
        runs = {}
        for i, name in enumerate(TRAINED[:1] if self.tiny else TRAINED):
            own = place / name
            own.mkdir()
            command = [sys.executable, "-c", TRAIN, f"experiment={experiment}", f"mixer={name}", f"runs={own / 'runs'}"]
            environment = os.environ | {"CUDA_VISIBLE_DEVICES": self.devices[i % len(self.devices)]}
            with (own / "log").open("w") as log:
                runs[name] = subprocess.Popen(
                    [*command, *more], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
                )
        return runs

    def finish(self, runs: dict[str, subprocess.Popen], place: Path, deadline: float) -> None:
        """SIGINT ends a run after the step that is under way; what it has learned is in its record."""
        while time.monotonic() < deadline and any(run.poll() is None for run in runs.values()):
            time.sleep(0.2)
        for run in runs.values():
            if run.poll() is None:
                run.send_signal(signal.SIGINT)
        for name, run in runs.items():
            try:
                run.wait(max(1.0, deadline + LAST_STEP - time.monotonic()))
            except subprocess.TimeoutExpired:
                run.kill()
                run.wait()
            self.report.put("training", name, learned(place / name, run.returncode))
        self.report.write()


def serving(conformance: dict[str, dict]) -> tuple[set[str], set[str]]:
    """Variants of mixers that use ops which the fla engine has, and mixers that were seen to use none."""
    seen = {name.split()[0] for name, r in conformance.items() if "served" in r}
    served = {name.split()[0] for name, r in conformance.items() if FLA_OPS & set(r.get("served", ()))}
    mixers, with_kernels = ({label.rpartition("-")[0] for label in labels} for labels in (seen, served))
    return served, mixers - with_kernels


def compiling(tasks: list[Task], without: set[str]) -> list[Task]:
    """What compiles all that FLA's kernels need for these tasks: some are compiled for each size of a batch, and none
    for a length. without: mixers that use none.
    """
    return [
        Task(
            "compiled",
            f"{task.name.split(' T=')[0]} B={task.arguments['B']}",
            task.function,
            task.arguments | {"T": 256, "budget": 0.0},
            300,
        )
        for task in tasks
        if task.arguments.get("engine") != "torch" and task.arguments["name"] not in without
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


def numbers(kind: type) -> Any:
    return lambda text: [kind(part) for part in text.split(",")]


def pairs(text: str) -> list[tuple[int, int]]:
    """[(64, 16), (128, 128)] of "64x16,128x128"."""
    if not re.fullmatch(r"\d+x\d+(,\d+x\d+)*", text):
        raise argparse.ArgumentTypeError(f"{text} is not keys x values, such as 64x16,128x128")
    return [(int(keys), int(values)) for keys, values in (part.split("x") for part in text.split(","))]


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="the results; continued if there")
    parser.add_argument("--parts", type=numbers(int), default=[1, 2, 3, 4], help="such as 1,3, or 5")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all of it")
    parser.add_argument("--mixers", type=numbers(str), default=[], help="only these, in parts 1 and 3")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes at once")
    parser.add_argument("--lengths", type=numbers(int), default=[], help="of part 3, instead of 2048,8192,32768")
    parser.add_argument("--what", type=numbers(str), default=["ops", "mixers"], help="of part 3: ops, mixers, or both")
    parser.add_argument("--widths", type=pairs, default=WIDTHS, help="of part 5: such as 64x16,128x128, keys x values")
    parser.add_argument("--configurations", type=numbers(int), default=CONFIGURATIONS, help="of part 5: such as 0,1")
    parser.add_argument("--steps", type=int, default=STEPS, help="of training, the schedule included")
    parser.add_argument("--show", action="store_true", help="only print the table of the results that are there")
    parser.add_argument("--tiny", action="store_true", help="on a CPU, at sizes that only show that it runs")
    given = parser.parse_args(arguments)
    if given.show and not given.json.is_file():
        parser.error(f"there is no {given.json}: give the results with --json")
    unknown = set(given.parts) - set(PARTS)
    if unknown:
        parser.error(f"there is no part {', '.join(map(str, unknown))}: choose from {','.join(map(str, PARTS))}")
    return given


def main(arguments: list[str] | None = None) -> int:
    given = options(arguments)
    if given.show:
        print(table(json.loads(given.json.read_text())))
        return 0
    os.environ["FLA_CACHE_RESULTS"] = "0"  # what is tuned beside other processes is tuned badly
    bench = Bench(given)
    try:
        bench.run(given.parts, given.seconds)
    finally:
        bench.report.write()
        print(table(bench.report.data), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
