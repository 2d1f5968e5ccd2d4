"""The slices of a test set: their mean scores, scores along an axis, and how far along it a mixer solves the task."""

import math

from compare import stats
from compare.tables import Row, Table, threshold


def means(table: Table) -> list[list[str]]:
    """The mean score over seeds: headings, then a line per slice, a column per mixer. [] where there is one slice."""
    found: dict[str, dict[str, list[dict]]] = {}
    for row in table.rows:
        for run in row.runs:
            for part in run.get("slices") or []:
                found.setdefault(part["name"], {}).setdefault(row.label, []).append(part)
    if len(found) < 2:
        return []
    labels = [row.label for row in table.rows if any(row.label in parts for parts in found.values())]
    lines = [["slice", *labels]]
    for name, parts in found.items():
        lines.append([name, *(_slice(parts.get(label, [])) for label in labels)])
    return lines


def _slice(parts: list[dict]) -> str:
    scores = [part["score"] for part in parts if part.get("score") is not None and not part.get("reason")]
    if len(scores) < len(parts):
        return "not run"
    return f"{stats.mean(scores):.3f}" if scores else ""


def along(run: dict, axis: str) -> list[tuple[float, dict]]:
    """The run's slices along an axis, by rising value: at each value the one that asks least of everything else."""
    found: dict[float, list[dict]] = {}
    for part in run.get("slices") or []:
        values = part["values"] if isinstance(part["values"], dict) else {}
        if isinstance(values.get(axis), int | float):
            found.setdefault(values[axis], []).append(part)

    def rest(part: dict) -> list[float]:
        others = (other for key, other in sorted(part["values"].items()) if key != axis)
        return [other if isinstance(other, int | float) else 0 for other in others]

    return [(value, min(found[value], key=rest)) for value in sorted(found)]


def by_axis(table: Table) -> dict[str, dict]:
    """{axis: {label: {value: [the seeds' scores]}}} for every axis that has two values or more."""
    axes: dict[str, dict] = {}
    for row in table.rows:
        for run in row.runs:
            places = [(_place(part), part) for part in run.get("slices") or []]
            for axis in dict.fromkeys(axis for place, _ in places for axis in place):
                # a number's figure is what the table's reach is read from: other things at their least
                numbers = along(run, axis) or [(place[axis], part) for place, part in places if axis in place]
                for value, part in numbers:
                    scores = axes.setdefault(axis, {}).setdefault(row.label, {}).setdefault(value, [])
                    if part.get("score") is not None and not part.get("reason"):
                        scores.append(part["score"])
    return {axis: labels for axis, labels in axes.items() if len({v for at in labels.values() for v in at}) > 1}


def _place(part: dict) -> dict[str, float | str]:
    """Where on which axes a slice lies: its values by name, or one value under the slice's own name."""
    values = part["values"] if isinstance(part["values"], dict) else {part["name"]: part["values"]}
    return {
        axis: value
        if isinstance(value, int | float)
        else "–".join(map(str, value))
        if isinstance(value, list)
        else str(value)
        for axis, value in values.items()
    }


def reach(row: Row, axis: str, per_kib: bool = False) -> tuple[list[float], list[float]]:
    """How far along an axis a mixer solves the task: for each seed the least it may be and the most, which differ where
    the slices end first; per KiB of the state at the slice's own length. Empty where there is nothing to say."""
    lows, highs = [], []
    for run in row.runs:
        least = threshold(run["metric"]) if run["seed"] in row.scores else None
        parts = [(value, part) for value, part in along(run, axis) if part.get("score") is not None]
        if least is None or len(parts) < 2 or parts[0][0] <= 0:
            continue
        points = [(value, part["score"]) for value, part in parts]
        value, sign = stats.reach(points, least, run["metric"]["higher_is_better"])
        part = next((part for at, part in reversed(parts) if at <= value), parts[0][1])
        unit = _kib(run, part["values"].get("length")) if per_kib else 1.0
        if not unit:
            return [], []
        lows.append(0.0 if sign < 0 else value / unit)
        highs.append(math.inf if sign > 0 else value / unit)
    return lows, highs


def _kib(run: dict, length: float | None) -> float | None:
    """KiB of state after `length` tokens; after the longest length where the slices do not say theirs."""
    measured = run.get("state_bytes") or {}
    if not measured:
        return None
    return measured.get(str(int(length)) if length else max(measured, key=int), 0) / 1024
