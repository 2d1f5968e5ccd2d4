"""Hydra's hooks around a multirun: a sweep id at its start, the comparison at its end."""

import logging
import os
import secrets
import sys
import time
import traceback
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from compare import results
from compare.identity import SWEEP, writable
from compare.plan import BASELINE

log = logging.getLogger(__name__)


class CompareCallback(Callback):
    """Compares the runs of one sweep, and only those, and ends with exit code 1 if any of them did not finish."""

    def on_multirun_start(self, config: DictConfig, **kwargs) -> None:
        if "optuna" in config.hydra.sweeper._target_:
            sys.exit(
                "error: hydra/sweeper=optuna would choose among the runs that report: write what to choose as "
                'select="optimizer.lr=tag(log, interval(1e-4, 1e-1))" select_trials=20, which asks the same Optuna'
            )
        try:
            writable(config.runs)  # where Hydra itself writes first, and would end with a trace
        except ValueError as error:
            sys.exit(f"error: {error}")
        os.environ[SWEEP] = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        os.environ[BASELINE] = baseline(swept(config, "mixer"))

    def on_multirun_end(self, config: DictConfig, **kwargs) -> None:
        # Hydra makes a warning of a callback's exception and ignores its result: only an exit says that all is not well
        try:
            code = compare_sweep(config, os.environ.pop(SWEEP))
        except Exception as error:
            if not isinstance(error, ValueError):
                traceback.print_exc()
            print(f"error: {error}", file=sys.stderr)
            code = 1
        if code:
            sys.exit(code)


def swept(config: DictConfig, key: str) -> list[str]:
    """The values that a multirun gives to `key`; [] where it does not name it."""
    parameters = OmegaConf.to_container(config.hydra.sweeper, resolve=True).get("params") or {}
    texts = [*(f"{name}={value}" for name, value in parameters.items()), *config.hydra.overrides.task]
    values: list[str] = []
    for override in OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(texts):
        if override.key_or_group == key:  # the last one counts, and the command line comes last
            values = list(override.sweep_string_iterator()) if override.is_sweep_override() else [str(override.value())]
    return values


def baseline(mixers: list[str]) -> str:
    """Which mixer the others are compared with."""
    return results.BASELINE if results.BASELINE in mixers else next(iter(mixers), "")


def compare_sweep(config: DictConfig, sweep: str) -> int:
    """Reports on the sweep's records and returns the exit code; ValueError where they cannot be compared."""
    records = results.read_all(Path(config.runs), sweep)
    from compare.report import report

    directory = Path(config.runs) / "comparisons" / sweep
    figures = report(records, directory)
    print(f"\ncomparison: {directory / 'report.html'}")
    if OmegaConf.select(config, "logger.project"):
        log_comparison(config, records, directory, sweep, figures)
    return int(any(record["outcome"] != "finished" for record in records))


def log_comparison(config: DictConfig, records: list[dict], directory: Path, sweep: str, figures: dict) -> None:
    """One W&B run, beside those of the sweep, with the report, its rows and its figures; offline unless the logger says
    online."""
    import csv

    import wandb

    with (directory / "comparison.csv").open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    tasks = sorted({record["task"] for record in records})
    place = Path(OmegaConf.select(config, "logger.save_dir") or config.runs)
    place.mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        project=config.logger.project,
        name=f"comparison-{sweep}",
        id=f"comparison-{sweep}",
        group=tasks[0] if len(tasks) == 1 else "comparison",
        job_type="compare",
        tags=[sweep, *tasks],
        dir=str(place),
        mode="offline" if OmegaConf.select(config, "logger.offline", default=True) else "online",
        settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
    )
    try:
        table = wandb.Table(columns=head, data=[[_number(cell) for cell in row] for row in rows])
        drawn = {f"{task}/{one.title}": wandb.Html(one.svg) for task, several in figures.items() for one in several}
        run.log({"comparison": table, "report": wandb.Html(str(directory / "report.html")), **drawn})
        for cells in (dict(zip(head, row, strict=True)) for row in rows):
            if cells["outcome"] != "reference" and (mean := _number(cells.get("mean", ""))) is not None:
                run.summary[f"{cells['task']}/{cells['mixer']}"] = mean
    finally:
        run.finish()


def _number(cell: str) -> float | str | None:
    try:
        return float(cell) if cell else None
    except ValueError:
        return cell
