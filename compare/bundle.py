"""A comparison as one file that anybody can check: everything it says, and what it takes to run it again.

A bundle is a zip of the report, of every record with its resolved config, of the data's hashes and the environments,
and of a manifest with the sha256 of each. The same runs make the same bytes. `verify` trains every run once more.
"""

import hashlib
import json
import logging
import math
import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from rich.console import Console

from compare import results
from models.generate import targets

VERSION = 1
MANIFEST = "manifest.json"
CONFIG = "config.json"
REPORT = ("comparison.csv", "comparison.md", "report.html")
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can hold
TOLERANCE = 0.01  # relative or absolute, where another machine or version did the arithmetic
COMPARED = (
    *("outcome", "data", "metric", "baselines", "parameters", "state_bytes", "flops"),
    *("validation", "test", "slices", "curve"),
)  # not: speed, which differs each time
IDENTITY = ("version", "task", "mixer", "label", "seed", "config", "config_hash")
PLANNED = ("trial", "selection", "match", "aa")  # what was decided before the run, where anything was
NAMED = 20  # differing fields of a run that are named
ARITHMETIC = ("cpu", "python", "torch", "threads")  # what the last bit of a result depends on


def pack(runs: Path, out: Path, sweep: str | None = None) -> Path:
    """Write the bundle of every run below `runs` (or of one sweep) to `out`, all of it or nothing; `out` is returned.

    Raises ValueError where there is nothing to compare or the runs cannot be compared.
    """
    from compare.report import report

    records = results.read_all(runs, sweep)
    trials = results.read_all(runs, sweep, results.TRIAL)
    members: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as place:
        report(records, Path(place), Console(quiet=True))
        members |= {name: Path(place, name).read_bytes() for name in REPORT}
    data: dict[str, dict] = {}
    environments: list[dict] = []
    for record in records + trials:
        path = Path(record["path"])
        place = PurePosixPath("runs", path.parent.relative_to(runs).as_posix())
        members[str(place / path.name)] = path.read_bytes()
        members[str(place / CONFIG)] = _json(record["config"])
        data.setdefault(record["task"], record.get("data", {}))
        data[record["task"]] = data[record["task"]] or record.get("data", {})  # a failed run may lack them
        known = next((e for e in environments if e["environment"] == record["environment"]), None)
        if known is None:
            known = {"environment": record["environment"], "runs": []}
            environments.append(known)
        known["runs"].append(str(place))
    members |= {"data.json": _json(data), "environment.json": _json(environments)}
    hashes = {name: hashlib.sha256(members[name]).hexdigest() for name in sorted(members)}
    members[MANIFEST] = _json({"version": VERSION, "members": hashes})
    return _zip(out, members)


def _zip(out: Path, members: dict[str, bytes]) -> Path:
    """Write the members, sorted and without times or owners, through a temporary name."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with zipfile.ZipFile(temporary, "w") as file:
            for name in sorted(members):
                info = zipfile.ZipInfo(name, EPOCH)
                info.create_system, info.external_attr = 3, 0o644 << 16  # else they would depend on the system
                info.compress_type = zipfile.ZIP_DEFLATED
                file.writestr(info, members[name])
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    return out


def _json(value) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def unpack(path: Path) -> dict[str, bytes]:
    """The bundle's members by name, each checked against the manifest. Nothing is written to disk.

    Raises ValueError, of one sentence, for a file that is truncated, changed, incomplete or not a bundle.
    """
    try:
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
            members = {name: file.read(name) for name in names}
        manifest = json.loads(members.pop(MANIFEST))
        hashes = dict(manifest["members"])
        version = manifest["version"]
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError):
        raise ValueError(f"{path} is truncated or not a zip file: fetch it again") from None
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path} is not a bundle: it holds no {MANIFEST} that lists its members") from None
    if version != VERSION:
        raise ValueError(f"{path} is a bundle of version {version}, this code reads version {VERSION}")
    if len(names) != len(set(names)) or members.keys() != hashes.keys():
        odd = sorted(members.keys() ^ hashes.keys()) or sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"{path} does not hold what its manifest lists, each once: see {odd[0]}")
    for name, content in members.items():
        if hashlib.sha256(content).hexdigest() != hashes[name]:
            raise ValueError(f"{path} was changed: {name} does not have the sha256 of the manifest")
    return members


def recorded(path: Path, members: dict[str, bytes]) -> list[dict]:
    """The records of a bundle, in the order of their names, each with a config that has the hash it names.

    Raises ValueError where one is not a record, or is not of its config.
    """
    records = []
    with tempfile.TemporaryDirectory() as place:
        for name in sorted(name for name in members if PurePosixPath(name).name in (results.FILE, results.TRIAL)):
            copy = Path(place, results.FILE)
            copy.write_bytes(members[name])
            try:
                record = results.read(copy)
                config = json.loads(members[str(PurePosixPath(name).with_name(CONFIG))])
            except (KeyError, ValueError):
                raise ValueError(f"{path}: {name} is not a record of a run with its {CONFIG} beside it") from None
            if not config == record["config"] or results.config_hash(config) != record["config_hash"]:
                raise ValueError(f"{path}: the config of {name} does not have the hash that the record names")
            records.append(record)
    if not records:
        raise ValueError(f"{path} holds no record of a run")
    return records


def verify(path: Path, only: str | None = None, trust: Iterable[str] = ()) -> int:
    """Run every record's configuration again, in a temporary directory; print a line for each; 1 if any differs.

    only: a label; the others are left alone. trust: classes that configurations may name beside those in conf.
    Raises ValueError where the bundle is broken, has no such label, or names a class that is not known.
    """
    records = recorded(path, unpack(path))
    labels = sorted({record["label"] for record in records})
    if only is not None and only not in labels:
        raise ValueError(f"{path} holds no run labelled '{only}'; there are: {', '.join(labels)}")
    records = [record for record in records if only in (None, record["label"])]
    known = known_targets() | set(trust)
    for record in records:
        for target in targets(record["config"]):
            if target not in known:
                raise ValueError(
                    f"{path}: {_name(record)} names the class {target}, which is not in conf, and running it "
                    f"could do anything: add --trust {target} if you know it"
                )
    for logger in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    here = results.environment()
    for code in sorted({record["code"] for record in records} - {here["code"]}):
        print(f"note: the code was {code} and is {here['code']} here: what differs may come from that")
    counts = {"same": 0, "differs": 0, "not rerun": 0}
    console = Console(stderr=True)
    for i, record in enumerate(records):
        with console.status(f"{_name(record)} ({i + 1} of {len(records)})"):
            verdict, more, stopped = check(record, here)
        counts[verdict] += 1
        print(f"{_name(record)}: {verdict}{more}", flush=True)
        if stopped:
            break
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count))
    return int(counts["differs"] > 0)


def check(record: dict, here: dict) -> tuple[str, str, bool]:
    """("same" | "differs" | "not rerun", the rest of the sentence, whether a signal ended it).

    here: the environment of this process.
    """
    if record["outcome"] in ("interrupted", "failed"):  # by a signal, or by the place it was to be kept in
        return "not rerun", f": it was {record['outcome']}: {record['reason']}", False
    again = rerun(record)
    here = here | {"threads": again["environment"]["threads"]}
    others = [
        f"{key} was {record['environment'].get(key)} and is {here[key]} here" for key in _arithmetic(record, here)
    ]
    apart = list(differences(record, again, TOLERANCE if others else 0.0))
    how = f" within {TOLERANCE}, not compared bit for bit: {', '.join(others)}" if others else ", bit for bit"
    if not apart:
        return "same", how, False
    doubt = f" (tolerance {TOLERANCE}: {', '.join(others)})" if others else ""
    named = "".join(f"\n  {field}" for field in apart[:NAMED])
    more = f"\n  and {len(apart) - NAMED} more" if len(apart) > NAMED else ""
    return "differs", f"{doubt} in{named}{more}", again["outcome"] == "interrupted"


def _arithmetic(record: dict, here: dict) -> list[str]:
    """The parts of the environment that decide the last bit and are not as they were."""
    accelerator = record["config"].get("trainer", {}).get("accelerator", "cpu")
    keys = ARITHMETIC if accelerator == "cpu" else (*ARITHMETIC, "cuda")
    return [key for key in keys if record["environment"].get(key) != here[key]]


def rerun(record: dict) -> dict:
    """The record of the same run, made anew: by the code of train.py, without W&B, probe, bar and checkpoint to go on
    from. Whatever a configuration from elsewhere raises is the outcome "failed"."""
    from omegaconf import OmegaConf

    from compare.run import carry_out

    places = {"ckpt": None, "logger": None, "probe": False, "threads": record["environment"].get("threads", 1)}
    fresh = {key: record[key] for key in (*IDENTITY, *PLANNED) if key in record} | {
        "outcome": "failed",
        "reason": "",
        "sweep": "",
    }
    with tempfile.TemporaryDirectory() as place:
        cfg = OmegaConf.create(record["config"] | places | {"runs": place})
        OmegaConf.update(cfg, "trainer.enable_progress_bar", False)
        try:
            carry_out(cfg, Path(place), fresh)
        except Exception as error:
            return fresh | {"reason": str(error), "environment": results.environment()}
        return results.read(Path(place, results.file(fresh)))  # as the stored one: through JSON


def differences(stored: dict, again: dict, tolerance: float) -> Iterator[str]:
    """ "test.score: 0.5 vs 0.25" for each compared field that differs. Fractions may by `tolerance`, relative or
    absolute; counts, words and hashes never; an outcome's reason, which may hold numbers, only without a tolerance."""
    fields = COMPARED if tolerance else (*COMPARED[:1], "reason", *COMPARED[1:])
    a, b = (dict(leaves({key: run.get(key) for key in fields})) for run in (stored, again))
    for key in dict.fromkeys([*a, *b]):
        x, y = a.get(key, "absent"), b.get(key, "absent")
        near = (
            isinstance(x, float) and isinstance(y, float) and math.isclose(x, y, rel_tol=tolerance, abs_tol=tolerance)
        )
        if not (x == y or near):
            reason = f" ({again['reason']})" if key == "outcome" and again["reason"] else ""
            yield f"{key}: {x} vs {y}{reason}"


def leaves(value, key: str = "") -> Iterator[tuple[str, object]]:
    """Nested dicts and lists as (dotted key, value), the wall clock's "seconds" left out."""
    if isinstance(value, dict | list) and value:
        for name, part in value.items() if isinstance(value, dict) else enumerate(value):
            if name != "seconds":
                yield from leaves(part, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def known_targets() -> set[str]:
    """What the project's own conf names: a bundle from elsewhere must not choose what is called on this machine."""
    texts = (path.read_text(encoding="utf-8") for path in (results.ROOT / "conf").rglob("*.yaml"))
    return {target for text in texts for target in re.findall(r"_target_: *([\w.]+)", text)}


def _name(record: dict) -> str:
    tried = "".join(f" {key}={value}" for key, value in record.get("trial", {}).items())
    return f"{record['task']} {record['label']} seed {record['seed']}{tried}"
