"""Byte-level language modelling of real text: the running interpreter's standard library, with held-out files.

tokens   d e f   m a i n
targets  e f   m a i n (
"""

import platform
import sysconfig
from pathlib import Path

from tasks.bytes import Bytes, found

SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3"}


def files(root: str | Path) -> list[Path]:
    """The Python sources below root that are not tests, sorted. Raises ValueError where there is none."""
    paths = found(str(root), "*.py", "Python sources")
    return [path for path in paths if not SKIPPED & set(path.relative_to(root).parts[:-1])]


def standard_library() -> str:
    """The running interpreter's."""
    return sysconfig.get_paths()["stdlib"]


class Code(Bytes):
    """root: a directory of Python sources, or None, the standard library; the rest as for bytes."""

    kind = "code"

    def __init__(self, *, root: str | None, **common):
        super().__init__(root=root or standard_library(), pattern="*.py", **common)

    def files(self) -> list[Path]:
        return files(self.root)

    def protocol(self) -> dict:
        return super().protocol() | {"python": platform.python_version()}
