"""Every task's yaml composes, tells a model the truth about the data, and goes with every mixer that fits."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from mixers import registry
from models.backbone import LooksAhead
from tasks.base import IGNORE, SPLITS, Task

NAMES = sorted(p.stem for p in (Path(__file__).parents[2] / "conf" / "task").glob("*.yaml"))
SMALL = ["model.d_model=32", "model.backbone.n_layers=1", "optimizer.lr=0.001", "seed=3", "label=test"]
CUT = 64  # tokens that every mixer sees; one of each direction sees them all
# one of each direction: looks back, comes in both, looks both ways only
EACH = {"gated_delta_net": [True], "softmax": [True, False], "fnet": [False]}


def composed(name, *overrides):
    with initialize_config_module("conf", version_base="1.3"):
        return compose("train", [f"task={name}", "seed=3", *overrides]).task


def tiny_overrides(name, local):
    """Four examples of each of the task's sizes, or twenty, as a user would override it."""
    overrides = ["task.data.batch_size=4"]
    for key, value in local.items():
        text = "null" if value is None else str(value).replace(" ", "").replace("'", "")
        overrides.append(f"task.data.{key}={text}")
    known = composed(name).data
    for split in SPLITS:
        sizes = known[split]
        if not isinstance(sizes, int):
            sizes = [{**size, "n": 4} for size in sizes]
            sizes = f"[{','.join('{' + ','.join(f'{k}:{v}' for k, v in size.items()) + '}' for size in sizes)}]"
            overrides.append(f"task.data.{split}={sizes}")
        else:
            overrides.append(f"task.data.{split}=20")
    return overrides


@pytest.mark.parametrize("name", NAMES)
def test_the_facts_are_those_of_the_data(name, local):
    facts = composed(name, *tiny_overrides(name, local(name)))
    task: Task = instantiate(facts.data)
    assert (facts.name, task.order_seed, task.metric) == (name, 3, facts.metric)
    longest = {split: max(s.tokens.shape[-1] for s in task.segments(split)) for split in SPLITS}
    assert longest["train"] == facts.length and max(longest.values()) == facts.max_length
    for split in SPLITS:
        for segment in task.segments(split):
            assert 0 <= segment.tokens.min() and int(segment.tokens.max()) < facts.n_inputs
            scored = segment.targets[segment.targets != IGNORE]
            assert len(scored) and 0 <= scored.min() and scored.max() < facts.n_outputs
            assert (segment.targets.dim() == 1) == (facts.pool != "none")
    assert all(0 <= share for share in task.baselines().values())


def configuration(name, local):
    overrides = tiny_overrides(name, local(name))
    with initialize_config_module("conf", version_base="1.3"):
        return compose("train", [f"task={name}", *overrides, *SMALL])


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
    cfg.task.length = cfg.task.max_length = length = min(CUT, tokens.shape[-1])
    part = slice(length) if targets.dim() == 1 else slice(-length, None)  # the end, where every task has a target
    batch = [None if tensor is None else tensor[..., part] for tensor in (tokens, targets, mask)]
    if targets.dim() == 1:
        batch[1] = targets
    for mixer in registry.names():
        if fits(cfg, mixer):
            step(cfg, mixer, batch)
