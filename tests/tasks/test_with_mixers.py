"""Every task with every mixer whose direction fits: one real batch, forward and backward, as train.py builds them."""

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from test_conf import NAMES, tiny_overrides

from mixers import registry
from models.backbone import LooksAhead

SMALL = ["model.d_model=32", "model.backbone.n_layers=1", "optimizer.lr=0.001", "seed=3", "label=test"]
CUT = 64  # tokens: what a mixer must know of a task is not in the rest
# one of each direction: looks back, comes in both, looks both ways only
EACH = {"gated_delta_net": [True], "softmax": [True, False], "fnet": [False]}


def configuration(name, local):
    with initialize_config_module("conf", version_base="1.3"):
        return compose("train", [f"task={name}", *tiny_overrides(name, local(name)), *SMALL])


def first_batch(cfg):
    return instantiate(cfg.task.data).segments("train")[0].batch(slice(2))


def step(cfg, mixer, batch):
    """The loss, and the gradients, of one batch."""
    cfg.mixer = OmegaConf.create(registry._composed()[mixer])
    learner = instantiate(cfg.learner, model=instantiate(cfg.model))
    loss = learner.loss(batch)
    loss.backward()
    grads = [p.grad for p in learner.model.backbone.parameters() if p.grad is not None]
    assert loss.isfinite() and grads and all(grad.isfinite().all() for grad in grads), mixer
    assert any(grad.any() for grad in grads) and learner.model.embed.weight.grad.any(), mixer


def fits(cfg, mixer):
    return not cfg.task.causal or True in registry.directions(mixer)


@pytest.mark.parametrize("name", NAMES)
def test_one_mixer_of_each_direction(name, local):
    cfg = configuration(name, local)
    batch = first_batch(cfg)
    assert {mixer: registry.directions(mixer) for mixer in EACH} == EACH
    for mixer in EACH:
        if fits(cfg, mixer):
            step(cfg, mixer, batch)
        else:
            with pytest.raises(InstantiationException) as error:
                step(cfg, mixer, batch)
            assert isinstance(error.value.__cause__, LooksAhead)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_mixer(name, local):
    cfg = configuration(name, local)
    tokens, targets, mask = first_batch(cfg)
    length = min(CUT, tokens.shape[-1])
    if targets.dim() == 2:  # the end, where every task has a target
        targets = targets[:, -length:]
    batch = tokens[..., -length:].contiguous(), targets, None if mask is None else mask[..., :length]
    cfg.task.length = length
    for mixer in registry.names():
        if fits(cfg, mixer):
            step(cfg, mixer, batch)
