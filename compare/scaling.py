"""How cost grows with length: the probe at several lengths, slopes, and from where on a mixer costs less than another.

A series is one mixer in one mode. It stops, and says so, before a length that would exceed its budget.
"""

import functools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path

import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn

from compare import budget, page, results, speed, stats
from compare.report import line, plain
from compare.text import binary, si

MODES = {
    "forward": "forward, all logits",
    "prefill": "prefill, the last logits and the state",
    "train": "training step: forward, loss, backward",
    "decode": "decode, one token after so many",
}
CALLS = 8  # at most, for one point: to warm up, to time, to trace the memory
Model = Callable[[str, int], nn.Module]


@dataclass(frozen=True)
class Point:
    """One length of a series; a reason in place of the numbers where it was not measured."""

    mixer: str
    mode: str
    length: int
    seconds: float | None = None
    peak: int | None = None  # bytes of live tensors
    held: int = 0  # of which the model, the batch and the state were there before
    reason: str = ""

    @property
    def us_per_token(self) -> float | None:
        if self.seconds is None:
            return None
        return self.seconds * 1e6 / (1 if self.mode == "decode" else self.length)

    @property
    def bytes_per_token(self) -> float | None:
        """What the call adds to what was held; for decoding, with the state that it needs."""
        return None if self.peak is None else (self.peak - self.held) / (1 if self.mode == "decode" else self.length)


def points(
    mixers: list[str], lengths: list[int], model: Model, seconds: float, memory: float, say: Callable[[Point], None]
) -> list[Point]:
    """Every mixer at every length in every mode, shortest first; `say` hears of each point as it is there.

    model: (mixer, length) -> a Model. seconds, memory: of one series, in seconds and in bytes.
    """
    found: list[Point] = []
    for mixer in mixers:
        series: dict[str, list[Point]] = {mode: [] for mode in speed.MODES}
        spent = dict.fromkeys(speed.MODES, 0.0)
        for length in sorted(lengths):
            open_ = [mode for mode in speed.MODES if not any(point.reason for point in series[mode])]
            built, reason = None, ""
            try:
                built = model(mixer, length).eval() if open_ else None
            except (InstantiationException, ValueError) as error:
                reason = str(error.__cause__ or error).splitlines()[0]
            for mode in open_:
                own = series[mode]
                why = reason or _exceeds(own, length, seconds - spent[mode], memory)
                if mode == "decode" and not why and (prefill := series["prefill"][-1]).reason:
                    why = prefill.reason
                start = time.monotonic()
                own.append(_point(built, mixer, mode, length, why, seconds))
                spent[mode] += time.monotonic() - start
                say(own[-1])
        found += [point for own in series.values() for point in own]
    return found


def _point(model: nn.Module | None, mixer: str, mode: str, length: int, reason: str, seconds: float) -> Point:
    if model is not None and not reason and mode == "decode" and not _causal(model):
        reason = "it looks ahead: there is nothing to decode"
    if model is None or reason:
        return Point(mixer, mode, length, reason=reason)
    tokens = torch.zeros(1, length, dtype=torch.int64)
    try:
        return Point(mixer, mode, length, *speed.costs(model, tokens, mode, seconds / CALLS))
    except (ValueError, RuntimeError, MemoryError) as error:  # too long for the mixer, or for the machine
        return Point(mixer, mode, length, reason=str(error).splitlines()[0])


def _causal(model: nn.Module) -> bool:
    return all(module.causal for module in model.modules() if isinstance(module, budget.Mixer))


def _exceeds(own: list[Point], length: int, seconds: float, memory: float) -> str:
    """Why the next length should not be tried, from the last two: a first step may grow with the square."""
    if not own:
        return ""

    def ahead(values: list[float]) -> float:
        steepest = 2.0
        if len(own) > 1:
            steepest = max(1.0, stats.slope([point.length for point in own[-2:]], values[-2:]) or 1.0)
        return values[-1] * (length / own[-1].length) ** steepest

    took, needs = ahead([point.seconds or 0 for point in own]) * 3, ahead([point.peak or 0 for point in own])
    if took > seconds:
        return f"stopped: about {took:,.1f} s more, and {max(seconds, 0):,.1f} s of the series' budget are left"
    if needs > memory:
        return f"stopped: about {binary(needs)}, and the budget is {binary(memory)}"
    return ""


# -- the command ------------------------------------------------------------------------------------------------------


def words(arguments: Iterable[str]) -> tuple[list[str], list[int], list[str]]:
    """mixer=a,b length=1024,4096 and any other override -> ([a, b], [1024, 4096], the others)."""
    mixers, lengths, others = [], [], []
    try:
        parsed = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(list(arguments))
        keys = [override.key_or_group for override in parsed]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise ValueError(f"{twice[0]} is given twice: leave one out")
        for override in parsed:
            values = list(override.sweep_string_iterator()) if override.is_sweep_override() else [override.value()]
            if override.key_or_group == "mixer":
                mixers = [str(value) for value in values]
            elif override.key_or_group == "length":
                lengths = [int(value) for value in values]
            else:
                others.append(override.input_line)
    except HydraException as error:
        raise ValueError(str(error).splitlines()[0]) from None
    if not mixers or not lengths or min(lengths) < 2:
        raise ValueError("say which mixers and lengths (of 2 or more): mixer=softmax,gla length=1024,4096,16384")
    return mixers, sorted(set(lengths)), [str(word) for word in others]


def configured(mixer: str, length: int, others: list[str]) -> DictConfig:
    """The configuration of train.py for a mixer at a length. Raises ValueError for what Hydra cannot compose."""
    facts = [f"mixer={mixer}", *others, f"task.length={length}", f"task.max_length={length}"]
    try:
        cfg = compose("train", overrides=facts)
    except HydraException as error:
        raise ValueError(str(error).splitlines()[0]) from None
    if cfg.model.pool == "pair":
        raise ValueError(f"task={cfg.task.name} has pairs of sequences: choose a task of one sequence")
    cfg.label = mixer
    return cfg


def run_speed(arguments: list[str], seconds: float, memory: float, out: Path) -> None:
    """Measure, print and write speed.csv, speed.md and speed.html to `out`."""
    console = Console()
    with initialize_config_module("conf", version_base="1.3"):
        mixers, lengths, others = words(arguments)
        for mixer in mixers:
            configured(mixer, lengths[0], others)  # a misspelt name before the first minute, not after it

        def model(mixer: str, length: int) -> nn.Module:
            return instantiate(configured(mixer, length, others).model)

        bar = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        with Progress(*bar, console=Console(stderr=True)) as progress:
            task = progress.add_task("measuring", total=len(mixers) * len(lengths) * len(MODES))
            done: dict[tuple[str, str], int] = {}

            def say(point: Point) -> None:
                cost = "not run" if point.reason else f"{point.us_per_token:,.3g} us/token"  # short: the bar needs room
                series = point.mixer, point.mode
                here = lengths.index(point.length) + 1 if not point.reason else len(lengths)  # what stops stays stopped
                progress.advance(task, here - done.get(series, 0))
                done[series] = here
                progress.update(task, description=f"{point.mixer} {point.mode} {point.length:,}: {cost}")

            found = points(mixers, lengths, model, seconds, memory, say)
    sections = tables(found)
    for title, head, lines in sections:
        console.print(f"\n[bold]{title}[/bold]")
        console.print(plain(head, lines))
    for note in notes(found):
        console.print(note, style="dim", markup=False)
    out.mkdir(parents=True, exist_ok=True)
    results.write_csv(out / "speed.csv", rows(found))
    results.replace(out / "speed.md", markdown(found, sections))
    results.replace(out / "speed.html", html(found, sections))
    print(f"\nspeed: {out / 'speed.html'}")


def run_budget(arguments: list[str], out: Path | None) -> None:
    """Print what models cost before anything is computed, and write it to `out`, a CSV file, if given."""
    found = []
    with initialize_config_module("conf", version_base="1.3"):
        mixers, lengths, others = words(arguments)
        for mixer in mixers:
            for length in lengths:
                row: dict = {"mixer": mixer, "length": length}
                try:
                    make = functools.partial(instantiate, configured(mixer, length, others).model)
                    model = budget._on_meta(make)
                    flops = budget.flops(make, length)
                    counted = budget.parameters(model)
                    row |= {"parameters": counted["total"], "mixers": counted["mixer"]}
                    row |= {"state bytes": budget.state_bytes(make, length)}
                    row |= {key: flops[f"{key}_per_token"] for key in ("forward", "training", "decode")}
                except InstantiationException as error:
                    row |= {"reason": str(error.__cause__ or error).splitlines()[0]}
                found.append(row)
    head = ["mixer", "length", "parameters", "mixers", "state bytes", "forward", "training", "decode"]
    forms: dict[str, Callable] = {"mixer": str, "length": "{:,}".format, "state bytes": binary}
    lines = [["" if row.get(key) is None else forms.get(key, si)(row[key]) for key in head] for row in found]
    console = Console()
    console.print("\n[bold]budget[/bold]   FLOPs are per token, the rest per model at batch 1")
    console.print(plain(head, lines))
    for row in found:
        if "reason" in row:
            console.print(f"{row['mixer']} at {row['length']:,}: {row['reason']}", style="dim", markup=False)
    if out:
        results.write_csv(out, found)


# -- what is said -----------------------------------------------------------------------------------------------------


def tables(found: list[Point]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, head, lines) of time and of memory in each mode: the lengths, the slope, where a mixer gets cheaper."""
    made = []
    lengths = sorted({point.length for point in found})
    mixers = list(dict.fromkeys(point.mixer for point in found))
    base = results.BASELINE if results.BASELINE in mixers else mixers[0]
    for mode, title in MODES.items():
        for what, form in (("us per token", "{:,.3g}".format), ("bytes per token", binary)):
            by = {mixer: _series(found, mixer, mode, what) for mixer in mixers}
            head = ["mixer", *(f"{length:,}" for length in lengths), "slope", f"below {base}"]
            lines = []
            for mixer, own in by.items():
                cells = [form(own[length]) if length in own else "-" for length in lengths]
                growth = stats.slope(list(own), list(own.values()))
                lines.append(
                    [mixer, *cells, "" if growth is None else f"{growth:+.2f}"]
                    + ["" if mixer == base else _below(own, by[base])]
                )
            made.append((f"{title}: {what}", head, lines))
    return made


def _series(found: list[Point], mixer: str, mode: str, what: str) -> dict[float, float]:
    values = {}
    for point in found:
        value = point.us_per_token if what == "us per token" else point.bytes_per_token
        if (point.mixer, point.mode) == (mixer, mode) and value is not None:
            values[point.length] = value
    return values


def _below(ours: dict[float, float], theirs: dict[float, float]) -> str:
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        return "not both measured"
    point = stats.crossover(ours, theirs)
    if point is None:
        return f"not up to {shared[-1]:,}"
    return f"always, from {shared[0]:,}" if point == shared[0] else f"from {round(point):,}"


def notes(found: list[Point]) -> list[str]:
    said = [
        "one sequence, one thread, the median of up to 5 calls; memory is what a call adds to the model and its state"
    ]
    said += ["slope: the exponent of length in a number per token: 0 for a linear cost, 1 for a quadratic one"]
    stopped: dict[tuple[str, int, str], list[str]] = {}
    for point in found:
        if point.reason:
            stopped.setdefault((point.mixer, point.length, point.reason), []).append(point.mode)
    return said + [f"{mixer} {', '.join(modes)} at {n:,}: {why}" for (mixer, n, why), modes in stopped.items()]


def markdown(found: list[Point], sections: list[tuple[str, list[str], list[list[str]]]]) -> str:
    lines = ["# Speed and memory by length", ""]
    for title, head, body in sections:
        lines += [f"## {title}", "", line(head), line("---" for _ in head), *map(line, body), ""]
    return "\n".join([*lines, *(f"- {note}" for note in notes(found)), ""])


def rows(found: list[Point]) -> list[dict]:
    return [
        {
            **{"mixer": point.mixer, "mode": point.mode, "length": point.length, "seconds": point.seconds},
            **{"us per token": point.us_per_token, "peak bytes": point.peak, "bytes per token": point.bytes_per_token},
            "reason": point.reason,
        }
        for point in found
    ]


def html(found: list[Point], sections: list[tuple[str, list[str], list[list[str]]]]) -> str:
    """The page, in the report's own style."""
    from compare import figures

    mixers = list(dict.fromkeys(point.mixer for point in found))
    drawn = []
    for mode in MODES:
        for what in ("us per token", "bytes per token"):
            data: list[list] = []

            def plot(ax, mode=mode, what=what, data=data):
                for i, mixer in enumerate(mixers):
                    own = _series(found, mixer, mode, what)
                    own = {length: value for length, value in own.items() if value > 0}
                    ax.plot(list(own), list(own.values()), label=mixer, **figures.look(i))
                    data += [[mixer, length, value] for length, value in own.items()]
                ax.set_xscale("log", base=2)
                ax.set_yscale("log")
                ax.set(xlabel="tokens", ylabel=what)

            drawn.append(
                page.drawing("speed", figures.figure("speed", f"{mode}: {what}", plot, ["mixer", "length", what], data))
            )
    body = "".join(
        f"<section><h2>{escape(title)}</h2>{page.plain(head, lines)}</section>" for title, head, lines in sections
    )
    said = "".join(f"<li>{escape(note)}</li>" for note in notes(found))
    body = f'<section><div class="figures">{"".join(drawn)}</div><ul>{said}</ul></section>{body}'
    environment = results.environment()
    where = f"torch {environment['torch']}, {environment['cpu']}, {environment['code']}"
    return page.document("Speed and memory by length", where, body)
