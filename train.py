"""One run; with -m many runs, then their comparison.

python train.py mixer=gla task=recall seed=0
python train.py -m mixer=softmax,gla task=recall seed=0,1,2
"""

# Only what composing a configuration needs is imported here, so that --help and typing errors answer at once.
import logging
import os
import sys
from hashlib import sha256
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from compare import results

log = logging.getLogger(__name__)
PLACE = ("runs", "ckpt", "logger", "probe", "threads")  # where a run is kept and watched, not what it is


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> None:
    many = HydraConfig.get().mode == RunMode.MULTIRUN
    try:
        cfg.label = label()
        unused(cfg)
        record = run(cfg)
    except (ValueError, OSError) as error:
        # under -m nothing raises: the other runs go on, and the comparison says what became of this one
        if not many:
            sys.exit(f"error: {error}")
        log.error("error: %s", error)
        return
    if not many and record["outcome"] != "finished":
        sys.exit(f"{record['outcome']}: {record['reason']}")


def label() -> str:
    """The mixers' names and every override that is not mixer, task, seed or a place; shortened by hash beyond 80."""
    choices = HydraConfig.get().runtime.choices
    mixers = [choices[key] for key in choices if key.split("@")[0] == "mixer" and choices[key]]
    skip = ("mixer", "task", "seed", "experiment", *PLACE)
    parts = ["+".join(dict.fromkeys(mixers))]
    for override in HydraConfig.get().overrides.task:
        key = override.lstrip("+~").split("=")[0]
        if key.split("@")[0] not in skip and key.split(".")[0] not in ("logger", "hydra"):
            parts.append(override.lstrip("+").replace("/", "."))
    text = ",".join(sorted(parts[1:]))
    text = f"{parts[0]},{text}" if text else parts[0]
    return text if len(text) <= 80 else f"{text[:71]}-{sha256(text.encode()).hexdigest()[:8]}"


def unused(cfg: DictConfig) -> None:
    """Raises ValueError for a composed mixer that no pattern refers to: it would be ignored without a word."""
    pattern = str(OmegaConf.to_container(cfg.model.backbone.pattern, resolve=False))
    composed = (["mixer"] if cfg.get("mixer") else []) + [f"mixers.{name}" for name in cfg.get("mixers", {})]
    for name in composed:
        if f"${{{name}}}" not in pattern:
            raise ValueError(f"{name} is composed but model.backbone.pattern={pattern} does not use it: name it there")


def run(cfg: DictConfig) -> dict:
    """Trains, tests and records one run. Returns its record; raises ValueError or OSError where there can be none."""
    config = OmegaConf.to_container(cfg, resolve=True)
    identity = {key: value for key, value in config.items() if key not in PLACE}
    choices = HydraConfig.get().runtime.choices
    experiment = choices.get("experiment")
    directory = Path(cfg.runs, *([experiment] if experiment else []), cfg.task.name, cfg.label, str(cfg.seed))
    directory.mkdir(parents=True, exist_ok=True)
    record = {
        "version": results.VERSION,
        "outcome": "failed",
        "reason": "",
        "sweep": os.environ.get("SEQMIX_SWEEP", ""),
        "task": cfg.task.name,
        "mixer": cfg.label.split(",")[0],
        "label": cfg.label,
        "seed": cfg.seed,
        "config": identity,
        "config_hash": results.config_hash(identity),
    }
    before = directory / results.FILE
    if before.exists():
        earlier = results.read(before)
        if earlier["config_hash"] != record["config_hash"]:
            keys = ", ".join(results.differing_keys(earlier["config"], identity))
            raise ValueError(f"{directory} holds a run that differs in {keys}: remove it, or choose another runs=")
        if earlier["outcome"] in ("finished", "impossible"):
            log.info("%s is already done: remove it to run again", directory)
            if record["sweep"]:
                results.write(directory, earlier | {"sweep": record["sweep"]})
            return earlier
    from compare.run import carry_out  # imports torch and lightning: seconds

    return carry_out(cfg, directory, record)


if __name__ == "__main__":
    main()
