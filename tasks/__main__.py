"""python -m tasks list | show recall"""

from __future__ import annotations

import argparse
import ast
import difflib
import inspect
import itertools
import re
import shutil
import signal
import sys
import textwrap
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch takes seconds, for which a list need not wait
    from torch import Tensor

    from tasks.base import Segment, Task

CITATION = re.compile(r"\s*\([^()]*?\d{4}(?=[,;])[^()]*\)")  # (authors and year, link, where in the paper)
COLUMNS = 24  # tokens of an example, per line
ENDS = 4  # of a long example, how many lines from either end
HEAD, TAIL = 900, 300  # of a long text, how many characters
PIXELS = 40  # of an image, per line
RAMP = " .:-=+*#%@"  # from black to white


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tasks", description="Look at the tasks.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("list", help="every task: name, lengths, direction, metric, and what it is")
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
    """Of every task its facts in columns, and below them, indented, what it is."""
    rows = []
    with _hydra():
        for name, facts in every().items():
            lengths = " to ".join(f"{length:,}" for length in sorted({facts["length"], facts["max_length"]}))
            direction = "causal" if facts["causal"] else "both ways"
            rows.append((name, lengths, direction, facts["metric"], description(name, facts["data"]["_target_"])))
    head = ("task", "lengths", "direction", "metric")
    widths = [max(map(len, column)) for column in zip(head, *(row[:-1] for row in rows), strict=True)]
    print("  ".join(map(str.ljust, head, widths)).rstrip())
    for *row, what in rows:
        print("  ".join(map(str.ljust, row, widths)).rstrip())
        print(textwrap.fill(what, shutil.get_terminal_size().columns, initial_indent="    ", subsequent_indent="    "))
    return 0


def show(name: str, overrides: list[str]) -> int:
    """What the paper says, what the yaml says, and what the data are."""
    from hydra.utils import get_class

    from tasks.base import SPLITS

    facts = composed(name, overrides)
    data = facts.pop("data")
    target = data.pop("_target_")
    print(f"{name}: {target}\n")
    with _hydra():
        print("\n\n".join(filter(None, (documentation(target), comment(name)))), end="\n\n")
    for key, value in facts.items():
        if key != "name":
            print(f"{key}: {value}")
    task: Task = get_class(target)(**data)
    print(f"loss_on: {task.loss_on}")
    for split in SPLITS:
        segments = task.segments(split)
        print(f"\n{split}")
        for segment in segments:
            print(f"  {segment.name}: {len(segment):,} of {' x '.join(map(str, segment.tokens.shape[1:]))} tokens")
    print("\nbaselines on test")
    for key, value in task.baselines().items():
        print(f"  {key}: {value:.4g}")
    print("\nof these examples, in an earlier split too")
    for key, value in task.overlap().items():
        print(f"  {key}: {value:.2%}")
    print("\nsha256")
    for split, value in task.hashes().items():
        print(f"  {split}: {value}")
    segment = task.segments("train")[0]
    print(f"\nan example of train, {segment.name}")
    print(example(segment, task.look))
    return 0


def example(segment: Segment, look: str | tuple[str, ...] = "numbers") -> str:
    """The segment's first example as its task looks: tokens over targets, with a dot where nothing is scored; as text;
    as an image; and the answers that are scored, or the label."""
    from tasks.base import IGNORE

    tokens, targets = segment.tokens[0], segment.targets[0]
    if segment.mask is not None and targets.dim() == 0 and tokens.dim() == 1:
        tokens = tokens[segment.mask[0]]
    rows, scored = tokens.view(-1, tokens.shape[-1]), targets[targets != IGNORE] if targets.dim() else targets
    if look == "image":
        shown = [picture(tokens)]
    elif look in ("text", "padded text"):
        shown = [text(row[row > 0] - 1 if look == "padded text" else row) for row in rows]
        if scored.dim() and len(scored) < len(targets) // 2:
            shown.append(f"answer: {text(scored)}")
    else:
        lines = [("tokens", words(row.tolist(), look)) for row in rows]
        if targets.dim():
            lines.append(("targets", words(targets.tolist(), look)))
        shown = [columns(lines)]
    return "\n\n".join([*shown, *([] if targets.dim() else [f"label: {targets.item()}"])])


def words(numbers: list[int], look: str | tuple[str, ...]) -> list[str]:
    """Tokens or targets, one word each; a dot for a target that is not scored."""
    return ["." if number < 0 else look[number] if isinstance(look, tuple) else str(number) for number in numbers]


def columns(lines: list[tuple[str, list[str]]]) -> str:
    """Lines that belong over each other, broken alike; of many pieces the first and the last."""
    width, pieces = max(len(word) for _, line in lines for word in line), []
    for start in range(0, len(lines[0][1]), COLUMNS):
        parts = [(name, line[start : start + COLUMNS]) for name, line in lines]
        pieces.append("\n".join(f"  {name:8}{' '.join(f'{word:>{width}}' for word in part)}" for name, part in parts))
    if len(pieces) > 2 * ENDS:
        pieces[ENDS:-ENDS] = [f"  ... {len(pieces) - 2 * ENDS} times {COLUMNS} more ..."]
    return "\n\n".join(pieces)


def text(row: Tensor) -> str:
    """Bytes as text; of a long one the beginning and the end."""
    whole = bytes(row.tolist()).decode(errors="replace")
    left = len(whole) - HEAD - TAIL
    return whole if left <= 0 else f"{whole[:HEAD]}\n... {left:,} more characters ...\n{whole[-TAIL:]}"


def picture(tokens: Tensor) -> str:
    """A square image in characters, two for a pixel; a large one by the brightest pixels of its parts."""
    import torch.nn.functional as F

    side = round(len(tokens) ** 0.5)
    image = tokens.view(1, side, side).float()
    image = F.max_pool2d(image, -(-side // PIXELS)).squeeze(0)
    shades = (image / image.max() * (len(RAMP) - 1)).round().int()
    return "\n".join("".join(2 * RAMP[shade] for shade in row).rstrip() for row in shades.tolist())


def documentation(target: str) -> str:
    """The docstrings of a class's module and of the class."""
    from hydra.utils import get_class

    task = get_class(target)
    return "\n\n".join(filter(None, (inspect.getdoc(sys.modules[task.__module__]), inspect.getdoc(task))))


def description(name: str, target: str) -> str:
    """The first sentence of the documentation of the target's module, which is read and not imported, without
    citations; and the comment that the task's yaml begins with: what it changes of another."""
    spec = find_spec(target.rpartition(".")[0])
    source = Path(spec.origin).read_text() if spec and spec.origin else ""
    text = " ".join((ast.get_docstring(ast.parse(source)) or "").split("\n\n")[0].split())
    first = re.split(r"(?<=\w[.?])\s", CITATION.sub("", text))[0]
    return f"{first} {comment(name)}".strip()


def comment(name: str) -> str:
    """What a task's yaml begins with, if that is a comment."""
    from importlib.resources import files

    from hydra.core.global_hydra import GlobalHydra

    for source in GlobalHydra.instance().config_loader().get_sources():
        if source.is_config(f"task/{name}"):
            root = Path(source.path) if source.scheme() == "file" else files(source.path.replace("/", "."))
            lines = root.joinpath("task", f"{name}.yaml").read_text().splitlines()
            return " ".join(line.lstrip("# ") for line in itertools.takewhile(lambda line: line[:1] == "#", lines))
    return ""


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

    try:
        with _hydra():
            config = compose(overrides=[f"+task={name}", "+seed=0", *(overrides or [])])
        found = OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        if name in (known := names()):
            raise ValueError(str(error).splitlines()[0]) from error
        close = difflib.get_close_matches(name, known, 1)
        hint = f", did you mean {close[0]}?" if close else ";"
        raise ValueError(f"unknown task '{name}'{hint} there are: {', '.join(known)}") from error
    return found["task"]


def every() -> dict[str, dict]:
    """What `composed` says of every task. All at once, each under its own name, take a quarter of the time."""
    from hydra import compose
    from omegaconf import OmegaConf

    config = compose(overrides=[f"+task@{name}={name}" for name in names()])
    found = {}
    for name in names():
        alone = OmegaConf.create({"task": OmegaConf.to_container(config[name]), "seed": 0})
        found[name] = OmegaConf.to_container(alone, resolve=True)["task"]
    return found


def _hydra():
    """Hydra as it is, or, outside of a Hydra application, with this project's conf."""
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    if GlobalHydra.instance().is_initialized():
        return nullcontext()
    return initialize_config_module("conf", version_base="1.3")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `... | head` ends it without a word
    sys.exit(main())
