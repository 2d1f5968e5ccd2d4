"""Sequence mixers behind one contract. `names()` lists them, `build("gla", d_model=64)` makes one."""

from mixers.base import Mixer, State
from mixers.registry import build, names

__all__ = ["Mixer", "State", "build", "names"]
