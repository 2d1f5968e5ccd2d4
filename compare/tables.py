"""The tables of a comparison: a row for each label, with what its runs scored and cost."""

from collections.abc import Callable
from dataclasses import dataclass

from compare import results, stats

SOLVED = 0.9  # an accuracy from which a task counts as solved, unless the record's metric names another


@dataclass(frozen=True)
class Row:
    """One label on one task, over its seeds."""

    label: str
    mixer: str
    runs: list[dict]  # by seed
    scores: dict[int, float]  # of the finished runs, by seed
    solved: tuple[int, int, float, float] | None = None  # how many of how many, and the interval of their share
    steps: list[float] | None = None  # to the threshold, of each of these; inf where it was not reached
    difference: stats.Paired | None = None  # to the baseline (of a twin: to its own), at the seeds that both finished
    p: float | None = None  # of that difference, after Holm over the labels

    @property
    def again(self) -> str:
        """The label that this one repeats, to show what the protocol cannot resolve; mostly none."""
        return first(self.runs, "aa", "")

    @property
    def mean(self) -> float | None:
        return stats.mean(list(self.scores.values())) if self.scores else None

    @property
    def interval(self) -> tuple[float, float] | None:
        return stats.interval(list(self.scores.values()))

    @property
    def seeds_needed(self) -> int | None:
        """How many would resolve the difference to the baseline, where so many do not."""
        unresolved = self.p is not None and self.p >= 0.05
        return self.difference.seeds_needed if unresolved and self.difference else None

    @property
    def match(self) -> dict:
        """What was done to meet a budget: see plan.match."""
        return first(self.runs, "match", {})

    @property
    def selection(self) -> dict:
        """What validation chose before the runs: see plan.select."""
        return first(self.runs, "selection", {})

    @property
    def outcome(self) -> str:
        """`finished`, or what became of the other runs: "impossible", "2 of 3 diverged"."""
        parts = []
        for outcome in results.OUTCOMES[1:]:
            count = sum(run["outcome"] == outcome for run in self.runs)
            if count:
                parts.append(outcome if count == len(self.runs) else f"{count} of {len(self.runs)} {outcome}")
        return ", ".join(parts) or "finished"

    def cost(self, part: str, key: str | None = None, pick: Callable = max) -> float | None:
        """One number of what the runs cost, `pick`ed over the seeds; without a key that of the longest length."""
        values = []
        for run in self.runs:
            measured = run.get(part) or {}
            if key is None and measured:
                measured = {key: measured[max(measured, key=int)]}
            if measured.get(key) is not None:
                values.append(measured[key])
        return pick(values) if values else None


@dataclass(frozen=True)
class Table:
    """One task."""

    task: str
    metric: str
    higher: bool  # is better
    rows: list[Row]  # the baseline first
    references: dict[str, float]  # chance and the trivial baselines
    baseline: str | None
    length: int | None  # at which state and FLOPs were measured
    protocol: dict
    verdict: str
    notes: list[str]

    @property
    def seeds(self) -> list[int]:
        return sorted({run["seed"] for row in self.rows for run in row.runs})


@dataclass(frozen=True)
class Comparison:
    tables: list[Table]
    warnings: list[str]

    @property
    def finished(self) -> bool:
        return all(run["outcome"] == "finished" for table in self.tables for row in table.rows for run in row.runs)


def first(runs: list[dict], key: str, default):
    """What the first of the runs that has it says under `key`."""
    return next((run[key] for run in runs if run.get(key)), default)


def differences(row: Row, other: Row) -> list[float]:
    """Scores of row minus those of other, at the seeds that both finished."""
    return [row.scores[seed] - other.scores[seed] for seed in sorted(row.scores.keys() & other.scores.keys())]


def curve(run: dict, key: str = "step") -> list[tuple[float, float]]:
    """(step, or seconds of training, and validation score) where there is one."""
    points = [(point.get(key), point.get("validation/score")) for point in run.get("curve") or []]
    return [(at, score) for at, score in points if at is not None and score is not None]


def threshold(metric: dict) -> float | None:
    return metric.get("solved", SOLVED if metric["name"] == "accuracy" else None)
