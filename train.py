"""One run; with -m many runs, then their comparison.

    python train.py mixer=gla task=recall seed=0
    python train.py -m mixer=softmax,gla task=recall seed=0,1,2

Only what composing a configuration needs is imported at the top, so that --help and typing errors answer at once.
"""

import logging
import os
import sys
from hashlib import sha256
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from compare import results

log = logging.getLogger(__name__)
PLACE = ("runs", "ckpt", "logger", "probe", "threads")  # where a run is kept and watched, not what it is


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> None:
    sweep = os.environ.get("SEQMIX_SWEEP", "")
    try:
        cfg.label = label()
        config = OmegaConf.to_container(cfg, resolve=True)
        identity = {key: value for key, value in config.items() if key not in PLACE}
        record = {
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
        unused(cfg)
        record = run(cfg, record)
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
    if not sweep and record["outcome"] != "finished":
        sys.exit(f"{record['outcome']}: {record['reason']}")


def label() -> str:
    """The mixers' names and every override that is not mixer, task, seed or a place; shortened by hash beyond 80."""
    choices = HydraConfig.get().runtime.choices
    mixers = [choices[key] for key in choices if key.split("@")[0] == "mixer" and choices[key]]
    others = []
    for override in HydraConfig.get().overrides.task:
        key = override.lstrip("+~").split("=")[0]
        if key.split("@")[0] not in ("mixer", "task", "seed", "experiment", *PLACE) and key.split(".")[0] != "logger":
            others.append(override.lstrip("+").replace("/", "."))
    text = ",".join(["+".join(dict.fromkeys(mixers)), *sorted(others)])
    return text if len(text) <= 80 else f"{text[:71]}-{sha256(text.encode()).hexdigest()[:8]}"


def unused(cfg: DictConfig) -> None:
    """Raises ValueError for a composed mixer that no pattern refers to: it would be ignored without a word."""
    pattern = str(OmegaConf.to_container(cfg.model.backbone.pattern, resolve=False))
    composed = (["mixer"] if cfg.get("mixer") else []) + [f"mixers.{name}" for name in cfg.get("mixers", {})]
    for name in composed:
        if f"${{{name}}}" not in pattern:
            raise ValueError(f"{name} is composed but model.backbone.pattern={pattern} does not use it: name it there")


def run(cfg: DictConfig, record: dict) -> dict:
    """Trains, tests and records one run, unless that has been done. Raises ValueError or OSError where it cannot."""
    experiment = HydraConfig.get().runtime.choices.get("experiment")
    directory = Path(cfg.runs, *([experiment] if experiment else []), cfg.task.name, cfg.label, str(cfg.seed))
    directory.mkdir(parents=True, exist_ok=True)
    if (directory / results.FILE).exists():
        earlier = results.read(directory / results.FILE)
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
