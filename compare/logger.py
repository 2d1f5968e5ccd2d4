"""Weights & Biases through Lightning: offline, quiet, laid out to be read side by side."""

import wandb
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment

QUIET = {"silent": True, "console": "off", "x_disable_stats": True}


class RunLogger(WandbLogger):
    """One W&B run per training run; every metric's axis is the step, and its best and last values are summarised."""

    def __init__(self, **keywords):
        super().__init__(settings=wandb.Settings(**QUIET), **keywords)
        self._wandb_init.pop("anonymous", None)  # Lightning always passes it; wandb warns that it has no effect
        self._defined = False

    @property
    @rank_zero_experiment
    def experiment(self):
        run = super().experiment
        if not self._defined:
            self._defined = True
            # an exact definition hides Lightning's own, which sets the axis: name it again
            for name, summary in {"validation/score": "min,max,last", "validation/loss": "min,last"}.items():
                run.define_metric(name, step_metric="trainer/global_step", summary=summary)
        return run
