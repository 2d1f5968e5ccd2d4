"""Every task's yaml composes, and tells a model the truth about the data."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from tasks.base import IGNORE, SPLITS, Task

NAMES = sorted(p.stem for p in (Path(__file__).parents[2] / "conf" / "task").glob("*.yaml"))


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
