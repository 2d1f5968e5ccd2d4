"""Which implementation of an op runs: chosen once, by device and by what is installed.

    torch   plain torch operations: always there, and for whatever another engine has no kernel for
    native  fused kernels for the CPU, compiled at first use
    fla     flash-linear-attention's Triton kernels, on CUDA

`use(name)` or the environment's SEQMIX_ENGINE forces one, and then its absence is an error. Otherwise the device's own
serves, or torch where that is not there.
"""

import importlib
import logging
import os
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

log = logging.getLogger(__name__)

ENGINES = ("torch", "native", "fla")
DEVICES = {"native": "cpu", "fla": "cuda"}
ran: dict[str, set[str]] = {}  # op: the engines that have served it in this process


class Choice(NamedTuple):
    name: str
    why: str


class _Asked:
    name = "auto"


def use(name: str, device: str = "cpu") -> Choice:
    """Forces an engine, or with "auto" leaves the choice to SEQMIX_ENGINE, device and installation. Raises ValueError
    where it is not there.
    """
    if name not in ("auto", *ENGINES):
        raise ValueError(f"there is no engine {name}: choose auto, {', '.join(ENGINES)}")
    before, _Asked.name = _Asked.name, name
    choice.cache_clear()
    try:
        return choice(device)
    except ValueError:
        _Asked.name = before
        choice.cache_clear()
        raise


@cache
def choice(device: str) -> Choice:
    """The engine for tensors on this kind of device, and why. Raises ValueError where the one asked for is missing."""
    asked = _Asked.name if _Asked.name != "auto" else os.environ.get("SEQMIX_ENGINE") or "auto"
    if asked not in ("auto", *ENGINES):
        raise ValueError(f"SEQMIX_ENGINE={asked} is no engine: choose auto, {', '.join(ENGINES)}")
    if asked == "torch":
        return Choice("torch", "asked for")
    if asked == "auto":
        own = next((name for name, kind in DEVICES.items() if kind == device), None)
        if own is None:
            return Choice("torch", f"there is no other for {device}")
        missing = obstacle(own)
        if not missing:
            return Choice(own, f"the fastest for {device}{remark(own)}")
        log.warning("the torch engine serves, slower than %s: %s", own, missing)
        return Choice("torch", f"{own} is not there: {missing}")
    if DEVICES[asked] != device:
        raise ValueError(f"the engine {asked} is for {DEVICES[asked]} and the tensors are on {device}: choose torch")
    missing = obstacle(asked)
    if missing:
        raise ValueError(f"the engine {asked} was asked for and is not there: {missing}")
    return Choice(asked, f"asked for{remark(asked)}")


def remark(name: str) -> str:
    """What else a reader of results should know of an engine that serves here."""
    if name != "fla":
        return ""
    from mixers.ops.fla import calls

    return f"; {calls.EXCLUSION}" if calls.excluded() else ""


def obstacle(name: str) -> str:
    """Why an engine cannot be used here; "" where it can."""
    if name == "native":
        from mixers.ops.native.build import Unavailable, library

        try:
            library()
        except Unavailable as error:
            return str(error)
        return ""
    from mixers.ops.fla import calls

    return calls.obstacle()


def fused(op: str, x: Tensor, *others: Tensor | None, special: bool = False) -> Callable[..., Any] | None:
    """What is to be called instead of the torch engine with just these arguments; None where torch serves.

    special: it is a case of another op, which is asked next, and will say itself what served.
    """
    if torch.compiler.is_compiling():
        return None
    if x.is_meta:  # shapes only
        return None
    name = choice("cpu" if x.is_cpu else x.device.type).name  # asking in words takes longest
    module = None if name == "torch" else kernels(name, op)
    if module is None or not module.serves(x, *others):
        if special:
            return None
        name, module = "torch", None
    ran.setdefault(op, set()).add(name)
    return None if module is None else getattr(module, op)


@cache
def kernels(engine: str, op: str):
    """The module that calls an engine's kernels for an op, or None."""
    try:
        return importlib.import_module(f"mixers.ops.{engine}.{op}")
    except ModuleNotFoundError:
        return None
