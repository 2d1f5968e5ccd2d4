"""What a run shows, beside what tests/test_train.py sees of whole ones."""

from itertools import repeat

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from compare.run import StepBar


class Line(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.map = torch.nn.Linear(1, 1)

    def training_step(self, batch, index):
        return self.map(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters())


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        return repeat(torch.ones(1))


class Watch(Callback):
    def __init__(self):
        self.seen = []

    def on_train_start(self, trainer, *_):
        self.bar = next(c for c in trainer.callbacks if isinstance(c, StepBar))

    def on_train_batch_start(self, *_):
        self.seen.append((self.bar.train_progress_bar.completed, self.bar.train_progress_bar.total))


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_the_bar_of_a_resumed_run_counts_all_steps(tmp_path):
    def fit(steps, checkpoint=None):
        watch = Watch()
        trainer = L.Trainer(max_steps=steps, max_epochs=-1, callbacks=[StepBar(), watch], logger=False,
                            accelerator="cpu", enable_checkpointing=False, enable_model_summary=False)  # fmt: skip
        trainer.fit(Line(), torch.utils.data.DataLoader(Endless()), ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return watch.seen

    assert fit(2) == [(0, 2), (1, 2)]
    assert fit(5, tmp_path / "last.ckpt") == [(2, 5), (3, 5), (4, 5)]
