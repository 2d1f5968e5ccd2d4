"""The kernels' sources, compiled at first use with the system's C compiler and kept for the next process.

The library lies in $SEQMIX_CACHE, or else ~/.cache/seqmix, under a hash of what it depends on: sources, flags and CPU.
"""

import ctypes
import functools
import os
import platform
import shutil
import subprocess
import tempfile
from hashlib import sha256
from pathlib import Path

SOURCES = Path(__file__).parent
FLAGS = ["-O3", "-march=native", "-fno-math-errno", "-std=gnu11", "-shared", "-fPIC"]
OPENMP = ["-fopenmp"]


class Unavailable(RuntimeError):
    """Why there is no library: one sentence."""


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled kernels. Raises Unavailable."""
    files = sorted(SOURCES.glob("*.[ch]"))
    text = b"".join(file.name.encode() + b"\0" + file.read_bytes() for file in files)
    path = cache() / f"native-{sha256(text + repr((FLAGS, cpu())).encode()).hexdigest()[:20]}.so"
    try:
        if not path.exists():
            compile_into(path, [file for file in files if file.suffix == ".c"])
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise Unavailable(
            f"the kernels cannot be kept or loaded ({error}): clear the cache, or set SEQMIX_CACHE"
        ) from error


def cache() -> Path:
    return Path(os.environ.get("SEQMIX_CACHE") or Path.home() / ".cache" / "seqmix")


def compile_into(path: Path, files: list[Path]) -> None:
    """All of it or nothing, so that processes may race."""
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None:
        raise Unavailable("there is no C compiler: install gcc, or name one in CC")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as place:
        out = Path(place) / path.name
        for extra in (OPENMP, []):
            command = [compiler, *FLAGS, *extra, *map(str, files), "-o", str(out)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            except subprocess.TimeoutExpired as error:
                raise Unavailable(f"{compiler} took longer than 300 s") from error
            if done.returncode == 0:
                os.replace(out, path)
                return
        words = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
        line = next((word for word in words if "error" in word), words[-1])
        raise Unavailable(f"{compiler} cannot compile the kernels: {line.strip()}")


@functools.cache
def cpu() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        wanted = ("model name", "flags", "Features", "CPU part")
        found = dict.fromkeys(line for line in lines if line.split("\t")[0].strip() in wanted)
        return "\n".join([platform.machine(), *found])
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
