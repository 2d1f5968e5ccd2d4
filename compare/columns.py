"""The columns of a table, the same in the terminal, in markdown, in CSV and in HTML."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from compare import slices, stats
from compare.tables import SOLVED, Row, Table, curve, first, threshold
from compare.text import binary, p_value, short, si


@dataclass(frozen=True)
class Cell:
    text: str = ""
    raw: tuple = (None,)  # what the CSV gets, one value for each of the column's names there


@dataclass(frozen=True)
class Column:
    head: str
    names: tuple[str, ...]  # in the CSV
    cell: Callable[[Row], Cell]
    cost: bool = False  # a cost, not a score

    def reference(self, name: str, value: float) -> Cell:
        """What it shows of chance or of a trivial baseline."""
        cells = {"mixer": (name, name), "mean": (f"{value:.3f}", value), "outcome": ("reference", "reference")}
        text, raw = cells.get(self.names[0], ("", None))
        return Cell(text, (raw,))


def columns(table: Table) -> list[Column]:
    """The columns of a table that have something to show, the same in the terminal, in markdown, in CSV and in HTML."""
    metric = first([run for row in table.rows for run in row.runs], "metric", {"name": ""})
    share = f"{100 * (threshold(metric) or SOLVED):g} %"
    every = [
        Column("mixer", ("mixer",), lambda row: Cell(row.label, (row.label,))),
        Column(f"{table.metric} by seed", ("scores",), lambda row: _scores(row, table.seeds)),
        Column(
            "mean [95 %]", ("mean", "mean low", "mean high"), lambda row: _estimate(row.mean, row.interval, "{:.3f}")
        ),
        Column("solved", ("solved", "solved low", "solved high"), _solved_cell),
        Column(
            f"− {table.baseline} [95 %]",
            ("difference", "difference low", "difference high"),
            lambda row: _estimate(row.difference.mean, row.difference.interval, "{:+.3f}") if row.difference else _GAP,
        ),
        Column("p (Holm)", ("p",), lambda row: _p(row.p)),
        Column("exact p", ("exact p",), lambda row: _p(row.difference and row.difference.sign_flip)),
        Column("seeds to tell", ("seeds to tell",), lambda row: _number(row.seeds_needed, "{:,}".format)),
        Column("steps", ("steps", "steps by seed"), _steps),
        Column(f"pairs at {share}", ("pairs", "pairs low", "pairs high"), lambda row: _reach(row, "pairs")),
        Column(
            "pairs per KiB of state",
            ("pairs per KiB", "pairs per KiB low", "pairs per KiB high"),
            lambda row: _reach(row, "pairs", per_kib=True),
        ),
        Column(f"longest at {share}", ("longest", "longest low", "longest high"), lambda row: _reach(row, "length")),
        Column("match", ("match",), lambda row: _number(row.match.get("residual"), "{:+.1%}".format)),
        Column("outcome", ("outcome",), lambda row: Cell(row.outcome, (row.outcome,))),
        Column("params", ("parameters",), lambda row: _number(row.cost("parameters", "total"), si), True),
        Column("state", ("state bytes",), lambda row: _number(row.cost("state_bytes"), binary), True),
        Column("FLOPs/token", ("FLOPs/token",), lambda row: _number(row.cost("flops", "forward_per_token"), si), True),
        Column(
            "tokens/s", ("tokens/s",), lambda row: _number(row.cost("speed", "tokens_per_second", median), si), True
        ),
        Column("peak", ("peak bytes",), lambda row: _number(row.cost("speed", "peak_bytes"), binary), True),
    ]
    return [column for column in every if any(column.cell(row).text for row in table.rows)]


_GAP = Cell("", (None, None, None))


def _number(value: float | None, form: Callable[[float], str]) -> Cell:
    return Cell() if value is None else Cell(form(value), (value,))


def _estimate(mean: float | None, ends: tuple[float, float] | None, form: str) -> Cell:
    if mean is None:
        return _GAP
    if ends is None:
        return Cell(form.format(mean), (mean, None, None))
    return Cell(f"{form.format(mean)} [{form.format(ends[0])}, {form.format(ends[1])}]", (mean, *ends))


def _p(p: float | None) -> Cell:
    return _number(p, lambda p: p_value(p).removeprefix("= "))


def _reach(row: Row, axis: str, per_kib: bool = False) -> Cell:
    lows, highs = slices.reach(row, axis, per_kib)
    if not lows:
        return _GAP
    if lows == highs:
        return _estimate(stats.mean(lows), stats.interval(lows), "{:,.3g}")
    low, high = min(lows), max(highs)
    if high == math.inf:
        return Cell(f">= {low:,.3g}", (None, low, None))
    return Cell(f"< {high:,.3g}", (None, low, high))


def _scores(row: Row, seeds: list[int]) -> Cell:
    if not row.scores:
        if all(run["outcome"] == "finished" for run in row.runs):
            text = "not run in part: see the notes"
        else:
            reason = next((run["reason"] for run in row.runs if run["reason"]), "no reason was recorded")
            text = f"{row.runs[0]['outcome']}: {short(reason.split(':')[0], 22)}"
        return Cell(text, (text,))
    shown = [seed for seed in seeds if seed in {run["seed"] for run in row.runs}]
    text = " ".join(f"{row.scores[seed]:.3f}" if seed in row.scores else "–" for seed in shown)
    return Cell(text, (" ".join(f"{seed}={score!r}" for seed, score in row.scores.items()),))


def _solved_cell(row: Row) -> Cell:
    if row.solved is None:
        return _GAP
    count, n, low, high = row.solved
    return Cell(f"{count}/{n} [{low:.0%}, {high:.0%}]", (count, low, high))


def _steps(row: Row) -> Cell:
    if row.steps is None:
        return Cell("", (None, None))
    middle = median(row.steps)
    if middle == math.inf:
        last = max(step for run in row.runs for step, _ in curve(run))
        return Cell(f"> {last:,}", (None, " ".join(map(str, row.steps))))
    return Cell(f"{middle:,.0f}", (middle, " ".join(map(str, row.steps))))
