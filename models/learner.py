"""The only LightningModule: loss, metrics, optimizer groups, schedule, and what a comparison needs to know of a run."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mixers.base import Mixer
from models.model import Model

log = logging.getLogger(__name__)
IGNORE = -100  # targets that are not scored


class Diverged(RuntimeError):
    """The loss is not finite; the message names the step and the first layer whose output is not."""


class Learner(L.LightningModule):
    """Trains a Model on batches (tokens, targets, mask), with AdamW groups and warm-up + cosine per step.

    metric: "accuracy" or "bits_per_byte", of scored targets. warmup: fraction of all steps. dynamics_lr: the highest
    rate of the mixers' own dynamics (decays, step sizes); tables_lr: the rate of lookup tables, as a multiple.
    piece: how many scored positions get logits at a time, which are computed again in the backward pass; None, all.
    stream: a longer sequence is evaluated in parts of so many tokens, with the state carried.
    names: the segments' names per split, {"validation": [...], "test": [...]}, in the order of their loaders.
    config: what the model was made from, kept in its checkpoints.
    """

    def __init__(
        self,
        model: Model,
        *,
        optimizer: Callable[..., torch.optim.Optimizer],
        metric: str,
        warmup: float,
        dynamics_lr: float,
        tables_lr: float,
        resample_every: int,
        stream: int,
        log_every: int,
        piece: int | None,
        seed: int,
        title: str,
    ):
        super().__init__()
        if metric not in ("accuracy", "bits_per_byte"):
            raise ValueError(f"task.metric is '{metric}': it must be accuracy or bits_per_byte")
        if piece is not None and piece < 1:
            raise ValueError(f"learner.piece is {piece}: choose at least 1, or null for all positions at once")
        self.model, self.make_optimizer, self.metric = model, optimizer, metric
        self.warmup, self.dynamics_lr, self.tables_lr = warmup, dynamics_lr, tables_lr
        self.resample_every, self.log_every, self.title = resample_every, log_every, title
        self.piece, self.stream = piece, stream
        self.config: dict = {}
        self.generator = torch.Generator().manual_seed(seed)
        self.names: dict[str, list[str]] = {}
        self.curve: list[dict[str, float]] = []
        self.scores: dict[str, dict[str, dict[str, float]]] = {}
        self._rng: Tensor | None = None
        self._seconds_before, self._started = 0.0, time.monotonic()
        self._loss_sum, self._loss_steps = 0.0, 0
        self._sums: dict[int, Tensor] = {}
        self._not_run: dict[int, str] = {}

    # -- loss ---------------------------------------------------------------------------------------------------------

    def scored(self, tokens: Tensor, targets: Tensor, mask: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """What logits are made of, (n, D), and targets (n,) at the scored positions, and only there; piece by piece."""
        at = None if targets.dim() == 1 else targets != IGNORE
        x, targets = self.model.features(tokens, mask=mask, at=at)[0], targets if at is None else targets[at]
        piece = self.piece or max(1, len(targets))
        return list(zip(x.split(piece), targets.split(piece), strict=True))

    def streamed(self, tokens: Tensor, targets: Tensor, mask: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        """`scored`, of parts of a long sequence, in memory that does not grow with the length unless the state does.

        Of the whole where the model needs it: if it pools, looks both ways or sees packed documents.
        """
        if mask is not None or self.model.pool != "none" or not self.model.backbone.causal:
            yield from self.scored(tokens, targets, mask)
            return
        states = None
        for part, wanted in zip(tokens.split(self.stream, 1), targets.split(self.stream, 1), strict=True):
            at = wanted != IGNORE
            x, states = self.model.features(part, states, at=at)
            yield from zip(x.split(n := self.piece or max(1, len(x))), wanted[at].split(n), strict=True)

    def nats(self, x: Tensor, targets: Tensor) -> Tensor:
        """The sum of their cross-entropies."""
        return F.cross_entropy(self.model.head(x).float(), targets, reduction="sum")

    def loss(self, batch: tuple[Tensor, Tensor, Tensor | None]) -> Tensor:
        """Mean cross-entropy in nats over the scored targets of (tokens, targets, mask)."""
        parts = self.scored(*batch)
        nats = [self.nats(*part) if self.piece is None else self.again(*part) for part in parts]
        return torch.stack(nats).sum() / sum(len(targets) for _, targets in parts)

    def again(self, *part: Tensor) -> Tensor:
        """`nats`, whose logits are computed again in the backward pass rather than kept."""
        return checkpoint(self.nats, *part, use_reentrant=False)  # type: ignore[return-value]

    def training_step(self, batch, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        value = loss.item()
        if not math.isfinite(value):
            raise Diverged(
                f"the loss is {value} at step {self.global_step}, first in {culprit(self, batch)}: "
                "lower the learning rate"
            )
        self._loss_sum, self._loss_steps = self._loss_sum + value, self._loss_steps + 1
        return loss

    def on_train_start(self) -> None:
        self._started = time.monotonic()
        if self._rng is not None:
            torch.set_rng_state(self._rng)

    def on_train_batch_start(self, batch, batch_idx: int) -> None:
        # Between two steps, and here rather than at a batch's end: checkpoints are written at the end, before this hook
        # would run there, and a resumed run must not miss it.
        step = self.global_step
        if step and self.resample_every and step % self.resample_every == 0:
            for module in self.model.modules():
                if isinstance(module, Mixer):
                    module.resample(self.generator)
        if step % self.log_every == 0:
            self.record_loss()

    def on_train_end(self) -> None:
        self.record_loss()

    def record_loss(self) -> None:
        if self._loss_steps:
            self.record({"train/loss": self._loss_sum / self._loss_steps})
            self._loss_sum, self._loss_steps = 0.0, 0

    def record(self, values: dict[str, float]) -> None:
        """One row of the learning curve: step, seconds of training so far, the next learning rate, and `values`."""
        rate = self.optimizers().param_groups[0]["lr"]  # type: ignore[union-attr]
        row = {"step": self.global_step, "seconds": self.seconds, "lr": rate, **values}
        if self.curve and self.curve[-1]["step"] == row["step"]:
            self.curve[-1].update(row)
        else:
            self.curve.append(row)
        for logger in self.loggers:
            logger.log_metrics({"lr": rate, **values, "trainer/global_step": self.global_step}, step=self.global_step)

    @property
    def not_run(self) -> dict[str, str]:
        """Of the test segments that the model could not run, by name, the reason."""
        return {self.names["test"][i]: reason for i, reason in self._not_run.items()}

    @property
    def seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._started

    # -- evaluation: exact over all scored targets of a segment, whatever the batches ---------------------------------

    def on_validation_epoch_start(self) -> None:
        self._sums, self._not_run = {}, {}

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        for x, targets in self.streamed(*batch):
            logits = self.model.head(x)
            nats = F.cross_entropy(logits.float(), targets, reduction="sum").double()
            right = (logits.argmax(-1) == targets).sum().double()
            sums = torch.stack([nats, right, torch.tensor(len(targets), dtype=torch.float64, device=nats.device)])
            self._sums[dataloader_idx] = self._sums.get(dataloader_idx, torch.zeros_like(sums)) + sums

    def test_step(self, batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        if dataloader_idx in self._not_run:
            return
        try:
            self.validation_step(batch, batch_idx, dataloader_idx)
        except (ValueError, RuntimeError) as error:  # too long for the mixer, or for the machine
            if isinstance(error, RuntimeError) and "memory" not in str(error):
                raise
            self._not_run[dataloader_idx] = f"not run: {str(error).splitlines()[0]}"
            self._sums.pop(dataloader_idx, None)

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:
            return
        scores = self._scores("validation")
        self.log("validation/score", scores["all"]["score"], logger=False)
        self.record({f"validation/{key}": scores["all"][key] for key in ("score", "loss")})
        log.info(
            "%s  step %d/%d  loss %.3f  %s %.3f  %.0f s",
            *(self.title, self.global_step, self.trainer.max_steps),
            *(scores["all"]["loss"], self.metric, scores["all"]["score"], self.seconds),
        )

    def on_test_epoch_end(self) -> None:
        scores = self._scores("test")
        values = {f"test/{name}": s["score"] for name, s in scores.items() if math.isfinite(s["score"])}
        for logger in self.loggers:
            logger.log_metrics(values, step=self.global_step)

    def _scores(self, split: str) -> dict[str, dict[str, float]]:
        unknown = torch.full((3,), math.nan, dtype=torch.float64)  # and so is a mean that it belongs to
        parts = self._sums | {i: unknown for i in self._not_run}
        names = self.names.get(split) or [str(i) for i in range(len(parts))]
        every = torch.stack([sums.cpu() for sums in parts.values()]).sum(0)
        self.scores[split] = {names[i]: self._score(*parts[i].tolist()) for i in sorted(parts)}
        self.scores[split]["all"] = self._score(*every.tolist())
        return self.scores[split]

    def _score(self, nats: float, right: float, n: float) -> dict[str, float]:
        score = right / n if self.metric == "accuracy" else nats / n / math.log(2)
        return {"score": score, "loss": nats / n, "n": n}

    # -- optimisation -------------------------------------------------------------------------------------------------

    def configure_optimizers(self):
        optimizer = self.make_optimizer(groups(self.model))
        for group in optimizer.param_groups:
            if group["name"] == "dynamics":
                group["lr"] = min(group["lr"], self.dynamics_lr)
            elif group["name"] == "tables":
                group["lr"] *= self.tables_lr
        steps = self.trainer.max_steps
        if steps <= 0:
            raise ValueError(f"trainer.max_steps is {steps}: the schedule needs a number of steps")
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, steps, self.warmup))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # -- exact resume -------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["seqmix"] = {
            "rng": torch.get_rng_state(),
            "generator": self.generator.get_state(),
            "curve": self.curve,
            "seconds": self.seconds,
            "config": self.config,
            "loss": (self._loss_sum, self._loss_steps),
        }

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        saved = checkpoint["seqmix"]
        self._rng = saved["rng"]
        self.generator.set_state(saved["generator"])
        self.curve, self._seconds_before = saved["curve"], saved["seconds"]
        self._loss_sum, self._loss_steps = saved["loss"]


def read_checkpoint(path: str | Path) -> dict:
    """What a Learner's checkpoint holds: weights and values only, so that no file can run code. Raises ValueError where
    it is none.
    """
    if not Path(path).exists():
        raise ValueError(f"{path} does not exist: name a checkpoint file")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        _ = saved["state_dict"], saved["seqmix"]
    except Exception as error:  # whatever unpickling a file that is not ours may raise
        raise ValueError(f"{path} is not a whole checkpoint of seqmix: remove it, or name another") from error
    return saved


def groups(model: nn.Module) -> list[dict]:
    """Every parameter in exactly one group: Linear weights decay; biases, norms, embeddings and the rest do not; the
    mixers' `dynamics` and `tables` are groups of their own, without decay. Empty groups are left out."""
    owner = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name in getattr(module, "dynamics", ()):
                owner[parameter] = "dynamics"
            elif name in getattr(module, "tables", ()):
                owner[parameter] = "tables"
            elif isinstance(module, nn.Linear) and name == "weight":
                owner[parameter] = "decay"
            else:
                owner[parameter] = "rest"
    made = []
    for kind in ("decay", "rest", "dynamics", "tables"):
        members = [parameter for parameter, its in owner.items() if its == kind]
        if members:
            made.append({"name": kind, "params": members} | ({} if kind == "decay" else {"weight_decay": 0.0}))
    return made


def warmup_cosine(step: int, steps: int, warmup: float) -> float:
    """The factor on the learning rate at `step`: linear up over the first `warmup` of all, then cosine to zero."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def culprit(learner: Learner, batch) -> str:
    """The first layer, in the order of computation, whose output or parameter is not finite."""
    found: list[str] = []

    def watch(name: str) -> Callable:
        def hook(module: nn.Module, args, output) -> None:
            if not found and not all(torch.isfinite(t).all() for t in tensors(output)):
                bad = [n for n, p in module.named_parameters() if not torch.isfinite(p).all()]
                found.append(f"{name} (its parameter {bad[0]} is not finite)" if bad else name)

        return hook

    handles = [m.register_forward_hook(watch(n)) for n, m in learner.model.named_modules() if n]
    try:
        with torch.no_grad():
            learner.loss(batch)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else "the loss itself"


def tensors(value) -> Iterator[Tensor]:
    """The floating-point tensors in a nested tuple."""
    if isinstance(value, Tensor):
        if value.is_floating_point() or value.is_complex():
            yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)
