"""What is settled before a run trains: sizes that meet a budget, values that validation chooses, and the A/A twin.

Each moves the configuration, and says what it did in the record.
"""

import copy
import fcntl
import functools
import importlib
import itertools
import logging
import math
import os
import shlex
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from compare import identity, stats
from compare.notes import UNITS, matched
from compare.overrides import key_of
from compare.text import values_text

log = logging.getLogger(__name__)
BASELINE = "SEQMIX_BASELINE"  # in the environment: the mixer of which a sweep trains a twin; empty: every one
MLP = "model.backbone.mlp.expand"


def settle(cfg: DictConfig, run: Callable[[DictConfig, dict, Path], dict]) -> dict:
    """Match and select as cfg asks, which moves cfg; returns what the record is to say of it.

    run(config, record, directory) gives the record of a run. Raises ValueError where match or select does.
    """

    def trial(cfg: DictConfig, values: dict, directory: Path) -> dict:
        return run(cfg, identity.described(cfg) | {"trial": values}, directory)

    done = {}
    if cfg.match:
        done["match"] = match(cfg, _with)
    if cfg.select:
        done["selection"] = select(cfg, identity.place(cfg).parent / "select", trial)
    return {key: what for key, what in done.items() if what}


def _with(mixer: str) -> DictConfig:
    """This run's configuration with another mixer, with that one's own values."""
    given = HydraConfig.get().overrides
    search = [word for word in given.hydra if word.startswith("hydra.searchpath")]
    rest = [word for word in given.task if key_of(word).split(".")[0] != "mixer"]
    cfg = compose("train", overrides=[*search, *rest, f"mixer={mixer}"])
    cfg.label = mixer
    return cfg


def match(cfg: DictConfig, other: Callable[[str], DictConfig]) -> dict:
    """Move the mixer's own sizes in cfg until the model costs what cfg.match_to does; returns what was done.

    other: the same configuration with another mixer. match=params may move the width of the MLP too; depth never moves.
    Raises ValueError for what cannot be matched. {} where the mixer cannot be built for the task at all.
    """
    from compare import budget  # torch: seconds

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
    """ "optimizer.lr=1e-3,3e-3 model.dropout=0,0.1" as {key: values}; of interval(low, high) the two ends. Raises
    ValueError for anything else."""
    values: dict[str, list] = {}
    for override in _sweeps(text):
        value = override.value()
        ends = [value.start, value.end] if override.is_interval_sweep() else None
        values[override.key_or_group] = ends or list(override.sweep_iterator(transformer=lambda value: value))
    return values


def _sweeps(text: str) -> list[Override]:
    try:
        overrides = OverridesParser.create().parse_overrides(shlex.split(text))
    except HydraException:
        raise ValueError(f'select="{text}" is not a grid: write it as select="optimizer.lr=1e-3,3e-3"') from None
    for override in overrides:
        if not override.is_sweep_override() or not override.key_or_group:
            raise ValueError(f"select: {override.key_or_group} has one value only, which leaves nothing to choose")
    if not overrides:
        raise ValueError('select is empty: write it as select="optimizer.lr=1e-3,3e-3"')
    return overrides


class _Impossible(Exception):
    """The mixer cannot be trained on the task: the run itself will say why."""


def select(cfg: DictConfig, place: Path, train: Callable[[DictConfig, dict, Path], dict]) -> dict:
    """Train trials of cfg.select on cfg.selection_seeds, put the best into cfg; returns all of it.

    Trials are every point of a grid; where it has an interval, cfg.select_trials points that Optuna proposes. The best
    has the highest mean validation score at the last step; a trial that did not finish counts as the worst.
    train(config, values, directory) gives a trial's record. Runs of one label that start at the same time share their
    trials: one trains them, the others wait. Raises ValueError where the run's own seed selects, or no trial finished.
    """
    points, seeds, higher = grid(cfg.select), list(cfg.selection_seeds), cfg.task.metric == "accuracy"
    if cfg.seed in seeds or not seeds:
        raise ValueError(
            f"selection_seeds={seeds} must be seeds, and not seed={cfg.seed}, which would select on what it reports"
        )
    searched = [override for override in _sweeps(cfg.select) if override.is_interval_sweep()]
    if bool(searched) != bool(cfg.select_trials):
        raise ValueError(
            f"select={cfg.select} has an interval: say how many points to try, as in select_trials=20"
            if searched
            else f"select_trials={cfg.select_trials} is for an interval; of a grid every point is tried: leave it out"
        )
    trials: list[dict] = []

    def score(values: dict) -> float | None:
        scores = []
        for seed in seeds:
            trial = copy.deepcopy(cfg)
            put(trial, values | {"seed": seed, "select": None, "select_trials": None})
            record = train(trial, values, place / values_text(values) / str(seed))
            if record["outcome"] == "impossible":
                raise _Impossible
            scores.append(record["validation"]["score"] if record["outcome"] == "finished" else None)
        trials.append({"values": values, "scores": scores})
        return None if None in scores else stats.mean(scores)

    try:
        with _locked(place):
            if searched:
                search(cfg.select, cfg.select_trials, higher, place, score)
            else:
                for chosen in itertools.product(*points.values()):
                    score(dict(zip(points, chosen, strict=True)))
    except _Impossible:
        return {}
    means = {i: stats.mean(t["scores"]) for i, t in enumerate(trials) if None not in t["scores"]}
    if not means:
        raise ValueError(f"select={cfg.select}: no trial finished, so there is nothing to choose from")
    best = trials[(max if higher else min)(means, key=means.__getitem__)]["values"]
    put(cfg, best)
    edge = []  # least or largest of what was tried: the best may lie beyond
    for key, value in best.items():
        tried = [trial["values"][key] for trial in trials]
        if not any(isinstance(one, str | bool) for one in tried) and value in (min(tried), max(tried)):
            edge.append(key)
    log.info("%s: of %d trials, validation chooses %s", cfg.label, len(trials) * len(seeds), values_text(best))
    return {"grid": points, "seeds": seeds, "trials": trials, "chosen": best, "edge": edge}


def search(
    text: str, trials: int, higher: bool, place: Path, score: Callable[[dict], float | None], seed: int = 0
) -> None:
    """Hydra's own Optuna sweeper over `text`, one trial after the other; its sampler has a fixed seed, so that a search
    that was interrupted proposes the same points again. score(values) is None for a trial that did not finish.

    Raises ValueError where the sweeper is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # this old Optuna's, about the libraries under it
            optuna = importlib.import_module("optuna")
            plugin = importlib.import_module("hydra_plugins.hydra_optuna_sweeper._impl")
    except ImportError:
        raise ValueError(f"select={text} needs Hydra's Optuna sweeper: pip install seqmix[sweep]") from None

    worst = -math.inf if higher else math.inf

    class Launcher:
        """Of the sweeper's jobs, which are not runs of train.py but trials of this one."""

        def launch(self, jobs, initial_job_idx: int) -> list:
            done = []
            for words in jobs:
                values = {o.key_or_group: o.value() for o in OverridesParser.create().parse_overrides(list(words))}
                scored = score(values)
                done.append(SimpleNamespace(return_value=worst if scored is None else scored))
            return done

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("hydra_plugins").setLevel(logging.WARNING)
    sweeper = plugin.OptunaSweeperImpl(
        **{"sampler": optuna.samplers.TPESampler(seed=seed), "direction": "maximize" if higher else "minimize"},
        **{"storage": None, "study_name": None, "n_trials": trials, "n_jobs": 1, "max_failure_rate": 0.0},
        **{"search_space": None, "custom_search_space": None, "params": None},
    )
    sweeper.launcher = Launcher()  # ty: ignore[invalid-assignment]  (as much of one as the sweeper asks for)
    sweeper.config = OmegaConf.create({"hydra": {"sweep": {"dir": str(place)}}})
    sweeper.hydra_context, sweeper.job_idx = object(), 0  # ty: ignore[invalid-assignment]
    sweeper.sweep(shlex.split(text))


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def twin(cfg: DictConfig, record: dict, run: Callable[[DictConfig, dict, Path], dict]) -> dict:
    """The record of the same run under a second label, where the run is its sweep's baseline, or alone; else `record`.

    Only the initial values of its mixers differ, which the label seeds too: without parameters there is no twin.
    """
    if record["mixer"] != os.environ.get(BASELINE, "") != "" or not record["parameters"]["mixer"]:
        return record
    again = copy.deepcopy(cfg)
    again.label = f"{cfg.label},aa"
    planned = {key: record[key] for key in ("match", "selection") if key in record}
    return run(again, identity.described(again) | planned | {"aa": record["label"]}, identity.place(again))
