"""Records side by side: which runs may be compared, what each label scored and cost, and what that allows to say."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import combinations
from statistics import median

from compare import results, stats

SOLVED = 0.9  # an accuracy from which a task counts as solved, unless the record's metric names another
HANDS_OFF = "untuned: one learning rate for all"
UNITS = {"params": "parameters of the backbone", "state": "bytes of state", "flops": "FLOPs per token"}  # to be matched


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
        return next((run["aa"] for run in self.runs if run.get("aa")), "")

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
        return next((run["match"] for run in self.runs if run.get("match")), {})

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


def compare(records: list[dict]) -> Comparison:
    """Records grouped by task, label and seed.

    Raises ValueError where there is nothing to compare, where a seed comes twice, and where runs of one task differ in
    their data, protocol, engine or metric; it names fields, runs and values.
    """
    if not records:
        raise ValueError("there are no records to compare: name a directory that holds result.json files")
    if find_spec("scipy") is None:
        raise ValueError("a comparison needs scipy: pip install seqmix[report]")
    tasks: dict[str, list[dict]] = {}
    for record in records:
        tasks.setdefault(record["task"], []).append(record)
    for task, runs in tasks.items():
        _refuse(task, runs)
    tables = [_table(task, runs) for task, runs in tasks.items()]
    return Comparison(tables, _warnings(records) + [edge for table in tables for edge in _edges(table)])


def name(run: dict) -> str:
    return f"{run['label']} seed {run['seed']}"


def _refuse(task: str, runs: list[dict]) -> None:
    seen: dict[str, dict] = {}
    for run in runs:
        if name(run) in seen:
            first = seen[name(run)].get("path", "one record")
            raise ValueError(
                f"task {task}: {name(run)} comes twice, in {first} and {run.get('path', 'another')}: "
                "name a directory that holds one of them"
            )
        seen[name(run)] = run
    fields: dict[str, list[tuple[dict, object]]] = {}
    for run in runs:
        measured = {key: run[key] for key in ("data", "protocol", "engine", "metric") if run.get(key)}
        for field, value in results.flat(measured).items():
            fields.setdefault(field, []).append((run, value))
    differing = []
    for field, values in fields.items():
        part = field.split(".")[0]
        absent = [run for run in runs if run.get(part) and all(run is not other for other, _ in values)]
        groups: dict[str, list[dict]] = {}
        for run, value in values + [(run, "absent") for run in absent]:
            groups.setdefault(str(value), []).append(run)
        if len(groups) > 1:
            differing.append(f"{field} is " + ", ".join(f"{_short(v)} in {_some(rs)}" for v, rs in groups.items()))
    if differing:
        raise ValueError(
            f"the runs of task {task} cannot be compared: {'; '.join(differing)}. "
            "Run them again under equal conditions, or report them apart"
        )


def _some(runs: list[dict]) -> str:
    names = [name(run) for run in runs]
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def _short(value: str, limit: int = 40) -> str:
    return value if len(value) <= limit else f"{value[: limit - 1]}…"


def _warnings(records: list[dict]) -> list[str]:
    warnings = []
    edited = sorted({run["code"] for run in records if run["environment"].get("dirty")})
    if edited:
        warnings.append(f"code that was never committed was run ({', '.join(edited)}): nobody else can run it again")
    for title, value in (
        ("code version", lambda run: run["code"]),
        ("torch", lambda run: run["environment"].get("torch")),
        (
            "machine",
            lambda run: " ".join(str(run["environment"].get(k, "")) for k in ("platform", "cpu", "cuda")).strip(),
        ),
    ):
        groups: dict[str, list[dict]] = {}
        for run in records:
            groups.setdefault(str(value(run)), []).append(run)
        if len(groups) > 1:
            parts = "; ".join(f"{_short(v)} in {_some(rs)}" for v, rs in groups.items())
            doubt = "times cannot be compared" if title == "machine" else "differences may come from that"
            warnings.append(f"the runs differ in {title} ({parts}): {doubt}")
    return warnings


def _edges(table: Table) -> list[str]:
    """A value chosen on the edge of its grid may not be the best there is."""
    edges = []
    for row in table.rows:
        for selection in [run["selection"] for run in row.runs if run.get("selection")][:1]:
            edges += [
                f"{table.task}: {row.label} chose {key}={selection['chosen'][key]}, on the edge of its grid: widen it"
                for key in selection["edge"]
                if not row.again
            ]
    return edges


def _table(task: str, runs: list[dict]) -> Table:
    metric = next((run["metric"] for run in runs if run.get("metric")), {"name": "score", "higher_is_better": True})
    labels: dict[str, list[dict]] = {}
    for run in runs:
        labels.setdefault(run["label"], []).append(run)
    rows = []
    for label, own in labels.items():
        own = sorted(own, key=lambda run: run["seed"])
        scores = {
            run["seed"]: run["test"]["score"]
            for run in own
            if run["outcome"] == "finished" and run["test"]["score"] is not None
        }
        rows.append(Row(label, own[0]["mixer"], own, scores))
    scored = [row for row in rows if row.scores and not row.again]
    baseline = next((row.label for row in (*(r for r in scored if r.mixer == results.BASELINE), *scored)), None)
    rows.sort(key=lambda row: row.label != baseline)
    rows = _tested([_solved(row, metric) for row in rows])
    references = next((run["baselines"] for run in runs if run.get("baselines")), {})
    lengths = [int(length) for run in runs for length in run.get("state_bytes") or {}]
    higher = metric["higher_is_better"]
    return Table(
        task=task,
        metric=metric["name"].replace("_", " "),
        higher=higher,
        rows=rows,
        references=references,
        baseline=baseline,
        length=max(lengths, default=None),
        protocol=next((run["protocol"] for run in runs if run["protocol"]), {}),
        verdict=verdict([row for row in rows if not row.again], higher),
        notes=[
            *(*_settled(rows), *_floor(rows), *_overlap(runs)),
            *_notes(rows, references, higher, metric, max(lengths, default=None)),
        ],
    )


def threshold(metric: dict) -> float | None:
    return metric.get("solved", SOLVED if metric["name"] == "accuracy" else None)


def _solved(row: Row, metric: dict) -> Row:
    """The row with its counts; a run that diverged has not solved the task, and counts."""
    least, lost = threshold(metric), sum(run["outcome"] == "diverged" for run in row.runs)
    n = len(row.scores) + lost
    if least is None or not n:
        return row
    higher = metric["higher_is_better"]
    count = sum(score >= least if higher else score <= least for score in row.scores.values())
    curves = [curve(run) for run in row.runs if run["seed"] in row.scores]
    steps = [math.inf if (step := stats.steps_to(c, least, higher)) is None else step for c in curves if c]
    steps = steps + [math.inf] * lost if steps else []
    return replace(row, solved=(count, n, *stats.count_interval(count, n)), steps=steps or None)


def curve(run: dict, key: str = "step") -> list[tuple[float, float]]:
    """(step, or seconds of training, and validation score) where there is one."""
    points = [(p[key], p.get("validation/score", p.get("validation"))) for p in run.get("curve") or [] if key in p]
    return [(step, score) for step, score in points if score is not None]


def differences(row: Row, other: Row) -> list[float]:
    """Scores of row minus those of other, at the seeds that both finished."""
    return [row.scores[seed] - other.scores[seed] for seed in sorted(row.scores.keys() & other.scores.keys())]


def _tested(rows: list[Row]) -> list[Row]:
    """The same rows with their differences to the first, and Holm over those that can be tested; a twin's difference is
    to the row that it repeats, and is no test."""
    named = {row.label: row for row in rows}
    bases = {row.label: named.get(row.again) if row.again else rows[0] for row in rows[1:]}
    against = {row.label: stats.paired(d) for row in rows[1:] if (b := bases[row.label]) and (d := differences(row, b))}
    testable = [label for label, paired in against.items() if paired.p is not None and not named[label].again]
    adjusted = dict(zip(testable, stats.holm([against[label].p for label in testable]), strict=True))
    return [replace(row, difference=against.get(row.label), p=adjusted.get(row.label)) for row in rows]


def verdict(rows: list[Row], higher: bool) -> str:
    """One sentence: the winner if it beats every other label, all pairs tested (Holm); else what would settle it."""
    scored = sorted((row for row in rows if row.scores), key=lambda row: row.mean, reverse=higher)
    if len(scored) < 2:
        return (
            f"Nothing to compare: only {scored[0].label} finished."
            if scored
            else "Nothing to compare: no run finished."
        )
    leader = scored[0]
    pairs = {}
    for a, b in combinations(scored, 2):
        d = differences(a, b)
        if not d or (paired := stats.paired(d)).p is None:
            return (
                f"No winner: {a.label} and {b.label} share {len(d)} seed{'s' * (len(d) != 1)}, "
                f"and below {stats.MINIMUM} nothing is inferred."
            )
        pairs[a.label, b.label] = paired
    adjusted = dict(zip(pairs, stats.holm([paired.p for paired in pairs.values()]), strict=True))
    open_ = [b for b in scored[1:] if adjusted[leader.label, b.label] >= 0.05]
    if not open_:
        if leader.outcome != "finished":
            return f"No winner: {leader.label} leads, but {leader.outcome}."
        worst = max(adjusted[leader.label, b.label] for b in scored[1:])
        over = f", Holm over all {len(pairs)} pairs" if len(pairs) > 1 else ""
        return f"{leader.label} wins: better than every other (p {p_value(worst)}{' at most' * bool(over)}{over})."
    rival = open_[0]
    gap = differences(leader, rival)
    pair = f"{leader.label} and {rival.label} are level"
    if stats.mean(gap):
        pair = f"{leader.label} leads {rival.label} by {abs(stats.mean(gap)):.3f}"
    p = p_value(adjusted[leader.label, rival.label]) + ", Holm" * (len(pairs) > 1)
    claim = f"No winner: {pair}, which {len(gap)} seeds do not resolve (p {p})"
    needed = stats.seeds_needed(gap, alpha=0.05 / len(pairs))
    if needed is None:
        return f"{claim}; their spread does not tell how many would."
    return f"{claim}; about {max(needed, len(gap) + 1):,} would, if gap and spread are as seen (80 % power)."


def _settled(rows: list[Row]) -> list[str]:
    """What was chosen and what was matched before the runs."""
    chosen: dict[str, list[str]] = {}
    rows = [row for row in rows if not row.again]
    for row in rows:
        for selection in [run["selection"] for run in row.runs if run.get("selection")][:1]:
            points = ", ".join(f"{key} of {', '.join(map(str, values))}" for key, values in selection["grid"].items())
            trials = len(selection["trials"]) * len(selection["seeds"])
            seeds = ", ".join(map(str, selection["seeds"]))
            head = f"selected by validation on seed {seeds} alone, {trials} trials for each mixer ({points})"
            chosen.setdefault(head, []).append(f"{row.label} {values_text(selection['chosen'])}")
    notes = [f"{head}: {'; '.join(parts)}" for head, parts in chosen.items()] or [HANDS_OFF]
    return notes + [f"{row.label} {matched(row.match)}" for row in rows if row.match]


def values_text(values: dict) -> str:
    return ",".join(f"{key}={value}" for key, value in values.items())


def matched(done: dict) -> str:
    """What a match did, in words."""
    moves = ", ".join(f"{key} {before:g} -> {after:g}" for key, (before, after) in done["moved"].items())
    moves = moves or ("nothing moved" if done["sizes"] else "it has no sizes that may change")
    to = f"{done['target']:,.0f} {UNITS[done['by']]} (match_to={done['to']}, {done['length']:,} tokens)"
    if done["met"]:
        return f"matches {to} within {abs(done['residual']):.1%}: {moves}"
    return f"does NOT match {to}: it could reach {done['reached']:,.0f}, {done['residual']:+.1%}: {moves}"


def _floor(rows: list[Row]) -> list[str]:
    """What the protocol cannot resolve: differences of a mixer to itself, initialised anew."""
    floors = []
    for row in rows:
        base = next((other for other in rows if other.label == row.again), None)
        if base and row.difference:
            largest = max(map(abs, differences(row, base)))
            ends = row.difference.interval
            within = f" [{ends[0]:+.3f}, {ends[1]:+.3f}]" if ends else ""
            floors.append(
                f"A/A: {base.label} initialised anew differs from itself by {row.difference.mean:+.3f}{within}, "
                f"at most {largest:.3f} at one of {row.difference.n} seeds: smaller gaps are noise"
            )
    if floors or not rows or not rows[0].scores:
        return floors
    if rows[0].cost("parameters", "mixer") == 0:
        return [f"A/A: none, for {rows[0].label} has no parameters that could be initialised anew"]
    return ["A/A: not measured; aa=true trains the baseline under a second label and shows what is noise"]


def _overlap(runs: list[dict]) -> list[str]:
    """Of the test examples how many are no surprise; all runs have the same data."""
    share = next((run["overlap"]["test"] for run in runs if run.get("overlap")), 0)
    return [f"{share:.2%} of the test examples occur in training or validation too"] if share else []


def _notes(rows: list[Row], references: dict, higher: bool, metric: dict, length: int | None) -> list[str]:
    notes = []
    if length:
        notes.append(f"state and forward FLOPs at {length:,} tokens; peak: live memory of one training step")
    if min((len(row.scores) for row in rows if row.scores), default=stats.MINIMUM) < stats.MINIMUM:
        notes.append(f"below {stats.MINIMUM} seeds there are no intervals and no tests")
    if any(row.difference and row.difference.sign_flip is not None for row in rows):
        smallest = max(row.difference.smallest for row in rows if row.difference)
        notes.append(
            f"exact p: every sign of the differences flipped; it can reach {smallest:.2g} and is not corrected"
        )
    if any(row.solved for row in rows):
        sign = "at least" if metric["higher_is_better"] else "at most"
        notes.append(
            f"solved: {metric['name']} of {sign} {threshold(metric):g}, with an exact 95 % interval of the share; "
            "steps: to the first validation there, median over seeds; diverged runs count as not solved"
        )
        notes.append(
            "pairs and longest: how far all easier slices are solved too, between two by the logarithm, all else at "
            "its least; >= and < where the slices end first"
        )
    if references:
        best = (max if higher else min)(references, key=references.__getitem__)
        weak = [
            row.label
            for row in rows
            if row.scores and not row.again
            if (row.mean <= references[best] if higher else row.mean >= references[best])
        ]
        if weak:
            notes.append(f"no better than {best} ({references[best]:.3f}), which learns nothing: {', '.join(weak)}")
    for row in rows:
        if row.scores and row.outcome != "finished":
            notes.append(f"{row.label}: {row.outcome}; its mean is over the rest only")
        events: dict[str, list[int]] = {}
        for run in row.runs:
            if run["outcome"] != "finished":
                reason = f"{run['outcome']}: {run['reason'] or 'no reason was recorded'}"
                events.setdefault(f": {reason}", []).append(run["seed"])
            for part in run.get("slices") or []:
                if part.get("reason"):
                    events.setdefault(f", {part['name']}: {part['reason']}", []).append(run["seed"])
        for event, seeds in events.items():
            notes.append(f"{row.label} seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}{event}")
    return notes


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


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


def columns(table: Table) -> list[Column]:
    """The columns of a table that have something to show, the same in the terminal, in markdown, in CSV and in HTML."""
    measured = (run["metric"] for row in table.rows for run in row.runs if run.get("metric"))
    share = f"{100 * (threshold(next(measured, {'name': ''})) or SOLVED):g} %"
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


def _reach(row: Row, axis: str, per_kib: bool = False) -> Cell:
    """How far along an axis a mixer solves the task, over its seeds: a mean with its interval, or bounds where the
    slices end before it does; per KiB of the state at the slice's own length."""
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
            return _GAP
        lows.append(0.0 if sign < 0 else value / unit)
        highs.append(math.inf if sign > 0 else value / unit)
    if not lows:
        return _GAP
    if lows == highs:
        return _estimate(stats.mean(lows), stats.interval(lows), "{:,.3g}")
    low, high = min(lows), max(highs)
    if high == math.inf:
        return Cell(f">= {low:,.3g}", (None, low, None))
    return Cell(f"< {high:,.3g}", (None, low, high))


def _kib(run: dict, length: float | None) -> float | None:
    """KiB of state after `length` tokens; after the longest length where the slices do not say theirs."""
    measured = run.get("state_bytes") or {}
    if not measured:
        return None
    return measured.get(str(int(length)) if length else max(measured, key=int), 0) / 1024


def slices(table: Table) -> list[list[str]]:
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


def _scores(row: Row, seeds: list[int]) -> Cell:
    if not row.scores:
        if all(run["outcome"] == "finished" for run in row.runs):
            text = "not run in part: see the notes"
        else:
            reason = next((run["reason"] for run in row.runs if run["reason"]), "no reason was recorded")
            text = f"{row.runs[0]['outcome']}: {_short(reason.split(':')[0], 22)}"
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


def si(value: float) -> str:
    """1234567 -> "1.23 M"."""
    return _scaled(value, 1000, ("", " k", " M", " G", " T"))


def binary(value: float) -> str:
    """2048 -> "2 KiB"."""
    return _scaled(value, 1024, (" B", " KiB", " MiB", " GiB"))


def _scaled(value: float, base: int, units: tuple[str, ...]) -> str:
    steps = 0
    while abs(value) >= base - 0.5 and steps < len(units) - 1:
        value, steps = value / base, steps + 1
    return f"{value:.3g}{units[steps]}" if abs(value) < 999.5 else f"{value:.0f}{units[steps]}"
