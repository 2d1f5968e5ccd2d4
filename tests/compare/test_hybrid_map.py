"""experiment=hybrid_map on a task that one place in depth alone can solve: it is the one that the map puts first."""

import csv
import os
import subprocess
import sys

from compare import results
from compare.comparison import compare
from compare.figures import draw

MIXER = """
import torch
from torch.nn.functional import pad
from mixers.base import Mixer


class Before(Mixer):
    # hands on the token before, but in one layer only
    def __init__(self, d_model, *, works, layer, n_layers):
        super().__init__()
        self.works = works == layer
        self.scale = torch.nn.Parameter(torch.ones(d_model))

    def forward(self, x, state=None, mask=None):
        last = torch.zeros_like(x[:, :1]) if state is None else state
        y = torch.cat([last, x], 1)[:, :-1] * self.scale
        return (y if self.works else 0 * y), x[:, -1:]
"""
TASK = """
import torch
from tasks.base import Segment, Task


class Before(Task):
    # the target is the token before
    def generate(self, split):
        generator = torch.Generator().manual_seed(len(split))
        tokens = torch.randint(8, ({"train": 512}.get(split, 64), 8), generator=generator)
        targets = torch.cat([torch.full((len(tokens), 1), -100), tokens[:, :-1]], 1)
        return [Segment("all", tokens, targets, values={"length": 8})]

    def baselines(self):
        return {"chance": 1 / 8}
"""
FACTS = "length: 8\nmax_length: 8\nn_inputs: 8\nn_outputs: 8\ncausal: true\npool: none\nmetric: accuracy\n"
DATA = "data: {_target_: theirs.task.Before, seed: 0, order_seed: '${seed}', batch_size: 32}\n"


def test_the_one_place_that_works_is_found(tmp_path):
    conf = tmp_path / "theirs" / "conf"
    for folder in ("mixer", "task"):
        (conf / folder).mkdir(parents=True)
    for package in (conf.parent, conf):
        (package / "__init__.py").write_text("")
    (conf.parent / "mixer.py").write_text(MIXER)
    (conf.parent / "task.py").write_text(TASK)
    (conf / "mixer" / "before.yaml").write_text("_target_: theirs.mixer.Before\n_partial_: true\nworks: 2\n")
    (conf / "task" / "before.yaml").write_text(f"name: before\n{FACTS}{DATA}")
    words = [
        *("experiment=hybrid_map", "mixer@mixers.a=before", "mixer@mixers.b=identity", "task=before", "logger=none"),
        *("hydra.searchpath=[pkg://theirs.conf]", "model.d_model=16", "trainer.max_steps=120", "probe=false"),
        *("trainer.val_check_interval=60", "optimizer.lr=0.01", f"runs={tmp_path}/runs"),
    ]
    done = subprocess.run(
        [sys.executable, "train.py", *words],
        cwd=results.ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (table,) = compare(results.read_all(tmp_path / "runs")).tables
    (map_,) = [figure for figure in draw(table) if figure.title == "accuracy by place in depth"]
    found = list(csv.DictReader(map_.csv.splitlines()))
    assert [row["layers"] for row in found][0] == "b b a b" and len(found) == 4
    assert float(found[0]["mean"]) > 0.95 and all(float(row["mean"]) < 0.3 for row in found[1:])
    (page,) = (tmp_path / "runs").rglob("report.html")
    assert "Accuracy by place in depth" in page.read_text()
