"""What is settled before a run trains: sizes that meet a budget, values that validation chooses, and the A/A twin.

Each moves the configuration, and says what it did in the record.
"""

import copy
import fcntl
import functools
import itertools
import logging
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from compare import budget, stats
from compare.tables import UNITS, matched, values_text

log = logging.getLogger(__name__)
MLP = "model.backbone.mlp.expand"


def match(cfg: DictConfig, other: Callable[[str], DictConfig]) -> dict:
    """Move the mixer's own sizes in cfg until the model costs what cfg.match_to does; returns what was done.

    other: the same configuration with another mixer. match=params may move the width of the MLP too; depth never moves.
    Raises ValueError for what cannot be matched. {} where the mixer cannot be built for the task at all.
    """
    if cfg.match not in UNITS:
        raise ValueError(f"match={cfg.match}: it must be {', '.join(UNITS)}, or null")
    if not cfg.get("mixer"):
        raise ValueError(f"match={cfg.match} moves the sizes of one mixer, and this model has several: leave match out")
    length = cfg.task.max_length

    def cost(config: DictConfig) -> float:
        return budget.cost(functools.partial(instantiate, config.model), cfg.match, length)

    def measure(sizes: dict[str, int]) -> float:
        changed = copy.deepcopy(cfg)
        put(changed, _values(cfg, sizes))
        return cost(changed)

    movable = getattr(get_class(cfg.mixer._target_), "sizes", ())
    sizes = {f"mixer.{key}": cfg.mixer[key] for key in movable if isinstance(cfg.mixer.get(key), int)}
    if cfg.match == "params" and OmegaConf.select(cfg, MLP) is not None:
        sizes[MLP] = round(OmegaConf.select(cfg, MLP) * cfg.model.d_model)
    try:
        measure(sizes)
    except InstantiationException:
        return {}  # the run will say why
    target = _target(str(cfg.match_to), other, cost)
    best, reached = budget.solve(measure, sizes, target)
    before = {key: OmegaConf.select(cfg, key) for key in sizes}
    put(cfg, _values(cfg, best))
    moved = {key: [before[key], OmegaConf.select(cfg, key)] for key in sizes if best[key] != sizes[key]}
    residual = reached / target - 1
    done = {
        **{"by": cfg.match, "to": str(cfg.match_to), "length": length, "target": target, "reached": reached},
        **{"residual": residual, "met": abs(residual) <= budget.TOLERANCE, "moved": moved, "sizes": list(sizes)},
    }
    log.info("%s: %s", cfg.label, matched(done))
    return done


def _target(to: str, other: Callable[[str], DictConfig], cost: Callable[[DictConfig], float]) -> float:
    try:
        value = float(to)
    except ValueError:
        try:
            value = cost(other(to))
        except (HydraException, ValueError, RuntimeError) as error:
            cause = str(error.__cause__ or error).splitlines()[0]
            raise ValueError(f"match_to={to} is no number and no mixer that can be measured here: {cause}") from None
        if value == 0:
            raise ValueError(f"match_to={to} costs nothing to be matched: name another mixer, or a number") from None
    if not value > 0:
        raise ValueError(f"match_to={to}: a budget must be above 0")
    return value


def _values(cfg: DictConfig, sizes: dict[str, int]) -> dict[str, float]:
    return {key: size / cfg.model.d_model if key == MLP else size for key, size in sizes.items()}


def put(cfg: DictConfig, values: dict[str, Any]) -> None:
    """Set dotted keys that exist. Raises ValueError for one that does not."""
    for key, value in values.items():
        try:
            OmegaConf.update(cfg, key, value)
        except OmegaConfBaseException:
            raise ValueError(f"'{key}' is not a key of the configuration: --cfg job lists them") from None


def grid(text: str) -> dict[str, list]:
    """ "optimizer.lr=1e-3,3e-3 model.dropout=0,0.1" as {key: values}. Raises ValueError for anything else."""
    values: dict[str, list] = {}
    try:
        for override in OverridesParser.create().parse_overrides(shlex.split(text)):
            if not override.is_sweep_override() or not override.key_or_group:
                raise ValueError(f"select: {override.key_or_group} has one value only, which leaves nothing to choose")
            values[override.key_or_group] = list(override.sweep_iterator(transformer=lambda value: value))
    except HydraException:
        raise ValueError(f'select="{text}" is not a grid: write it as select="optimizer.lr=1e-3,3e-3"') from None
    if not values:
        raise ValueError('select is empty: write it as select="optimizer.lr=1e-3,3e-3"')
    return values


def select(cfg: DictConfig, place: Path, train: Callable[[DictConfig, dict, Path], dict]) -> dict:
    """Train every point of the grid cfg.select on cfg.selection_seeds, put the best into cfg; returns all of it.

    The best has the highest mean validation score at the last step; a trial that did not finish counts as the worst.
    train(config, values, directory) gives a trial's record. Runs of one label that start at the same time share their
    trials: one trains them, the others wait. Raises ValueError where the run's own seed selects, or no trial finished.
    """
    points, seeds = grid(cfg.select), list(cfg.selection_seeds)
    if cfg.seed in seeds or not seeds:
        raise ValueError(
            f"selection_seeds={seeds} must be seeds, and not seed={cfg.seed}, which would select on what it reports"
        )
    trials, higher = [], True
    with _locked(place):
        for chosen in itertools.product(*points.values()):
            values, scores = dict(zip(points, chosen, strict=True)), []
            for seed in seeds:
                trial = copy.deepcopy(cfg)
                put(trial, values | {"seed": seed, "select": None})
                record = train(trial, values, place / values_text(values) / str(seed))
                higher = record.get("metric", {}).get("higher_is_better", higher)
                if record["outcome"] == "impossible":
                    return {}  # the run will say why
                scores.append(record["validation"]["score"] if record["outcome"] == "finished" else None)
            trials.append({"values": values, "scores": scores})
    means = {i: stats.mean(t["scores"]) for i, t in enumerate(trials) if None not in t["scores"]}
    if not means:
        raise ValueError(f"select={cfg.select}: no trial finished, so there is nothing to choose from")
    best = trials[(max if higher else min)(means, key=means.__getitem__)]["values"]
    put(cfg, best)
    edge = [
        key
        for key, value in best.items()
        if not isinstance(value, str | bool) and value in (min(points[key]), max(points[key]))
    ]
    log.info("%s: of %d trials, validation chooses %s", cfg.label, len(trials) * len(seeds), values_text(best))
    return {"grid": points, "seeds": seeds, "trials": trials, "chosen": best, "edge": edge}


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def twin(cfg: DictConfig) -> DictConfig:
    """The same run under a second label: only the initial values of its mixers differ, which the label seeds too."""
    again = copy.deepcopy(cfg)
    again.label = f"{cfg.label},aa"
    return again
