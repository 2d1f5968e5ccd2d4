"""Every experiment composes with every task and mixer that it sweeps over, and its facts are those of its data."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import OmegaConf

from compare.overrides import resolvers

CONF = Path(__file__).parent.parent / "conf"
NAMES = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
MIXERS = {path.stem for path in (CONF / "mixer").glob("*.yaml")}


@pytest.fixture
def hydra():
    resolvers()
    with initialize_config_module("conf", version_base="1.3"):
        yield GlobalHydra.instance()


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_says_the_truth_about_its_data(name, hydra):
    first = compose("train", [f"experiment={name}"], return_hydra_config=True)
    swept = {key: first.hydra.sweeper.params[key] for key in first.hydra.sweeper.params or ()}
    assert set(str(swept.get("mixer", "softmax")).split(",")) <= MIXERS
    for key, values in swept.items():  # that each key and value exists is seen by composing with it
        override = OverridesParser.create().parse_override(f"{key}={values}")
        for value in override.sweep_string_iterator() if override.is_sweep_override() else [values]:
            compose("train", [f"experiment={name}", f"{key}={value}", "label=test"])
    assert (first.hydra.mode is not None) == bool(swept)
    for task in swept.get("task", first.task.name).split(","):
        overrides = [f"experiment={name}", f"task={task}"] if "task" in swept else [f"experiment={name}"]
        cfg = compose("train", [*overrides, "label=test"])
        facts = OmegaConf.to_container(cfg.task, resolve=True)
        assert facts["name"] == task
        data = instantiate(cfg.task.data)  # nothing is generated
        assert data.batch_size == facts["data"]["batch_size"] and cfg.trainer.max_steps > 0
        for split in ("train", "validation", "test"):
            sizes = facts["data"][split]
            assert sizes and all(size["n"] > 0 for size in (sizes if isinstance(sizes, list) else [{"n": sizes}]))
        longest = {
            split: max((size.get("length", 0) for size in sizes), default=0)
            for split in ("train", "test")
            if isinstance(sizes := facts["data"][split], list)
        }
        if longest.get("train"):
            assert longest["train"] == facts["length"] and max(longest.values()) == facts["max_length"]
        if "length" in facts["data"]:
            assert facts["data"]["length"] == facts["length"]


def test_the_arenas_sizes_reach_its_tasks(hydra):
    cfg = compose("train", ["experiment=lra_full", "task=listops", "label=test"])
    assert (cfg.task.data.min_length, cfg.task.data.max_length, cfg.task.data.train) == (500, 2000, 96000)
    assert (cfg.trainer.max_steps, cfg.task.data.batch_size) == (5000, 32)
    cfg = compose("train", ["experiment=lra_full", "task=pathx", "label=test"])
    assert (cfg.task.data.size, cfg.task.length, cfg.task.data.batch_size) == (128, 16384, 16)


def test_mads_sizes_are_those_of_its_repository(hydra):
    cfg = compose("train", ["experiment=mad_full", "task=selective_copying", "label=test"])
    assert cfg.task.data.train == [{"length": 256, "copied": 16, "n": 12800}] and cfg.trainer.max_steps == 20000
    cfg = compose("train", ["experiment=mad_full", "task=memorization", "label=test"])
    assert cfg.task.data.train == [{"length": 32, "n": 256}] and cfg.trainer.max_steps == 400
