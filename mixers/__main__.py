"""python -m mixers list | show gla | check gla | check all | check my_pkg.MyMixer n_heads=4 chunk=8"""

import argparse
import ast
import functools
import inspect
import itertools
import math
import pkgutil
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

from torch import Tensor

from mixers.base import State

CITATION = re.compile(r"\(([^()]*?\d{4})(?=[,;)])([^()]*)\)")  # (authors and year, link, where in the paper)
HEAD = ("mixer", "family", "direction", "what", "paper", "state at 1k", "at 64k", "kFLOP/token", "engine")
WIDTH, SHORT, LONG = 64, 1024, 65536  # costs are those of one mixer of this d_model, at these lengths
MARKS = ("<!-- mixers -->", "<!-- /mixers -->")
LITERALS = {"true": True, "false": False, "null": None, "none": None}  # as yaml writes them


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mixers", description="Look at sequence mixers, and check them.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("list", help="every mixer: name, family, direction, paper")
    command.add_argument("--into", metavar="FILE", help="write the table into FILE, between its two mixers comments")
    command.set_defaults(run=lambda options: list_mixers(options.into))
    command = commands.add_parser("show", help="a mixer's equation, knobs, parameters and scale")
    command.add_argument("name")
    command.set_defaults(run=lambda options: show(options.name))
    command = commands.add_parser("check", help="run the conformance suite; exit 1 if a check fails")
    command.add_argument("name", help="a mixer, or all, or a class from anywhere: my_pkg.MyMixer")
    command.add_argument("knobs", nargs="*", metavar="key=value", help="other values than the yaml's")
    command.set_defaults(run=lambda options: check(options.name, dict(map(knob, options.knobs))))
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def list_mixers(file: str | None = None) -> int:
    """One row per mixer, for people or for the README."""
    from rich.console import Console
    from rich.table import Table

    if file is not None:
        path = Path(file)
        before, start, rest = path.read_text().partition(MARKS[0])
        _, end, after = rest.partition(MARKS[1])
        if not end:
            raise ValueError(f"{file} lacks the lines {MARKS[0]} and {MARKS[1]}: put them where the table belongs")
        path.write_text(f"{before}{start}\n\n{markdown()}\n{end}{after}")
        return 0
    console = Console(markup=False)
    for family, members in itertools.groupby(rows(), key=lambda row: row[0][1]):
        table = Table(box=None, header_style="bold", title=family, title_justify="left")
        for cell in HEAD[:1] + HEAD[2:]:
            table.add_column(cell, no_wrap=cell == HEAD[0])  # what one would type stays whole
        for row, _ in members:
            table.add_row(*row[:1], *row[2:])
        console.print(table, end="\n\n")
    return 0


def markdown() -> str:
    lines = [HEAD, ("---",) * len(HEAD)]
    for row, link in rows():
        lines.append((*row[:4], f"[{row[4]}]({link})" if link else row[4], *row[5:]))
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def rows() -> Iterator[tuple[tuple[str, ...], str]]:
    """(name, family, direction, what it is, paper, costs, engine) and the paper's link, sorted by family."""
    from mixers import registry

    ways = {(True, False): "either", (True,): "causal", (False,): "looks ahead"}
    found = []
    for name in registry.names():
        target = registry.target_of(registry.knobs(name))
        title, paper, link = citation(registry.about(name) or inspect.getdoc(sys.modules[target.__module__]) or "")
        family = target.__module__.rpartition(".")[0].rpartition(".")[2]
        found.append(((name, family, ways[tuple(registry.directions(name))], title, paper), link))
    for row, link in sorted(found, key=lambda row: row[0][1::-1]):
        yield (*row, *costs(row[0]), ", ".join(ops(registry.factory(row[0]))) or "none"), link


def show(name: str) -> int:
    """What the paper says, what the yaml says, and what is measured."""
    from mixers import registry
    from mixers.ops import engines

    knobs = registry.knobs(name)
    target = registry.target_of(knobs)
    print(f"{name}: {target.__module__}.{target.__qualname__}\n")
    for text in filter(None, (inspect.getdoc(sys.modules[target.__module__]), target.__doc__)):
        print(inspect.cleandoc(text), end="\n\n")
    for key, value in knobs.items():
        if key != "_target_":
            print(f"{key}: {value}")
    engines.ran.clear()
    parameters, std = measure(registry.factory(name))
    engine = engines.choice("cpu")
    served = ", ".join(f"{op} by {' and '.join(sorted(names))}" for op, names in sorted(engines.ran.items()))
    print(f"engine: {engine.name}, {engine.why}; {served or 'nothing here needs one'}")
    missing = engines.obstacle("fla")
    print(f"on CUDA: {f'torch, since {missing}' if missing else 'fla, where it has a kernel'}")
    print(f"parameters at d_model={WIDTH}: {parameters:,}")
    print(f"std of the output at initialisation, for an input of std 1: {std:.3g}")
    lives = half_lives(registry.factory(name))
    if lives.numel():
        marks = ((share, lives.quantile(share, interpolation="lower")) for share in (0.1, 0.5, 0.9))
        said = ", ".join(f"{100 * share:.0f}% up to {mark:.3g}" for share, mark in marks)
        print(f"half-lives of its decays at initialisation, in tokens: {said}")
    effects = memory(registry.factory(name, length=SHORT))
    if effects:
        said = ", ".join(f"{share:.2g} after {lag}" for lag, share in effects.items())
        print(f"what a change of one token does to outputs at initialisation, against what it does to its own: {said}")
    return 0


def half_lives(factory: Callable) -> Tensor:
    """Tokens after which half is forgotten: one number per token and decay that the mixer hands to an engine, for
    normal input; infinite where nothing is, empty where there is no decay.
    """
    import torch

    found: list[Tensor] = []
    with torch.random.fork_rng(devices=[]), torch.no_grad(), ExitStack() as patches:
        torch.manual_seed(0)
        mixer = factory(WIDTH)
        for module in {sys.modules[type(part).__module__] for part in mixer.modules()}:
            for name, decays in DECAYS.items():
                # the one in layers rescales sums of weights, which is no forgetting
                if hasattr(module, name) and (module.__name__, name) != ("mixers.layers", "linear_attention"):
                    listen(patches, module, name, lambda decays=decays, **arguments: found.extend(decays(**arguments)))
        mixer(torch.randn(4, 64, WIDTH))
    return torch.cat([math.log(2) / g.abs().flatten() for g in found]) if found else torch.empty(0)


def ops(factory: Callable) -> list[str]:
    """The files of mixers/ops whose functions the mixer calls, which is where its engines are."""
    import torch

    used: set[str] = set()
    with torch.no_grad(), ExitStack() as patches:
        mixer = factory(WIDTH)
        for module in [m for name, m in sys.modules.items() if re.match(r"mixers\.(?!ops|__)", name)]:
            for name, op in list(vars(module).items()):
                place = getattr(op, "__module__", None) or ""
                if inspect.isfunction(op) and place.startswith("mixers.ops.") and place not in NO_ENGINES:
                    listen(patches, module, name, lambda place=place, **_: used.add(place.rpartition(".")[2]))
        mixer(torch.zeros(1, 64, WIDTH))
    return sorted(used)


NO_ENGINES = {f"mixers.ops.{name}" for name in ("precision", "engines", "chunks", "decay", "work")}


def listen(patches: ExitStack, module: ModuleType, name: str, note: Callable) -> None:
    """note(**arguments) before each call of module.name, for as long as the patches last."""
    op = getattr(module, name)
    signature = inspect.signature(op)

    @functools.wraps(op)
    def call(*args, **kwargs):
        note(**signature.bind(*args, **kwargs).arguments)
        return op(*args, **kwargs)

    patches.enter_context(patch.object(module, name, call))


# the log-decays among the arguments of each engine
DECAYS: dict[str, Callable[..., Iterable[Tensor]]] = {
    **dict.fromkeys(
        ("linear_attention", "delta_rule", "gated_delta", "dplr", "log_linear"),
        lambda g=None, gv=None, **_: (z for z in (g, gv) if z is not None),
    ),
    "scan": lambda a, **_: [a.abs().log()],
    "diagonal": lambda a, **_: [a.real],
    "selective_scan": lambda dt, A, **_: [dt.unsqueeze(-1) * A],
    "attention": lambda bias=None, **_: [] if bias is None else [bias[..., :-1] - bias[..., 1:]],
}


def memory(factory: Callable) -> dict[int, float]:
    """{lag: root mean square change of the outputs around that lag, over the change at the token itself}; nothing for
    what looks ahead, or does not answer at all at first.
    """
    import torch

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        mixer = factory(WIDTH)
        if not mixer.causal:
            return {}
        x = torch.randn(4, SHORT, WIDTH)
        other = x.clone()
        other[:, 16] = torch.randn(4, WIDTH)
        moved = (mixer(x)[0] - mixer(other)[0]).square().mean((0, 2))[16:]
    if not moved[0]:
        return {}
    lags = (1, 3, 10, 30, 100, 300)
    return {lag: (moved[lag : lag + max(1, lag // 2)].mean() / moved[0]).sqrt().item() for lag in lags}


def check(name: str, overrides: dict[str, Any]) -> int:
    """Every check, on each direction of the mixer. 1 if any failed."""
    from mixers.testing import CHECKS

    failed = 0
    found = list(candidates(name, overrides))
    for i, (label, factory) in enumerate(found, 1):
        print(label if len(found) == 1 else f"{label} ({i} of {len(found)})", flush=True)
        for function in CHECKS:
            title = getattr(function, "__name__", repr(function))
            try:
                function(factory)
            except Exception as error:  # a mixer that raises has failed the check, whatever it raises
                failed += 1
                what = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
                print(f"  {title} FAILED: {what}", flush=True)
            else:
                print(f"  {title} ok", flush=True)
    print(f"{failed} failed" if failed else "all ok")
    return 1 if failed else 0


def candidates(name: str, overrides: dict[str, Any]) -> Iterator[tuple[str, Callable]]:
    """(label, factory) of what `check NAME` means. Raises ValueError where nothing can be built of it."""
    from mixers import registry
    from mixers.base import Mixer
    from mixers.testing import D, variants

    if "." in name:
        try:
            target = pkgutil.resolve_name(name)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"there is no {name}: {error}") from error
        if not (isinstance(target, type) and issubclass(target, Mixer)):
            raise ValueError(f"{name} is not a class that derives from mixers.base.Mixer")
        found = [(name, functools.partial(target, D, **overrides))]
    else:
        names = registry.names() if name == "all" else [name]
        found = [variant for each in names for variant in variants(each, **overrides)]
    for label, factory in found:
        try:
            factory()
        except TypeError as error:
            raise ValueError(f"{label} cannot be built: {error}") from error
        yield label, factory


def costs(name: str) -> tuple[str, str, str]:
    """State at two lengths and FLOPs per token forwards at the shorter one, measured on the meta device; "" for the
    state of what looks ahead.
    """
    from torch import nn

    from compare.budget import cost
    from mixers import registry

    class Embedded(nn.Module):  # costs are measured from tokens on
        def __init__(self):
            super().__init__()
            self.embed, self.mixer = nn.Embedding(1, WIDTH), registry.build(name, WIDTH, length=SHORT)

        def forward(self, tokens, state=None):
            return self.mixer(self.embed(tokens), state)

    used = f"{cost(Embedded, 'flops', SHORT) / 1000:.0f}"
    if not registry.directions(name)[0]:
        return "", "", used
    return size(held(name, SHORT)), size(held(name, LONG)), used


def held(name: str, length: int) -> int:
    """The bytes of a state after `length` tokens, 64 times a power of two, measured on the meta device.

    Even there 64k tokens take seconds. So a state is taken to grow as it last grew, and a mixer that is given that
    state near the end must return it at the end; while it does not, twice as many tokens are really walked.
    """
    import torch

    from compare.budget import Counter, tensors
    from mixers import registry

    def after(state, steps):
        return mixer(torch.empty(1, steps, WIDTH, device="meta"), state)[1]

    def shapes(state):
        return [(z.shape, z.dtype) for z in tensors(state)]

    with torch.device("meta"):
        mixer = registry.build(name, WIDTH, length=length).eval()
    with torch.no_grad(), Counter():
        n, state = 64, after(None, 64)
        while True:
            twice = after(state, n)
            rest = length // n - 2
            end = grown(state, twice, rest)
            if not rest or shapes(after(grown(state, twice, rest - 1), n)) == shapes(end):
                return sum(z.numel() * z.element_size() for z in tensors(end))
            n, state = 2 * n, twice


def grown(first: State, second: State, times: int) -> State:
    """A state of the shape that comes after first and second, so many times later, where it grows at a fixed rate."""
    if isinstance(first, tuple) and isinstance(second, tuple):
        return tuple(grown(a, b, times) for a, b in zip(first, second, strict=True))
    if first is None or second is None:
        return second
    return second.new_empty([b + (b - a) * times for a, b in zip(first.shape, second.shape, strict=True)])


def size(n: float) -> str:
    for unit in ("B", "KiB"):
        if n < 1024:
            return f"{n:.3g} {unit}"
        n /= 1024
    return f"{n:.3g} MiB"


def citation(text: str) -> tuple[str, str, str]:
    """(title, authors and year, link) from a text's first sentence; "" for what is not there."""
    text = " ".join(text.split("\n\n")[0].split())
    found = CITATION.search(text)
    title = re.split(r"\.\s", re.sub(r"\s+(?=[,.:])", "", CITATION.sub("", text)))[0]
    link = re.search(r"https?://[^\s,;]+", found[2]) if found else None
    return " ".join(title.split()).rstrip("."), found[1] if found else "", link[0] if link else ""


def measure(factory: Callable) -> tuple[int, float]:
    """Parameters, and the output's standard deviation for normal input, at d_model=64."""
    import torch

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        mixer = factory(WIDTH)
        y, _ = mixer(torch.randn(4, 256, WIDTH))
    return sum(p.numel() for p in mixer.parameters()), y.std().item()


def knob(text: str) -> tuple[str, Any]:
    """("n_heads", 4) of "n_heads=4"."""
    key, equals, value = text.partition("=")
    if not (key.isidentifier() and equals):
        raise ValueError(f"'{text}' is not of the form key=value")
    if value.lower() in LITERALS:
        return key, LITERALS[value.lower()]
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `... | head` ends it without a word
    sys.exit(main())
