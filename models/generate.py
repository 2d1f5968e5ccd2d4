"""Text from a checkpoint: the prompt is read in pieces with the carried state, then bytes are written one by one.

    python -m models.generate ckpt=runs/code/gla/0/last.ckpt prompt="def main("
    python -m models.generate ckpt=runs/code/gla/0/last.ckpt prompt=- tokens=64 < book.txt

    ckpt=FILE        what train.py has left of a run on bytes: task=code or task=bytes
    prompt=TEXT      what to go on from; - is standard input, however long it is: no more than a piece is ever held
    tokens=256       how many bytes to write
    temperature=0    0 writes the likeliest byte each time; what is higher draws, the more freely the higher
    seed=0           of these draws

Text goes to standard output, speed to standard error. Memory and the time per byte do not depend on the length of what
was read, unless the mixer's state does (attention).
"""

import io
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from mixers.base import State
from models.learner import read_checkpoint
from models.model import Model

PIECE = 4096  # tokens read at a time: some megabytes of work, which stay in the cache
KEYS: dict[str, Any] = {"ckpt": str, "prompt": str, "tokens": int, "temperature": float, "seed": int}


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print(__doc__.strip())
        return 0
    try:
        generate(**parsed(arguments))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def parsed(arguments: list[str]) -> dict[str, Any]:
    """key=value words as keywords. Raises ValueError for what is unknown, missing or no number."""
    found: dict[str, Any] = {}
    for word in arguments:
        key, equals, value = word.partition("=")
        if key not in KEYS or not equals:
            raise ValueError(f"'{word}' is not understood: write key=value, with {', '.join(KEYS)}")
        try:
            found[key] = KEYS[key](value)
        except ValueError as error:
            raise ValueError(f"{word} is no number: write {key}=1, for example") from error
        if KEYS[key] is not str and not 0 <= found[key] < 2**63:
            raise ValueError(f"{word} is out of range: choose 0 or more")
    for key in ("ckpt", "prompt"):
        if key not in found:
            raise ValueError(f"{key} is missing: python -m models.generate ckpt=FILE prompt=TEXT; --help says more")
    return found


def generate(ckpt: str, prompt: str, tokens: int = 256, temperature: float = 0.0, seed: int = 0) -> None:
    """Writes what follows the prompt, and how fast that went. Raises ValueError or OSError, of one sentence."""
    model = load(ckpt)
    source = sys.stdin.buffer if prompt == "-" else io.BytesIO(prompt.encode(errors="surrogateescape"))
    start = time.perf_counter()
    length, logits, states = prefill(model, pieces(source))
    middle = time.perf_counter()
    for token in decode(model, logits, states, tokens, temperature, torch.Generator().manual_seed(seed)):
        sys.stdout.buffer.write(bytes([token]))
        sys.stdout.buffer.flush()
    end = time.perf_counter()
    parts = [("read", length, middle - start), ("wrote", tokens, end - middle)]
    print("", *(f"{verb} {n:,} bytes in {s:.1f} s: {n / s:,.0f}/s" for verb, n, s in parts), sep="\n", file=sys.stderr)


def load(path: str) -> Model:
    """The model of a checkpoint, ready to read bytes. Raises ValueError where it is none or reads something else."""
    saved = read_checkpoint(path)
    config = saved["seqmix"].get("config")
    if not config:
        raise ValueError(f"{path} does not say what model it is of: train it again with this version")
    task = config["task"]
    if not task["causal"] or task["pool"] != "none" or task["n_inputs"] != 256 or task["n_outputs"] != 256:
        raise ValueError(f"{path} is of task {task['name']}, which does not go on from bytes: choose one of task=code")
    model = built(config["model"])
    weights = {key.removeprefix("model."): value for key, value in saved["state_dict"].items()}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path} is of another model than it says: was it made by another version?") from error
    return model.eval()


def built(config: Any) -> Model:
    """The model that a configuration describes. Raises ValueError where it names anything but models and their parts:
    a checkpoint may come from anybody, and must not choose what runs.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import get_object, instantiate

    for target in targets(config):
        try:
            part = get_object(target)
        except Exception as error:  # whatever importing may raise
            raise ValueError(f"the model needs {target}, which is not installed here") from error
        if not target.startswith("models.") and not (isinstance(part, type) and issubclass(part, nn.Module)):
            raise ValueError(f"the checkpoint asks for {target}, which is no part of a model: do not trust it")
    try:
        return instantiate(config)
    except InstantiationException as error:
        raise ValueError(str(error.__cause__ or error).splitlines()[0]) from error


def targets(config: Any) -> Iterator[str]:
    """Every _target_ in a nested configuration."""
    if isinstance(config, dict):
        if "_target_" in config:
            yield str(config["_target_"])
        config = list(config.values())
    if isinstance(config, list):
        for value in config:
            yield from targets(value)


def pieces(source: BinaryIO, size: int = PIECE) -> Iterator[Tensor]:
    """The bytes of a stream, `size` at a time: (1, size) int64 each, the last one shorter."""
    while piece := source.read(size):
        yield torch.frombuffer(bytearray(piece), dtype=torch.uint8).long().unsqueeze(0)


@torch.no_grad()
def prefill(
    model: Model, parts: Iterable[Tensor], states: tuple[State, ...] | None = None
) -> tuple[int, Tensor, tuple[State, ...]]:
    """parts (1, T) int64 each -> how many tokens that were, the last one's logits (1, n_outputs), and the states after
    it. Raises ValueError where there is none.
    """
    length, logits = 0, None
    for tokens in parts:
        last = torch.arange(tokens.shape[1]) == tokens.shape[1] - 1
        logits, states = model(tokens, states, at=last.unsqueeze(0))
        length += tokens.shape[1]
    if logits is None or states is None:
        raise ValueError("the prompt is empty: give at least one byte to go on from")
    return length, logits, states


@torch.no_grad()
def decode(
    model: Model, logits: Tensor, states: tuple[State, ...], n: int, temperature: float, generator: torch.Generator
) -> Iterator[int]:
    """n tokens, each chosen by the logits (1, n_outputs) after the one before."""
    for _ in range(n):
        if temperature:
            token = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
        else:
            token = logits.argmax(-1, keepdim=True)
        yield int(token)
        logits, states = model(token, states, at=torch.ones_like(token, dtype=torch.bool))


if __name__ == "__main__":
    sys.exit(main())
