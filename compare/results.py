"""The record that every run writes (result.json) and how to read many.

A record is plain JSON: strings, finite numbers, booleans, lists, dicts and null, so that it outlives this code. Numbers
that are not finite become null. Importing this module needs the standard library only.
"""

import csv
import hashlib
import io
import json
import math
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

VERSION = 1
FILE = "result.json"
TRIAL = "trial.json"  # of a run that was only to choose a value: no report reads it, and it holds no test figures
BASELINE = "softmax"  # the mixer that the others are compared with, where it is among them; else the first
OUTCOMES = ("finished", "impossible", "diverged", "interrupted", "failed")

REQUIRED = {
    "version": int,
    "outcome": str,
    "reason": str,
    "sweep": str,
    "task": str,
    "mixer": str,
    "label": str,
    "seed": int,
    "config": dict,
    "config_hash": str,
    "code": str,
    "environment": dict,
    "protocol": dict,
}
MEASURED = {
    "data": dict,
    "overlap": dict,
    "engine": str,
    "engine_details": dict,
    "metric": dict,
    "baselines": dict,
    "parameters": dict,
    "state_bytes": dict,
    "flops": dict,
    "speed": dict,
    "validation": dict,
    "test": dict,
    "slices": list,
    "curve": list,
}  # what a run that did not finish may lack; train.py is free to add more

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("mixers", "models", "tasks", "compare", "conf", "train.py")
SUFFIXES = (".py", ".yaml", ".c", ".h")


def check(record: dict) -> None:
    """The schema. Raises ValueError for a key that is missing, of the wrong type, or at odds with the others; it names
    the key."""
    for key, kind in (REQUIRED | MEASURED).items():
        if key not in record:
            if key in REQUIRED:
                raise ValueError(f"the record lacks the key '{key}'")
        elif not isinstance(record[key], kind) or (kind is int and isinstance(record[key], bool)):
            raise ValueError(f"record['{key}'] must be {kind.__name__}, not {type(record[key]).__name__}")
    if record["version"] != VERSION:
        raise ValueError(f"record['version'] must be {VERSION}, not {record['version']}")
    if record["outcome"] not in OUTCOMES:
        raise ValueError(f"record['outcome'] must be one of {', '.join(OUTCOMES)}, not '{record['outcome']}'")
    if "trial" in record and ("test" in record or "slices" in record):
        raise ValueError(
            "the record is of a trial, which must not hold test figures, and has the key 'test' or 'slices'"
        )
    scored = "validation" if "trial" in record else "test"
    if record["outcome"] == "finished" and "score" not in record.get(scored, {}):
        raise ValueError(f"the record is 'finished' but lacks the key '{scored}.score'")


def write(directory: Path, record: dict) -> Path:
    """Check the record and write it to directory/result.json (a trial's to trial.json), all of it or nothing; the path
    is returned.

    Raises ValueError where it does not have the schema, TypeError for a value that is not JSON, both naming the key.
    """
    check(record)
    text = json.dumps(_plain(record, "record"), indent=1, allow_nan=False) + "\n"
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    return replace(directory / file(record), text)


def file(record: dict) -> str:
    """The name of the record's file."""
    return TRIAL if "trial" in record else FILE


def replace(path: Path, text: str) -> Path:
    """Write text to path through a temporary name, so that no reader ever sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path


def read(path: Path) -> dict:
    """The record in the file `path`; ValueError says in one sentence what is wrong with it and what to do."""
    path = Path(path)
    remedy = "delete it and run again"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(f"{path} is truncated or not JSON: {remedy}") from None
    if not isinstance(record, dict) or "version" not in record:
        raise ValueError(f"{path} is not a record of a run: move it away or {remedy}")
    if record["version"] != VERSION:
        raise ValueError(f"{path} has version {record['version']}, this code reads version {VERSION}: {remedy}")
    try:
        check(record)
    except ValueError as error:
        raise ValueError(f"{path}: {error}: {remedy}") from None
    return record


def read_all(root: Path, sweep: str | None = None, file: str = FILE) -> list[dict]:
    """Every record below root in the order of its path, with that path as record["path"]; only the sweep's, if given.

    A broken file is an error, unless a sweep is given whose id the file does not even mention. Raises ValueError where
    no run is of the sweep.
    """
    records = []
    for path in sorted(Path(root).rglob(file)):
        if sweep is not None and sweep not in path.read_text(encoding="utf-8", errors="replace"):
            continue
        record = read(path)
        if sweep is None or record["sweep"] == sweep:
            records.append(record | {"path": str(path)})
    if sweep is not None and file == FILE and not records:
        raise ValueError(f"no run of sweep {sweep} left a record below {root}")
    return records


def write_csv(path: Path, rows: list[dict]) -> Path:
    """Write rows as CSV, all of it or nothing; the columns are all the rows' keys in the order of appearance."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return replace(Path(path), text.getvalue())


def config_hash(config: dict) -> str:
    """16 hex digits that depend on the keys and values of the config, not on their order."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def differing_keys(a: dict, b: dict) -> list[str]:
    """The dotted keys, sorted, at which two configs differ or that only one of them has."""
    a, b, missing = flat(a), flat(b), object()
    return sorted(key for key in a.keys() | b.keys() if a.get(key, missing) != b.get(key, missing))


def flat(config: dict, prefix: str = "") -> dict:
    """Nested dicts as one dict of dotted keys."""
    leaves = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        leaves |= flat(value, f"{name}.") if isinstance(value, dict) and value else {name: value}
    return leaves


def environment() -> dict:
    """What the numbers of a run may depend on beyond its config: versions, machine, threads and code."""
    import torch

    version = code()
    return {
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "platform": platform.platform(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "threads": torch.get_num_threads(),
        "code": version,
        "dirty": "-dirty-" in version,
    }


def code() -> str:
    """Which code this is: the git commit, with a hash of the sources if they were edited, or that hash alone."""
    if _git("rev-parse", "--show-toplevel") != str(ROOT):  # installed, perhaps below somebody else's repository
        return f"source-{_source_hash()}"
    commit = _git("rev-parse", "HEAD") or "uncommitted"
    return f"{commit[:12]}-dirty-{_source_hash()}" if _git("status", "--porcelain", "--", *SOURCES) else commit[:12]


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _source_hash() -> str:
    digest = hashlib.sha256()
    for name in SOURCES:
        top = ROOT / name
        for path in [top] if top.is_file() else sorted(p for p in top.rglob("*") if p.suffix in SUFFIXES):
            digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _plain(value, key: str):
    """The same value in the terms of JSON; a key of any dict becomes a string."""
    if isinstance(value, dict):
        return {str(k): _plain(v, f"{key}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, f"{key}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    raise TypeError(f"{key} is a {type(value).__name__}, which is not plain JSON")
