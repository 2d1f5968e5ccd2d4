"""What long sequences cost on one machine, mixer by mixer, as docs/benchmarks.md shows it.

    python -m benchmarks.long_context                                      # six mixers, about 20 minutes
    python -m benchmarks.long_context gla mamba2 trainer.precision=32-true # these, and values of the run

Training is one step of experiment=long_context through Lightning, on one sequence of 131,072 bytes. Reading and writing
are what `python -m models.generate` does, with that model and real bytes. One thread and CPU time. Each is a process of
its own, whose peak is all that it has ever held: Python, torch and the data included.
"""

import io
import multiprocessing
import platform
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

MIXERS = ("linear_attention", "gla", "gated_delta_net", "mamba", "mamba2", "s4d")
LENGTHS = (1024, 65536, 1048576)
WRITTEN = 64
HEAD = ("mixer", "training step", "peak", *(f"peak, {n:,} read" for n in LENGTHS), "reading")
HEAD += tuple(f"writing after {n:,}" for n in LENGTHS)


def train(name: str, overrides: list[str], checkpoint: str) -> tuple[float, float]:
    """(seconds of a step, peak in GB); the trained model is left in `checkpoint`."""
    import lightning as L
    import torch
    from hydra import compose, initialize_config_module
    from hydra.utils import instantiate
    from lightning.pytorch.callbacks import Callback
    from omegaconf import OmegaConf

    class Clock(Callback):
        took = started = 0.0

        def on_train_batch_start(self, *args):
            self.started = time.process_time()

        def on_train_batch_end(self, *args):
            self.took = time.process_time() - self.started

    torch.set_num_threads(1)
    fixed = ["experiment=long_context", f"mixer={name}", f"label={name}", "trainer.max_steps=1"]
    with initialize_config_module("conf", version_base="1.3"):
        cfg = compose("train", [*fixed, *overrides])
    L.seed_everything(cfg.seed, verbose=False)
    learner = instantiate(cfg.learner, model=instantiate(cfg.model))
    learner.config = OmegaConf.to_container(cfg, resolve=True)
    clock = Clock()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = instantiate(cfg.trainer, callbacks=[clock], limit_val_batches=0, **quiet)
    trainer.fit(learner, instantiate(cfg.task.data))
    trainer.save_checkpoint(checkpoint)
    return clock.took, peak()


def generate(checkpoint: str) -> tuple[float, list[float], list[float]]:
    """Bytes read per second; after each of LENGTHS, bytes written per second, and the peak in GB so far."""
    import torch

    from models.generate import decode, load, pieces, prefill
    from tasks.code import files, standard_library

    torch.set_num_threads(1)
    model, states, reading, written, peaks = load(checkpoint), None, 0.0, [], []
    text = io.BytesIO(b"".join(path.read_bytes() for path in files(standard_library()))[: LENGTHS[-1]])
    for before, length in zip((0, *LENGTHS), LENGTHS, strict=False):
        start = time.process_time()
        _, logits, states = prefill(model, pieces(io.BytesIO(text.read(length - before))), states)
        middle = time.process_time()
        for _ in decode(model, logits, states, WRITTEN, 0.0, torch.Generator()):
            pass
        reading += middle - start
        written.append(WRITTEN / (time.process_time() - middle))
        peaks.append(peak())
    return LENGTHS[-1] / reading, written, peaks


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def main() -> None:
    from importlib.metadata import version

    names = [word for word in sys.argv[1:] if "=" not in word] or MIXERS
    overrides = [word for word in sys.argv[1:] if "=" in word]
    print(f"{platform.machine()}, Python {platform.python_version()}, torch {version('torch')}", *overrides, end="\n\n")
    print(f"| {' | '.join(HEAD)} |\n{'| --- ' * len(HEAD)}|", flush=True)
    fresh = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1)
    with fresh, tempfile.TemporaryDirectory() as place:
        for name in names:
            checkpoint = str(Path(place, f"{name}.ckpt"))
            step, held = fresh.submit(train, name, overrides, checkpoint).result()
            print(f"| {name} | {step:.1f} s | {held:.2f} GB |", end=" ", flush=True)
            reading, written, peaks = fresh.submit(generate, checkpoint).result()
            cells = [f"{n:.2f} GB" for n in peaks] + [f"{n:,.0f}/s" for n in (reading, *written)]
            print(f"{' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
