"""One run; with -m many runs, then their comparison.

    python train.py mixer=gla task=recall seed=0
    python train.py -m mixer=softmax,gla task=recall seed=0,1,2

Only what composing a configuration needs is imported at the top, so that --help and typing errors answer at once.
"""

import logging
import os
import re
import sys
from hashlib import sha256
from itertools import combinations
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from omegaconf import DictConfig, ListConfig, OmegaConf

from compare import results

log = logging.getLogger(__name__)
NAMED = ("mixer", "task", "seed", "experiment", "select", "select_trials", "selection_seeds")  # not in the label
FACTS = ("name", "length", "max_length", "n_inputs", "n_outputs", "causal", "pool", "metric", "data")  # of a task
GROUPS = ("mixer", "mixers", "task", "model", "optimizer", "trainer", "logger")
ONLY_WITH = {"match_to": "match", "select_trials": "select", "selection_seeds": "select"}
HELP = """
    --cfg job         every value of the run, each of which KEY=VALUE overrides
    --hydra-help      Hydra's own flags
    -m                every combination of the values given as KEY=VALUE,VALUE

"""
PLACE = ("runs", "ckpt", "logger", "probe", "threads", "aa")  # where a run is kept and watched, not what it is


def main() -> None:
    # the comma of a grid is no sweep of Hydra's, and a shell takes the quotes away that would say so
    sys.argv = [re.sub(r"""^select=([^"'].*=.*)$""", r'select="\1"', word) for word in sys.argv]
    if {"--help", "-h"} & set(sys.argv):
        return print(f"{__doc__.rsplit(chr(10) * 2, 1)[0]}\n{offers()}")
    if twice := repeated(sys.argv[1:]):
        sys.exit(f"error: {' and '.join(twice)} say the same thing twice: leave one out")
    resolvers()
    try:
        job()
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on from where its runs are")


def offers() -> str:
    """Every group and what it offers, plugged-in packages' own included. Hydra's own help takes twice as long."""
    with hydra.initialize_config_module("conf", version_base="1.3"):
        found = GlobalHydra.instance().config_loader().repository  # ty: ignore[missing-attribute]

        def groups(parent: str) -> list[str]:
            inner = (f"{parent}/{name}".strip("/") for name in found.get_group_options(parent, ObjectType.GROUP))
            return [name for group in inner if group != "hydra" for name in (group, *groups(group))]

        options = {group: found.get_group_options(group) for group in groups("")}
    return HELP + "\n".join(f"{group}: {', '.join(names)}" for group, names in options.items() if names)


def repeated(words: list[str]) -> list[str]:
    """The first overrides of one key, where there are several: Hydra would take the last without a word."""
    seen: dict[str, list[str]] = {}
    for word in words:
        if "=" in word and not word.startswith("-"):
            seen.setdefault(key(word), []).append(word)
    return next((same for same in seen.values() if len(same) > 1), [])


def key(override: str) -> str:
    return override.lstrip("+~").split("=")[0]


def resolvers() -> None:
    """For experiment=hybrid_map: every arrangement of k layers of a among n, as a sweep; and the pattern of one."""

    def arrangements(k: int, n: int) -> str:
        chosen = combinations(range(n), k)
        return ",".join(f"[{','.join('a' if i in places else 'b' for i in range(n))}]" for places in chosen)

    def arranged(layers: ListConfig, _parent_: DictConfig) -> ListConfig:
        return ListConfig([f"${{mixers.{layer}}}" for layer in layers], parent=_parent_)

    OmegaConf.register_new_resolver("arrangements", arrangements, replace=True)
    OmegaConf.register_new_resolver("arranged", arranged, replace=True)


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def job(cfg: DictConfig) -> None:
    resolvers()  # in a process that a launcher started, main() did not run
    sweep = os.environ.get("SEQMIX_SWEEP", "")
    try:
        cfg.label = label()
        record = described(cfg, sweep)
        unused(cfg)
        planned = {}
        if cfg.match or cfg.select:
            from compare import plan

            if cfg.match:
                planned["match"] = plan.match(cfg, other)
            if cfg.select:
                planned["selection"] = plan.select(cfg, place(cfg).parent / "select", trial)
        record = run(cfg, described(cfg, sweep) | {key: value for key, value in planned.items() if value}, place(cfg))
        if cfg.aa and record["outcome"] == "finished":
            record = again(cfg, record)
    except (ValueError, OSError) as error:
        if not sweep:
            sys.exit(f"error: {error}")
        # In a sweep nothing raises, or Hydra would not compare the others; the comparison says what became of this one.
        log.error("error: %s", error)
        failed = Path(cfg.runs, "comparisons", sweep, "failed", record["task"], record["label"], str(record["seed"]))
        environment = results.environment()
        more = {"reason": str(error), "environment": environment, "code": environment["code"], "protocol": {}}
        results.write(failed, record | more)
        return
    if record["outcome"] == "interrupted" and sweep:
        raise KeyboardInterrupt  # the whole sweep was meant, and not this run alone
    if not sweep and record["outcome"] != "finished":
        sys.exit(f"{record['outcome']}: {record['reason']}")


def described(cfg: DictConfig, sweep: str) -> dict:
    """A record before its run."""
    config = OmegaConf.to_container(cfg, resolve=True)
    identity = {key: value for key, value in config.items() if key not in PLACE}
    return {
        "version": results.VERSION,
        "outcome": "failed",
        "reason": "",
        "sweep": sweep,
        "task": cfg.task.name,
        "mixer": cfg.label.split(",")[0],
        "label": cfg.label,
        "seed": cfg.seed,
        "config": identity,
        "config_hash": results.config_hash(identity),
    }


def label() -> str:
    """The mixers' names and every override that is not mixer, task, seed or a place; shortened by hash beyond 80."""
    choices = HydraConfig.get().runtime.choices
    mixers = [chosen for group, chosen in choices.items() if group.split("@")[0] == "mixer" and chosen]
    others = []
    for override in HydraConfig.get().overrides.task:
        if key(override).split("@")[0] not in (*NAMED, *PLACE) and key(override).split(".")[0] != "logger":
            others.append(override.lstrip("+").replace("/", "."))
    text = ",".join(["+".join(dict.fromkeys(mixers)), *sorted(others)])
    return text if len(text) <= 80 else f"{text[:71]}-{sha256(text.encode()).hexdigest()[:8]}"


def unused(cfg: DictConfig) -> None:
    """Raises ValueError for what a run would ignore without a word: a composed mixer that no pattern refers to, a key
    that nothing reads, a value that has no effect."""
    pattern = str(OmegaConf.to_container(cfg.model.backbone.pattern, resolve=False))
    composed = (["mixer"] if cfg.get("mixer") else []) + [f"mixers.{name}" for name in cfg.get("mixers", {})]
    for name in composed:
        if f"${{{name}}}" not in pattern:
            raise ValueError(f"{name} is composed but model.backbone.pattern={pattern} does not use it: name it there")
    text = OmegaConf.to_yaml(cfg) + OmegaConf.to_yaml(HydraConfig.get().sweeper)
    referred = {word for inside in re.findall(r"\$\{([^${}]*)", text) for word in re.split(r"[^\w.]+", inside)}
    own = {*OmegaConf.load(Path(__file__).with_name("conf") / "train.yaml"), *GROUPS}
    for name in [*cfg, *(f"task.{name}" for name in cfg.task)]:
        known = name in own or name.removeprefix("task.") in FACTS
        if not known and not any(word == name or word.startswith(f"{name}.") for word in referred):
            raise ValueError(f"nothing reads {name}: leave it out")
    given = [key(word) for word in HydraConfig.get().overrides.task]
    for name, switch in ONLY_WITH.items():
        if name in given and not cfg[switch]:
            raise ValueError(f"{name} has no effect without {switch}=: set that, or leave {name} out")
    if "task.length" in given and "task.length" not in referred:
        raise ValueError(f"task.length has no effect: {cfg.task.name} gives its lengths in task.data")


def other(mixer: str) -> DictConfig:
    """This run's configuration with another mixer, with that one's own values."""
    overrides = HydraConfig.get().overrides
    search = [word for word in overrides.hydra if word.startswith("hydra.searchpath")]
    rest = [word for word in overrides.task if key(word).split(".")[0] != "mixer"]
    cfg = hydra.compose("train", overrides=[*search, *rest, f"mixer={mixer}"])
    cfg.label = mixer
    return cfg


def place(cfg: DictConfig) -> Path:
    """The directory of a run."""
    experiment = HydraConfig.get().runtime.choices.get("experiment")
    return Path(cfg.runs, *([experiment] if experiment else []), cfg.task.name, cfg.label, str(cfg.seed))


def trial(cfg: DictConfig, values: dict, directory: Path) -> dict:
    """A run that is only to choose a value: validated, never tested."""
    return run(cfg, described(cfg, os.environ.get("SEQMIX_SWEEP", "")) | {"trial": values}, directory)


def again(cfg: DictConfig, record: dict) -> dict:
    """The A/A twin of a run that is the baseline of its sweep, or alone; a mixer without parameters has none."""
    if record["mixer"] != os.environ.get("SEQMIX_BASELINE", "") != "" or not record["parameters"]["mixer"]:
        return record
    from compare import plan

    cfg = plan.twin(cfg)
    planned = {key: record[key] for key in ("match", "selection") if key in record}
    return run(cfg, described(cfg, record["sweep"]) | planned | {"aa": record["label"]}, place(cfg))


def run(cfg: DictConfig, record: dict, directory: Path) -> dict:
    """Trains, tests and records one run, unless that has been done. Raises ValueError or OSError where it cannot."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / results.file(record)
    if path.exists():
        earlier = results.read(path)
        if earlier["config_hash"] != record["config_hash"]:
            keys = ", ".join(results.differing_keys(earlier["config"], record["config"]))
            raise ValueError(f"{directory} holds a run that differs in {keys}: remove it, or choose another runs=")
        if earlier["outcome"] in ("finished", "impossible"):
            log.info("%s is already done: remove it to run again", directory)
            if record["sweep"]:
                results.write(directory, earlier | {"sweep": record["sweep"]})
            return earlier
    from compare.run import carry_out  # torch, lightning, wandb: seconds

    return carry_out(cfg, directory, record)


if __name__ == "__main__":
    main()
