"""What long sequences cost on one machine, mixer by mixer, as docs/benchmarks.md shows it.

    python -m benchmarks.long_context                      # six mixers, about 40 minutes
    python -m benchmarks.long_context gla mamba2

Training is experiment=long_context through Lightning: one sequence of 131,072 bytes per step, the second of two steps.
Reading and writing are what `python -m models.generate` does, with the model of that step, on real bytes. One thread
and CPU time. Each number comes from a process of its own, whose peak is all that it ever held, Python, torch (about 0.5
GB) and the data included.
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
WRITTEN = 256


def train(name: str, checkpoint: str) -> tuple[float, float]:
    """(seconds of one step, peak in GB); the trained model is left in `checkpoint`."""
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
    with initialize_config_module("conf", version_base="1.3"):
        cfg = compose("train", ["experiment=long_context", f"mixer={name}", f"label={name}", "trainer.max_steps=2"])
    L.seed_everything(cfg.seed, verbose=False)
    learner = instantiate(cfg.learner, model=instantiate(cfg.model))
    learner.config = OmegaConf.to_container(cfg, resolve=True)
    clock = Clock()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = instantiate(cfg.trainer, callbacks=[clock], limit_val_batches=0, **quiet)
    trainer.fit(learner, instantiate(cfg.task.data))
    trainer.save_checkpoint(checkpoint)
    return clock.took, peak()


def generate(checkpoint: str, length: int) -> tuple[float, float, float]:
    """(bytes read per second, bytes written per second after that, peak in GB)."""
    import torch

    from models.generate import decode, load, pieces, prefill

    torch.set_num_threads(1)
    model, text = load(checkpoint), b"".join(path.read_bytes() for path in sources())[:length]
    start = time.process_time()
    n, logits, states = prefill(model, pieces(io.BytesIO(text)))
    middle = time.process_time()
    for _ in decode(model, logits, states, WRITTEN, 0.0, torch.Generator()):
        pass
    return n / (middle - start), WRITTEN / (time.process_time() - middle), peak()


def sources() -> list[Path]:
    from tasks.code import files, standard_library

    return files(standard_library())


def peak() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def main() -> None:
    from importlib.metadata import version

    print(f"Python {platform.python_version()}, torch {version('torch')}, {platform.machine()}\n")
    print(
        "| mixer | training step, 131,072 bytes | peak | reading 1,048,576 bytes | peak | peak, 1,024 bytes |", end=""
    )
    print("".join(f" writing after {n:,} |" for n in LENGTHS))
    print("| --- " * (6 + len(LENGTHS)) + "|")
    fresh = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1)
    with fresh, tempfile.TemporaryDirectory() as place:
        for name in sys.argv[1:] or MIXERS:
            checkpoint = str(Path(place, f"{name}.ckpt"))
            seconds, most = fresh.submit(train, name, checkpoint).result()
            runs = [fresh.submit(generate, checkpoint, length).result() for length in LENGTHS]
            cells = [f"{seconds:.1f} s", f"{most:.2f} GB", f"{runs[-1][0]:,.0f}/s", f"{runs[-1][2]:.2f} GB"]
            cells += [f"{runs[0][2]:.2f} GB"] + [f"{run[1]:,.0f}/s" for run in runs]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
