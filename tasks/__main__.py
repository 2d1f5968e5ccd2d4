"""python -m tasks list | show recall"""

import argparse
import difflib
import inspect
import re
import sys
from contextlib import nullcontext

import torch

from tasks.base import IGNORE, SPLITS, Segment, Task

CITATION = re.compile(r"\s*\([^()]*?\d{4}(?=[,;])[^()]*\)")  # (authors and year, link, where in the paper)
HEAD = ("task", "lengths", "direction", "metric", "what")
COLUMNS = 24  # of an example, per line


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tasks", description="Look at the tasks.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("list", help="every task: name, lengths, direction, metric")
    command.set_defaults(run=lambda options: list_tasks())
    command = commands.add_parser("show", help="a task's definition, sizes, baselines, hashes and an example")
    command.add_argument("name")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="as for train.py: task.data.seed=1")
    command.set_defaults(run=lambda options: show(options.name, options.overrides))
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def list_tasks() -> int:
    """One row per task."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for cell in HEAD:
        table.add_column(cell, no_wrap=cell != HEAD[-1])
    for name in names():
        facts = composed(name)
        lengths = sorted({facts["length"], facts["max_length"]})
        direction = "causal" if facts["causal"] else "both ways"
        table.add_row(name, " to ".join(map(str, lengths)), direction, facts["metric"], description(facts))
    Console(markup=False).print(table)
    return 0


def show(name: str, overrides: list[str]) -> int:
    """What the paper says, what the yaml says, and what the data are."""
    from hydra.utils import get_class

    facts = composed(name, overrides)
    data = facts.pop("data")
    target = data.pop("_target_")
    print(f"{name}: {target}\n")
    print(documentation(target), end="\n\n")
    for key, value in facts.items():
        if key != "name":
            print(f"{key}: {value}")
    task: Task = get_class(target)(**data)
    print(f"loss_on: {task.loss_on}")
    for split in SPLITS:
        print(f"\n{split}")
        for segment in task.segments(split):
            print(f"  {segment.name}: {len(segment):,} of {' x '.join(map(str, segment.tokens.shape[1:]))} tokens")
    print("\nbaselines on test")
    for key, value in task.baselines().items():
        print(f"  {key}: {value:.4g}")
    print("\nof these examples, in training too")
    for key, value in task.overlap().items():
        print(f"  {key}: {value:.2%}")
    print("\nsha256")
    for split, value in task.hashes().items():
        print(f"  {split}: {value}")
    segment = task.segments("train")[0]
    print(f"\nan example of train, {segment.name}")
    print(example(segment, of_bytes=facts["metric"] == "bits_per_byte" and facts["n_inputs"] == 256))
    return 0


def example(segment: Segment, of_bytes: bool = False) -> str:
    """The segment's first example: tokens over targets, a dot where nothing is scored; or tokens, and a label."""
    tokens, targets = segment.tokens[0], segment.targets[0]
    if segment.mask is not None and segment.mask.dtype == torch.bool and tokens.dim() == 1 and not targets.dim():
        tokens = tokens[segment.mask[0]]
    if of_bytes:
        return bytes(tokens.flatten().tolist()).decode(errors="replace")
    lines = [("tokens", row) for row in tokens.view(-1, tokens.shape[-1]).tolist()]
    if targets.dim():
        lines.append(("targets", ["." if target == IGNORE else target for target in targets.tolist()]))
    width = max(len(str(word)) for _, row in lines for word in row)
    blocks = []
    for start in range(0, tokens.shape[-1], COLUMNS):
        parts = [(label, row[start : start + COLUMNS]) for label, row in lines]
        blocks.append("\n".join(f"  {label:8}{' '.join(f'{word:>{width}}' for word in row)}" for label, row in parts))
    return "\n\n".join(blocks + ([] if targets.dim() else [f"  label   {targets.item()}"]))


def documentation(target: str) -> str:
    """The docstrings of a class's module and of the class."""
    from hydra.utils import get_class

    task = get_class(target)
    return "\n\n".join(filter(None, (inspect.getdoc(sys.modules[task.__module__]), inspect.getdoc(task))))


def description(facts: dict) -> str:
    """The first sentence of the task's documentation, without citations."""
    text = " ".join(documentation(facts["data"]["_target_"]).split("\n\n")[0].split())
    return re.split(r"(?<=\w)\.(?=\s|$)", CITATION.sub("", text))[0]


def names() -> list[str]:
    """Every task on Hydra's search path, sorted."""
    from hydra.core.global_hydra import GlobalHydra

    with _hydra():
        return sorted(GlobalHydra.instance().config_loader().get_group_options("task"))


def composed(name: str, overrides: list[str] | None = None) -> dict:
    """The yaml's values, filled in. Raises ValueError for names and overrides that are unknown."""
    from hydra import compose
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if name not in (known := names()):
        close = difflib.get_close_matches(name, known, 1)
        hint = f", did you mean {close[0]}?" if close else ";"
        raise ValueError(f"unknown task '{name}'{hint} there are: {', '.join(known)}")
    try:
        with _hydra():
            config = compose(overrides=[f"+task={name}", "+seed=0", *(overrides or [])])
        found = OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(str(error).splitlines()[0]) from error
    return found["task"]


def _hydra():
    """Hydra as it is, or, outside of a Hydra application, with this project's conf."""
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    if GlobalHydra.instance().is_initialized():
        return nullcontext()
    return initialize_config_module("conf", version_base="1.3")


if __name__ == "__main__":
    sys.exit(main())
