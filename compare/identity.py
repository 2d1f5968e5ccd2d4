"""Which run a configuration is: its label, its directory, its sweep, and its record before it has run."""

import os
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryFile

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from compare import results
from compare.overrides import key_of

SWEEP = "SEQMIX_SWEEP"  # in the environment, so that launchers hand it to the processes they start
# not in the label
NAMED = ("mixer", "task", "level", "seed", "experiment", "select", "select_trials", "selection_seeds")
PLACE = ("runs", "ckpt", "logger", "probe", "threads", "aa")  # where a run is kept and watched, not what it is


def sweep() -> str:
    """The id of the sweep that this process belongs to; empty for a single run."""
    return os.environ.get(SWEEP, "")


def label() -> str:
    """The mixers' names and every override that is not mixer, task or its level, seed or a place; shortened by hash
    beyond 80.
    """
    choices = HydraConfig.get().runtime.choices
    mixers = [chosen for group, chosen in choices.items() if group.split("@")[0] == "mixer" and chosen]
    others = []
    for override in HydraConfig.get().overrides.task:
        if key_of(override).split("@")[0] not in (*NAMED, *PLACE) and key_of(override).split(".")[0] != "logger":
            others.append(override.lstrip("+").replace("/", "."))
    text = ",".join(["+".join(dict.fromkeys(mixers)), *sorted(others)])
    return text if len(text) <= 80 else f"{text[:71]}-{sha256(text.encode()).hexdigest()[:8]}"


def writable(runs: str) -> None:
    """Makes the directory of all runs. Raises ValueError where it cannot be made or written to."""
    try:
        Path(runs).mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=runs).close()
    except OSError as error:
        raise ValueError(f"runs={runs} cannot be written to ({error.strerror}): choose another runs=") from None


def task(cfg: DictConfig) -> str:
    """The task's name, with the level where an experiment has several: their data differ, and each is a task apart."""
    return f"{cfg.task.name}-{cfg.level}" if "level" in cfg else cfg.task.name


def place(cfg: DictConfig) -> Path:
    """The directory of a run."""
    experiment = HydraConfig.get().runtime.choices.get("experiment")
    return Path(cfg.runs, *([experiment] if experiment else []), task(cfg), cfg.label, str(cfg.seed))


def described(cfg: DictConfig) -> dict:
    """A record before its run."""
    config = OmegaConf.to_container(cfg, resolve=True)
    identity = {key: value for key, value in config.items() if key not in PLACE}
    return {
        "version": results.VERSION,
        "outcome": "failed",
        "reason": "",
        "sweep": sweep(),
        "task": task(cfg),
        "mixer": cfg.label.split(",")[0],
        "label": cfg.label,
        "seed": cfg.seed,
        "config": identity,
        "config_hash": results.config_hash(identity),
    }


def done(record: dict, directory: Path) -> dict | None:
    """The finished or impossible run that the directory holds, now of this record's sweep.

    Raises ValueError where it holds another configuration's, or a file that is no record.
    """
    path = directory / results.file(record)
    if not path.exists():
        return None
    earlier = results.read(path)
    if earlier["config_hash"] != record["config_hash"]:
        keys = ", ".join(results.differing_keys(earlier["config"], record["config"]))
        raise ValueError(f"{directory} holds a run that differs in {keys}: remove it, or choose another runs=")
    if earlier["outcome"] not in ("finished", "impossible"):
        return None
    if record["sweep"]:
        results.write(directory, earlier | {"sweep": record["sweep"]})
    return earlier


def write_failed(cfg: DictConfig, record: dict, reason: str) -> None:
    """A sweep's record of what could not be run, apart from the run's own directory, which may hold another."""
    named = record["task"], record["label"], str(record["seed"])
    environment = results.environment()
    more = {"reason": reason, "environment": environment, "code": environment["code"], "protocol": {}}
    results.write(Path(cfg.runs, "comparisons", record["sweep"], "failed", *named), record | more)
