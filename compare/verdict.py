"""What the scores of a table allow to say: who solved the task, who differs from the baseline, and who wins."""

import math
from dataclasses import replace
from itertools import combinations

from compare import stats
from compare.tables import Row, curve, differences, threshold
from compare.text import p_value


def solved(row: Row, metric: dict) -> Row:
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


def tested(rows: list[Row]) -> list[Row]:
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
    return f"{claim}; about {needed:,} would, if gap and spread are as seen (80 % power)."
