"""The sentences below and above a table: what was settled before the runs, what the numbers mean, what did not run."""

from compare import stats
from compare.tables import Row, Table, differences, first, threshold
from compare.text import values_text

HANDS_OFF = "untuned: one learning rate for all"
UNITS = {"params": "parameters of the backbone", "state": "bytes of state", "flops": "FLOPs per token"}  # to be matched


def notes(rows: list[Row], references: dict[str, float], metric: dict, length: int | None) -> list[str]:
    """Everything below a table: what was settled before, what is noise, what the columns mean, what learnt nothing and
    what did not run. length: at which state and FLOPs were measured."""
    return [
        *_settled(rows),
        *_floor(rows),
        *_overlap(rows),
        *_meanings(rows, metric, length),
        *_weak(rows, references, metric["higher_is_better"]),
        *(line for row in rows for line in _missing(row)),
    ]


def _settled(rows: list[Row]) -> list[str]:
    """What was chosen and what was matched before the runs."""
    chosen: dict[str, list[str]] = {}
    rows = [row for row in rows if not row.again]
    for row in rows:
        if selection := row.selection:
            points = ", ".join(f"{key} of {', '.join(map(str, values))}" for key, values in selection["grid"].items())
            trials = len(selection["trials"]) * len(selection["seeds"])
            seeds = ", ".join(map(str, selection["seeds"]))
            head = f"selected by validation on seed {seeds} alone, {trials} trials for each mixer ({points})"
            chosen.setdefault(head, []).append(f"{row.label} {values_text(selection['chosen'])}")
    lines = [f"{head}: {'; '.join(parts)}" for head, parts in chosen.items()] or [HANDS_OFF]
    return lines + [f"{row.label} {matched(row.match)}" for row in rows if row.match]


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


def _overlap(rows: list[Row]) -> list[str]:
    """Of the test examples how many are no surprise; all runs have the same data."""
    share = first([run for row in rows for run in row.runs], "overlap", {"test": 0})["test"]
    return [f"{share:.2%} of the test examples occur in training or validation too"] if share else []


def _meanings(rows: list[Row], metric: dict, length: int | None) -> list[str]:
    """What the columns show."""
    lines = []
    if length:
        lines.append(f"state and forward FLOPs at {length:,} tokens; peak: live memory of one training step")
    if min((len(row.scores) for row in rows if row.scores), default=stats.MINIMUM) < stats.MINIMUM:
        lines.append(f"below {stats.MINIMUM} seeds there are no intervals and no tests")
    if any(row.difference and row.difference.sign_flip is not None for row in rows):
        smallest = max(row.difference.smallest for row in rows if row.difference)
        lines.append(
            f"exact p: every sign of the differences flipped; it can reach {smallest:.2g} and is not corrected"
        )
    if any(row.solved for row in rows):
        sign = "at least" if metric["higher_is_better"] else "at most"
        lines.append(
            f"solved: {metric['name']} of {sign} {threshold(metric):g}, with an exact 95 % interval of the share; "
            "steps: to the first validation there, median over seeds; diverged runs count as not solved"
        )
        lines.append(
            "pairs and longest: how far all easier slices are solved too, between two by the logarithm, all else at "
            "its least; >= and < where the slices end first"
        )
    return lines


def _weak(rows: list[Row], references: dict[str, float], higher: bool) -> list[str]:
    """Who scores no better than the best of what learns nothing."""
    if not references:
        return []
    name, best = (max if higher else min)(references.items(), key=lambda known: known[1])
    scored = [(row.label, row.mean) for row in rows if row.mean is not None and not row.again]
    weak = [label for label, mean in scored if (mean <= best if higher else mean >= best)]
    return [f"no better than {name} ({best:.3f}), which learns nothing: {', '.join(weak)}"] if weak else []


def _missing(row: Row) -> list[str]:
    """The runs and the slices that are not in the row's mean, and why."""
    lines = []
    if row.scores and row.outcome != "finished":
        lines.append(f"{row.label}: {row.outcome}; its mean is over the rest only")
    events: dict[str, list[int]] = {}
    for run in row.runs:
        if run["outcome"] != "finished":
            reason = f"{run['outcome']}: {run['reason'] or 'no reason was recorded'}"
            events.setdefault(f": {reason}", []).append(run["seed"])
        for part in run.get("slices") or []:
            if part.get("reason"):
                events.setdefault(f", {part['name']}: {part['reason']}", []).append(run["seed"])
    for event, seeds in events.items():
        lines.append(f"{row.label} seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}{event}")
    return lines


def edges(table: Table) -> list[str]:
    """A value chosen on the edge of its grid may not be the best there is."""
    return [
        f"{table.task}: {row.label} chose {key}={row.selection['chosen'][key]}, on the edge of its grid: widen it"
        for row in table.rows
        if row.selection and not row.again
        for key in row.selection["edge"]
    ]
