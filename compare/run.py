"""One training run, from a resolved configuration to its record, whatever the outcome."""

import copy
import csv
import functools
import inspect
import io
import logging
import re
import signal
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from omegaconf import DictConfig, OmegaConf

from compare import budget, identity, plan, results, speed
from mixers.ops import engines
from models.backbone import LooksAhead
from models.learner import Diverged, Learner, read_checkpoint

log = logging.getLogger(__name__)
LAST = "last.ckpt"
# warnings of libraries about themselves, or about what resuming means to do
NOISE = ("LeafSpec", "does not have many workers", "script_method", "exists and is not empty", "dirpath has changed")


class Interrupted(RuntimeError):
    """A signal ended the run between two steps; its checkpoint is whole."""


def carry_out(cfg: DictConfig, directory: Path, record: dict) -> dict:
    """Builds, fits, tests and measures; writes result.json and metrics.csv under `directory`; returns the record.

    Raises ValueError, of one sentence, where the configuration cannot be built: then nothing is recorded.
    """
    warnings.filterwarnings("ignore", message=f".*({'|'.join(NOISE)}).*")
    logging.getLogger("lightning").handlers.clear()  # its own, beside Hydra's, would print each line twice
    torch.set_num_threads(cfg.threads)
    environment = results.environment()
    on_gpu = torch.cuda.is_available() and cfg.trainer.get("accelerator", "auto") != "cpu"
    engine = engines.use(cfg.engine, "cuda" if on_gpu else "cpu")
    engines.ran.clear()
    record |= {"environment": environment, "code": environment["code"], "engine": engine.name, "protocol": {}}
    L.seed_everything(cfg.seed, verbose=False)
    learner: Learner | None = None
    logger = None
    try:
        data = instantiate(cfg.task.data)
        record |= {
            "data": data.hashes(),
            "overlap": data.overlap(),
            "baselines": data.baselines(),
            "metric": {"name": data.metric, "higher_is_better": data.metric == "accuracy"},
            "protocol": protocol(cfg, data),
        }
        learner = instantiate(cfg.learner, model=instantiate(cfg.model))
        known(learner.make_optimizer)
        learner.config = record["config"]
        learner.names = {split: [s.name for s in data.segments(split)] for split in ("validation", "test")}
        checkpoint = resume_from(cfg, directory, learner)
        logger = open_logger(cfg, record)
        trainer = make_trainer(cfg, directory, logger)
        trainer.fit(learner, data, ckpt_path=checkpoint, weights_only=True)
        # What training ends with is missing where the run was killed after its last step, and goes on with none left;
        # and where no interval of validation ends at that step.
        learner.record_loss()
        if "validation" not in learner.scores or "validation/score" not in learner.curve[-1]:
            trainer.validate(learner, data, verbose=False)
        if "trial" in record:  # the test split chooses nothing
            record |= {"outcome": "finished", "validation": learner.scores["validation"]["all"]}
        else:
            trainer.test(learner, data, verbose=False)
            record |= outcome_of(cfg, learner, data, "cuda" if on_gpu else "cpu")
    except Diverged as error:
        record |= {"outcome": "diverged", "reason": str(error)}
    except Interrupted as error:
        record |= {"outcome": "interrupted", "reason": str(error)}
    except InstantiationException as error:
        cause = error.__cause__ or error
        if not isinstance(cause, LooksAhead):
            raise ValueError(str(cause)) from error
        record |= {"outcome": "impossible", "reason": f"looks ahead: {cause}"}
    finally:
        if logger is not None:
            import wandb  # only where it is asked for: it takes seconds, and runs do without it

            wandb.finish(exit_code=0 if record["outcome"] == "finished" else 1)
    served = {op: sorted(names) for op, names in sorted(engines.ran.items())}
    record["engine_details"] = {"why": engine.why, "served": served}
    if learner is not None:
        record["curve"] = learner.curve
        results.replace(directory / "metrics.csv", table(learner.curve))
    results.write(directory, record)
    log.info("%s seed %d: %s", cfg.label, cfg.seed, f"{record['outcome']} {record['reason']}".strip())
    return record


def known(optimizer: functools.partial) -> None:
    """Raises ValueError for an option that the optimizer does not have, which would only come out at the first step."""
    if odd := optimizer.keywords.keys() - inspect.signature(optimizer.func).parameters.keys():
        raise ValueError(f"the optimizer has no option {', '.join(sorted(odd))}: leave it out of optimizer")


def protocol(cfg: DictConfig, data: Any) -> dict:
    """Everything that must be equal between runs that are compared, beside the data."""
    plain, selection = copy.deepcopy(cfg), "the last step; nothing was selected"
    if cfg.get("select"):
        plan.put(plain, dict.fromkeys(plan.grid(cfg.select), "selected"))
        tried = f", {cfg.select_trials} points," if cfg.select_trials else ""
        selection = f"the last step; {cfg.select}{tried} by its validation score on seeds {list(cfg.selection_seeds)}"
    config = OmegaConf.to_container(plain, resolve=True)
    model = {key: value for key, value in config["model"].items() if key not in ("label", "seed", "backbone")}
    backbone = {key: value for key, value in config["model"]["backbone"].items() if key not in ("pattern", "mlp")}
    learner = {key: value for key, value in config["learner"].items() if key not in ("seed", "title")}
    steps = {
        key: config["trainer"][key] for key in ("max_steps", "precision", "gradient_clip_val", "val_check_interval")
    }
    order = {key: value for key, value in data.protocol().items() if key != "order_seed"}
    return {"data": order, "model": model | {"backbone": backbone}, "learner": learner, "trainer": steps} | {
        "threads": cfg.threads,
        "selection": selection,
        "match": f"{cfg.match} of {cfg.match_to}" if cfg.get("match") else "none",
        "torch": torch.__version__,
    }


def resume_from(cfg: DictConfig, directory: Path, learner: Learner) -> Path | None:
    """The checkpoint to go on from, tried once so that a corrupt or foreign one gets a sentence and not a trace."""
    last = directory / LAST
    if cfg.ckpt not in (None, "last"):
        last = Path(cfg.ckpt)
        if not last.exists():
            raise ValueError(f"ckpt={cfg.ckpt} does not exist: name a checkpoint file, or last")
    elif not last.exists():
        if cfg.ckpt == "last":
            raise ValueError(f"ckpt=last: {directory} holds no {LAST}; leave ckpt out to start from step 0")
        return None
    saved = read_checkpoint(last)
    theirs, ours = set(saved["state_dict"]), set(learner.state_dict())
    if theirs != ours:
        odd = sorted(theirs ^ ours)[0]
        raise ValueError(f"{last} is of another model ({odd} is not in both): name one of this configuration")
    log.info("going on from %s at step %d", last, saved["global_step"])
    return last


def open_logger(cfg: DictConfig, record: dict):
    """The configured logger, told what a reader needs to put runs side by side; False where there is none."""
    if not cfg.logger:
        return None
    name = f"{record['label']}-s{record['seed']}"
    logger = instantiate(
        cfg.logger,
        name=name,
        id=re.sub(r"[=:;,#?/']", "-", f"{record['task']}-{name}-{record['config_hash'][:6]}")[-120:],
        group=record["task"],
        job_type="select" if "trial" in record else "train",
        tags=[record["task"], record["mixer"]] + ([record["sweep"]] if record["sweep"] else []),
    )
    logger.log_hyperparams(record["config"] | {key: record[key] for key in ("mixer", "label", "config_hash")})
    return logger


def make_trainer(cfg: DictConfig, directory: Path, logger) -> L.Trainer:
    """Lightning's Trainer with the project's callbacks. One line per validation, and the bar where somebody watches."""
    callbacks = [
        ModelCheckpoint(
            directory, filename="last", every_n_epochs=1, save_on_train_epoch_end=False, enable_version_counter=False
        ),
        StopBetweenSteps(directory / LAST),
    ]
    bar = cfg.trainer.enable_progress_bar and not identity.sweep()
    if bar:
        callbacks.append(StepBar(leave=True))
    return instantiate(
        cfg.trainer,
        callbacks=callbacks,
        logger=logger or False,
        default_root_dir=str(directory),
        enable_progress_bar=bar,
    )


def table(rows: list[dict]) -> str:
    """Rows as CSV, with every key that any of them has as a column."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class StepBar(RichProgressBar):
    """Counts the steps of the whole run, those before it was resumed too. Lightning would count epochs of an endless
    loader, and all steps against the number that is left."""

    @property
    def total_train_batches(self) -> int:
        return self.trainer.max_steps

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        if self.progress is not None and self.train_progress_bar_id is not None:
            self.progress.reset(
                self.train_progress_bar_id, total=self.total_train_batches, completed=trainer.global_step
            )

    def _get_train_description(self, current_epoch: int) -> str:
        return "step"


class StopBetweenSteps(Callback):
    """Ctrl-C and SIGTERM end the run after the step that is under way, with a checkpoint that goes on exactly."""

    def __init__(self, checkpoint: Path):
        self.checkpoint, self.signal = checkpoint, None
        self._before: dict = {}

    def on_train_start(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame) -> None:
        self.signal = signal.Signals(number).name

    def on_train_batch_end(self, trainer: L.Trainer, learner: L.LightningModule, *args) -> None:
        if self.signal:
            trainer.save_checkpoint(self.checkpoint, weights_only=False)
            raise Interrupted(f"{self.signal} at step {trainer.global_step}: the same command goes on from there")

    def teardown(self, trainer: L.Trainer, learner: L.LightningModule, stage: str) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def outcome_of(cfg: DictConfig, learner: Learner, data: Any, device: str) -> dict:
    """What a finished run is worth and what it cost, measured on the device that it ran on."""
    test = learner.scores["test"]
    length = cfg.task.length if learner.not_run else cfg.task.max_length  # what it can run
    make = functools.partial(instantiate, cfg.model)
    learner.to(device)  # which the Trainer has left
    batch = tuple(None if x is None else x.to(device) for x in next(iter(data.train_dataloader())))
    run = [s for s in data.segments("test") if s.name not in learner.not_run]
    lengths = sorted({length, *(s.tokens.shape[-1] for s in run)})
    timed = {}
    if cfg.probe:
        timed = speed.probe(learner.model, batch, lambda model, batch: learner.loss(batch))
        if cfg.model.pool != "pair":
            timed["by_length"] = speed.by_length(learner.model, lengths)
    return {
        "outcome": "finished",
        "parameters": budget.parameters(learner.model),
        "state_bytes": {str(at): budget.state_bytes(make, at) for at in lengths},
        "flops": budget.flops(make, length),
        "speed": timed,
        "validation": learner.scores["validation"]["all"],
        "test": test["all"],
        "slices": [
            {"name": s.name, "values": s.values, "reason": learner.not_run.get(s.name, ""), **test[s.name]}
            for s in data.segments("test")
        ],
    }
