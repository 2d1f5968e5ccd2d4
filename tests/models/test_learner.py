"""Loss at scored positions, optimizer groups, the schedule as it runs, divergence, exact resume."""

import functools
import math

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mixers.base import Mixer
from models.backbone import Backbone
from models.learner import IGNORE, Diverged, Learner, groups, warmup_cosine
from models.mlp import MLP
from models.model import Model

pytestmark = pytest.mark.filterwarnings("ignore:.*val_dataloader.*")


class Decay(Mixer):
    """A leaky sum, with a parameter of each kind, that redraws a buffer."""

    dynamics, tables = ("rate",), ("table",)

    def __init__(self, d_model):
        super().__init__()
        self.rate, self.table = nn.Parameter(torch.zeros(d_model)), nn.Parameter(torch.zeros(d_model))
        self.map = nn.Linear(d_model, d_model)
        self.register_buffer("noise", torch.zeros(1))

    def forward(self, x, state=None, mask=None):
        h = torch.zeros_like(x[:, 0]) if state is None else state
        out = []
        for z in self.map(x).unbind(1):
            h = h * self.rate.sigmoid() + z + self.table
            out.append(h)
        return torch.stack(out, 1), h

    def resample(self, generator):
        self.noise = torch.randn(1, generator=generator)


class Batches:
    """An endless stream with a place to go on from."""

    def __init__(self, n=4):
        self.n, self.i = n, 0

    def __len__(self):
        return 10**6

    def __iter__(self):
        while True:
            g = torch.Generator().manual_seed(self.i)
            self.i += 1
            tokens = torch.randint(7, (self.n, 6), generator=g)
            yield tokens, torch.where(tokens > 2, tokens, IGNORE), None

    def state_dict(self):
        return {"i": self.i}

    def load_state_dict(self, saved):
        self.i = saved["i"]


def learner(lr=0.1, metric="accuracy", dropout=0.1, **changes):
    factory = functools.partial(
        Backbone,
        n_layers=1,
        pattern=[Decay],
        causal=True,
        mlp=functools.partial(MLP, expand=2.0),
        dropout=dropout,
        piece=None,
        checkpoint=False,
    )
    net = Model(d_model=8, n_inputs=7, n_outputs=7, pool="none", backbone=factory, local_conv=0, seed=0, label="a")
    values = {"warmup": 0.2, "dynamics_lr": 0.001, "tables_lr": 10.0, "resample_every": 3, "log_every": 1}
    values |= {"piece": None, "stream": 4096, "seed": 0}
    optimizer = functools.partial(torch.optim.AdamW, lr=lr, weight_decay=0.1)
    return Learner(net, optimizer=optimizer, metric=metric, title="", **(values | changes))


def trainer(tmp_path, steps, **more):
    return L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **more,
    )


def test_every_parameter_is_in_exactly_one_group():
    net = learner().model
    made = {g["name"]: g for g in groups(net)}
    members = [p for g in made.values() for p in g["params"]]
    assert len(members) == len(set(members)) == len(list(net.parameters()))
    names = {p: n for n, p in net.named_parameters()}
    decay = {names[p] for p in made["decay"]["params"]}
    assert decay == {n for n in names.values() if n.split(".")[-2] in ("map", "up", "down", "head") and "bias" not in n}
    assert {names[p] for p in made["dynamics"]["params"]} == {"backbone.blocks.0.mixer.rate"}
    assert {names[p] for p in made["tables"]["params"]} == {"backbone.blocks.0.mixer.table"}
    assert all(g.get("weight_decay") == 0.0 for name, g in made.items() if name != "decay")


def test_loss_is_the_mean_over_scored_targets():
    net = learner(dropout=0.0)
    tokens = torch.randint(7, (3, 6))
    targets = torch.where(tokens > 3, tokens, IGNORE)
    full = net.model(tokens)[0]
    torch.testing.assert_close(
        net.loss((tokens, targets, None)), F.cross_entropy(full.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
    )


@pytest.mark.parametrize("piece", [1, 4, 100])
def test_loss_in_pieces_is_the_same_loss(piece):
    tokens = torch.randint(7, (3, 6), generator=torch.Generator().manual_seed(0))
    batch = tokens, torch.where(tokens > 3, tokens, IGNORE), None

    def computed(net):
        loss = net.double().loss(batch)
        net._sums = {}
        net.validation_step(batch, 0)
        return loss, torch.autograd.grad(loss, list(net.parameters())), net._sums[0]

    ours, theirs = computed(learner(dropout=0.0, piece=piece)), computed(learner(dropout=0.0))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)  # entropies are float32


def test_a_piece_of_nothing_is_refused():
    with pytest.raises(ValueError, match="learner.piece is 0: choose at least 1"):
        learner(piece=0)


def test_the_logged_rate_is_the_schedule(tmp_path):
    net, steps = learner(), 10
    trainer(tmp_path, steps).fit(net, Batches())
    rates = {row["step"]: row["lr"] for row in net.curve}
    assert sorted(rates) == list(range(1, steps + 1))
    for step, rate in rates.items():
        assert rate == pytest.approx(0.1 * warmup_cosine(step, steps, 0.2))
    assert warmup_cosine(0, 10, 0.2) == 0.5 and warmup_cosine(10, 10, 0.2) == pytest.approx(0)


def test_kinds_of_parameters_have_their_rates(tmp_path):
    net = learner()
    run = trainer(tmp_path, 2)
    run.fit(net, Batches())
    initial = {g["name"]: g["initial_lr"] for g in run.optimizers[0].param_groups}
    assert initial == {"decay": 0.1, "rest": 0.1, "dynamics": 0.001, "tables": 1.0}


def test_divergence_names_the_step_and_the_layer(tmp_path):
    net = learner()
    with torch.no_grad():
        net.model.backbone.blocks[0].mixer.map.bias[0] = math.nan
    with pytest.raises(Diverged, match="at step 0, first in backbone.blocks.0.mixer.map .its parameter bias"):
        trainer(tmp_path, 3).fit(net, Batches())


def test_scores_are_exact_whatever_the_batches(tmp_path):
    net = learner(metric="bits_per_byte")
    tokens = torch.randint(7, (7, 6))
    batches = torch.utils.data.DataLoader(
        tokens, batch_size=3, collate_fn=lambda rows: (torch.stack(rows),) * 2 + (None,)
    )
    net.names["test"] = ["a"]
    trainer(tmp_path, 1).test(net, batches, verbose=False)
    net.eval()
    nats = F.cross_entropy(net.model(tokens)[0].flatten(0, 1), tokens.flatten())
    assert net.scores["test"]["a"]["score"] == pytest.approx(nats.item() / math.log(2), rel=1e-6)
    assert net.scores["test"]["a"]["n"] == 42


def test_a_segment_that_is_too_long_is_not_run_and_says_why(tmp_path, monkeypatch):
    def forward(self, x, state=None, mask=None):
        if x.shape[1] > 6:
            raise ValueError(f"length {x.shape[1]} is above max_length=6")
        return x, None

    monkeypatch.setattr(Decay, "forward", forward)
    net = learner()
    net.names["test"] = ["short", "long"]
    batches = [[(torch.ones(2, n, dtype=torch.int64),) * 2 + (None,)] * 2 for n in (6, 8)]
    loaders = [torch.utils.data.DataLoader(part, batch_size=None) for part in batches]
    trainer(tmp_path, 1).test(net, loaders, verbose=False)
    assert net.not_run == {"long": "not run: length 8 is above max_length=6"}
    assert net.scores["test"]["short"]["n"] == 24
    assert math.isnan(net.scores["test"]["long"]["score"]) and math.isnan(net.scores["test"]["all"]["score"])


def test_resume_goes_on_to_the_same_numbers(tmp_path):
    """Interrupted after step 4 of 9 and gone on with: parameters, curve and redrawn features are those of one run."""
    torch.manual_seed(5)
    straight = learner()
    trainer(tmp_path, 9).fit(straight, Batches())

    class Stop(L.Callback):
        def on_train_batch_end(self, trainer, module, *args):
            if trainer.global_step == 4:
                trainer.save_checkpoint(tmp_path / "last.ckpt")
                trainer.should_stop = True

    torch.manual_seed(5)
    trainer(tmp_path, 9, callbacks=[Stop()], min_steps=1).fit(learner(), Batches())
    torch.manual_seed(999)
    resumed = learner()
    trainer(tmp_path, 9).fit(resumed, Batches(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    for (name, a), b in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    drop = [{k: v for k, v in row.items() if k != "seconds"} for row in straight.curve]
    assert drop == [{k: v for k, v in row.items() if k != "seconds"} for row in resumed.curve]


def test_streaming_in_parts_changes_no_score():
    tokens = torch.randint(7, (3, 50), generator=torch.Generator().manual_seed(0))
    batch = tokens, torch.where(tokens > 4, tokens, IGNORE), None
    net, widths, sums = learner(dropout=0.0).eval(), [], []
    net.model.embed.register_forward_pre_hook(lambda _, args: widths.append(args[0].shape[1]))
    for net.stream in (4096, 7):
        net._sums = {}
        with torch.no_grad():
            net.validation_step(batch, 0)
        sums.append(net._sums[0])
    assert widths == [50, *[7] * 7, 1] and sums[0][2] == (tokens > 4).sum()
    torch.testing.assert_close(*sums, rtol=1e-5, atol=0)
    net.model.pool = "mean"
    list(net.streamed(tokens, tokens[:, 0], None))
    assert widths[-1] == 50
