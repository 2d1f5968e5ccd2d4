"""The probe: time and memory of a model on one batch, measured after training and never by the Trainer.

A training step here is forward, loss and backward; the optimizer's share is the same for all mixers and is left out.
"""

import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from compare.budget import tensors
from mixers.base import Mixer


def probe(model: nn.Module, batch: tuple, loss_fn: Callable[[nn.Module, tuple], Tensor], steps: int = 5) -> dict:
    """Medians over `steps` steps on one thread, in CPU time (on CUDA in elapsed time), after one step to warm up.

    batch: (tokens, ...) with tokens (..., T) int64 on the model's device. loss_fn(model, batch) is a scalar loss.
    Returns train_us_per_token, forward_us_per_token, decode_us_per_token (None for a model that looks ahead or for
    batches of pairs), tokens_per_second in training, and peak_bytes: of the live tensors over a training step, the
    model and the batch included. Weights, buffers, gradients, random state and modes come back as they were.
    """
    tokens = batch[0]
    device = tokens.device

    def step():
        model.zero_grad(set_to_none=True)
        loss_fn(model, batch).backward()

    def forward():
        with torch.no_grad():
            loss_fn(model, batch)

    with _as_before(model), _one_thread():
        model.train()
        step()
        train = _seconds(step, steps, device) / tokens.numel()
        model.zero_grad(set_to_none=True)
        peak = _peak(step, model, batch, device)
        model.zero_grad(set_to_none=True)
        model.eval()
        forward = _seconds(forward, steps, device) / tokens.numel()
        decode = _decode(model, tokens, steps)
    return {
        "train_us_per_token": train * 1e6,
        "forward_us_per_token": forward * 1e6,
        "decode_us_per_token": None if decode is None else decode * 1e6,
        "tokens_per_second": 1 / train,
        "peak_bytes": peak,
        "steps": steps,
        "threads": 1,
        "clock": "elapsed" if device.type == "cuda" else "cpu",
        "batch": list(tokens.shape),
    }


@torch.no_grad()
def _decode(model: nn.Module, tokens: Tensor, steps: int) -> float | None:
    """Seconds per token for the last token of every sequence, given the state of those before it."""
    causal = all(module.causal for module in model.modules() if isinstance(module, Mixer))
    if not causal or tokens.ndim != 2 or tokens.shape[1] < 2:
        return None
    _, states = model(tokens[:, :-1])
    return _seconds(lambda: model(tokens[:, -1:], states), steps, tokens.device) / tokens.shape[0]


def by_length(model: nn.Module, lengths: list[int], seconds: float = 1.0) -> dict[str, dict]:
    """One training step on one sequence of each length: {"64": {"us_per_token", "peak_bytes"}}, shortest first.

    It ends before a length whose step, if it grew with the square, would take more than `seconds`, and with the first
    that is too long for the model or the machine.
    """
    found: dict[str, dict] = {}
    device, took, before = next(model.parameters()).device, 0.0, 0
    for length in sorted(lengths):
        if before and took * (length / before) ** 2 > seconds:
            break
        tokens = torch.zeros(1, length, dtype=torch.int64, device=device)
        try:
            took, peak, _ = costs(model, tokens, "train", seconds / 4)
        except (ValueError, RuntimeError):
            break
        found[str(length)], before = {"us_per_token": took * 1e6 / length, "peak_bytes": peak}, length
    return found


MODES = ("forward", "prefill", "train", "decode")


def costs(model: nn.Module, tokens: Tensor, mode: str, seconds: float) -> tuple[float, int, int]:
    """(seconds, peak bytes, bytes held before) of one call in a mode, on one thread, after one to warm up.

    tokens: (1, T) int64. "forward" gives all logits; "prefill" those of the last token and the state; "train" is a
    forward, loss and backward; "decode" is the token after T. The median of at most 5 calls, of fewer where they would
    take more than `seconds`.
    """
    device, states = tokens.device, None
    last = torch.zeros_like(tokens, dtype=torch.bool)
    last[:, -1] = True

    @torch.no_grad()
    def forward():
        return model(tokens)

    @torch.no_grad()
    def prefill():
        return model(tokens, at=last)

    def train():
        model.zero_grad(set_to_none=True)
        logits = model(tokens)[0]
        targets = torch.zeros_like(logits[..., 0], dtype=torch.int64)
        nn.functional.cross_entropy(logits.flatten(0, -2).float(), targets.flatten()).backward()

    @torch.no_grad()
    def decode():
        return model(tokens[:, -1:], states)

    call = {"forward": forward, "prefill": prefill, "train": train, "decode": decode}[mode]
    with _as_before(model), _one_thread():
        model.train(mode == "train")
        states = prefill()[1] if mode == "decode" else None
        call()
        once = _seconds(call, 1, device)
        if (steps := min(5, int(seconds / once))) > 1:
            once = _seconds(call, steps, device)
        model.zero_grad(set_to_none=True)
        held = (tokens, list(tensors(states)))
        peak, before = _peak(call, model, held, device), LiveBytes(_held(model, held)).live
        model.zero_grad(set_to_none=True)
    return once, peak, before


def _seconds(call: Callable[[], object], steps: int, device: torch.device) -> float:
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    took = []
    for _ in range(steps):
        _wait(device)
        start = clock()
        call()
        _wait(device)
        took.append(clock() - start)
    return max(median(took), 1e-9)  # a clock too coarse for the call must not make it infinitely fast


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak(step: Callable[[], object], model: nn.Module, batch: tuple, device: torch.device) -> int:
    with LiveBytes(_held(model, batch)) as live:
        if device.type != "cuda":
            step()
            return live.peak
        start = live.peak
    _wait(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    _wait(device)
    return start + torch.cuda.max_memory_allocated(device) - before


def _held(model: nn.Module, batch: tuple) -> list[Tensor]:
    leaves = tree_leaves((list(model.parameters()), list(model.buffers()), batch))
    return [leaf for leaf in leaves if torch.is_tensor(leaf)]


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of every storage that an operation returns, until it dies; `peak` is the most at one time."""

    def __init__(self, held: list[Tensor]):
        super().__init__()
        self.live = self.peak = 0
        self.known: dict[int, weakref.finalize] = {}
        self._see(held)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self._see(tree_leaves(out))
        return out

    def __exit__(self, *error):
        for watch in self.known.values():
            watch.detach()
        return super().__exit__(*error)

    def _see(self, leaves: list) -> None:
        for tensor in leaves:
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self.known:
                self.known[key] = weakref.finalize(storage, self._forget, key, size)
                self.live += size
        self.peak = max(self.peak, self.live)

    def _forget(self, key: int, size: int) -> None:
        del self.known[key]
        self.live -= size


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _as_before(model: nn.Module) -> Iterator[None]:
    """Puts back what a step moves: buffers, gradients, modes and the random state."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    devices = [parameter.device for parameter, _ in gradients if parameter.is_cuda][:1]
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, gradient in gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
