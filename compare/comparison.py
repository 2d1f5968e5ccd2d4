"""Records side by side: which of them may be compared, and the table of each task."""

from importlib.util import find_spec

from compare import results
from compare.notes import edges, notes
from compare.tables import Comparison, Row, Table, first
from compare.text import short
from compare.verdict import solved, tested, verdict


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
    return Comparison(tables, _warnings(records) + [edge for table in tables for edge in edges(table)])


def _table(task: str, runs: list[dict]) -> Table:
    metric = first(runs, "metric", {"name": "score", "higher_is_better": True})
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
    rows = tested([solved(row, metric) for row in rows])
    references = first(runs, "baselines", {})
    length = max((int(length) for run in runs for length in run.get("state_bytes") or {}), default=None)
    return Table(
        task=task,
        metric=metric["name"].replace("_", " "),
        higher=metric["higher_is_better"],
        rows=rows,
        references=references,
        baseline=baseline,
        length=length,
        protocol=first(runs, "protocol", {}),
        verdict=verdict([row for row in rows if not row.again], metric["higher_is_better"]),
        notes=notes(rows, references, metric, length),
    )


def _refuse(task: str, runs: list[dict]) -> None:
    seen: dict[str, dict] = {}
    for run in runs:
        if name(run) in seen:
            earlier = seen[name(run)].get("path", "one record")
            raise ValueError(
                f"task {task}: {name(run)} comes twice, in {earlier} and {run.get('path', 'another')}: "
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
            differing.append(f"{field} is " + ", ".join(f"{short(v)} in {_some(rs)}" for v, rs in groups.items()))
    if differing:
        raise ValueError(
            f"the runs of task {task} cannot be compared: {'; '.join(differing)}. "
            "Run them again under equal conditions, or report them apart"
        )


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
            parts = "; ".join(f"{short(v)} in {_some(rs)}" for v, rs in groups.items())
            doubt = "times cannot be compared" if title == "machine" else "differences may come from that"
            warnings.append(f"the runs differ in {title} ({parts}): {doubt}")
    return warnings


def _some(runs: list[dict]) -> str:
    names = [name(run) for run in runs]
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def name(run: dict) -> str:
    return f"{run['label']} seed {run['seed']}"
