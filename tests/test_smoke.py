"""Every mixer trains, in the one model: on recall if it looks back, on ListOps if it looks both ways."""

import functools
import itertools

import pytest
import torch
import torch.nn.functional as F

from mixers import registry
from models.backbone import Backbone
from models.learner import groups
from models.mlp import MLP
from models.model import Model
from tasks.base import IGNORE
from tasks.listops import ListOps
from tasks.recall import Recall

STEPS, FEW, LENGTH = 60, 10, 24
VARIANTS = [(name, causal) for name in registry.names() for causal in registry.directions(name)]


@functools.cache
def batches(causal):
    seeds = {"seed": 0, "order_seed": 0, "batch_size": 16}
    if causal:
        sizes = {split: [{"length": LENGTH, "pairs": 3, "n": 320}] for split in ("train", "validation", "test")}
        task = Recall(vocabulary=16, key_length=1, rewritten=0.0, **sizes, **seeds)
    else:
        task = ListOps(min_length=4, max_length=LENGTH, balanced=False, train=320, validation=16, test=16, **seeds)
    return list(itertools.islice(itertools.cycle(task.train_dataloader()), STEPS))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "causal"), VARIANTS)
def test_a_mixer_trains(name, causal):
    torch.manual_seed(0)
    factory = registry.factory(name, causal=causal, length=LENGTH)
    backbone = functools.partial(
        Backbone,
        n_layers=2,
        pattern=[factory],
        causal=causal,
        mlp=functools.partial(MLP, expand=2.0),
        dropout=0.0,
        piece=None,
        checkpoint=False,
    )
    shape = {"n_inputs": 16, "n_outputs": 16 if causal else 10, "pool": "none" if causal else "mean"}
    net = Model(d_model=32, backbone=backbone, local_conv=0, seed=0, label=name, **shape)
    optimizer, losses = torch.optim.AdamW(groups(net), lr=3e-3, weight_decay=0.1), []
    for tokens, targets, mask in batches(causal):
        at = targets != IGNORE
        logits, _ = net(tokens, mask=mask, at=at) if causal else net(tokens, mask=mask)
        loss = F.cross_entropy(logits, targets[at])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    first, last = (sum(part) / FEW for part in (losses[:FEW], losses[-FEW:]))
    assert last < 0.9 * first, f"the loss went from {first:.3f} to {last:.3f}"
