"""Tasks in processes that may fail, hang or die without taking the others along.

A task is (part that it belongs to, name, function of a module, its keyword arguments, seconds it may take); its result
is what the function returns, a dictionary, or {"error": one line, "trace": the end of it}.
"""

import gc
import multiprocessing
import os
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

GRACE = 15.0  # seconds after which a task that does not answer the alarm is killed
BROKEN = ("CUDA error", "Triton Error [CUDA]", "device-side assert")  # a process has no use for its GPU after these


class Task(NamedTuple):
    part: str
    name: str
    function: Callable[..., dict]
    arguments: dict[str, Any]
    seconds: float


class Pool:
    """So many processes, spread over these devices (of CUDA_VISIBLE_DEVICES), which live until the end: to import
    everything takes them longer than most tasks.
    """

    def __init__(self, workers: int, devices: list[str] | None = None):
        self.workers, self.devices = workers, devices or [""]
        self.idle: list[Worker] = []

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *error) -> None:
        for worker in self.idle:
            worker.end()

    def run(self, tasks: list[Task], deadline: float, done: Callable[[Task, dict], None]) -> None:
        """Runs tasks in order, calling `done` with each and its result; at `deadline` (of time.monotonic) what has not
        finished is "not reached".
        """
        waiting: list[Task] = list(tasks)
        busy: dict[Connection, Worker] = {}
        try:
            while (waiting or busy) and time.monotonic() < deadline:
                while waiting and len(busy) < self.workers:
                    worker = self.idle.pop() if self.idle else Worker(self.freest(busy.values()))
                    worker.begin(waiting.pop(0))
                    busy[worker.connection] = worker
                limit = min([deadline, *(worker.until for worker in busy.values())])
                for connection in wait(list(busy), max(0.0, limit - time.monotonic())):
                    worker = busy.pop(connection)
                    result, alive = worker.result()
                    done(worker.task, result)
                    if alive:
                        self.idle.append(worker)
                for connection, worker in list(busy.items()):
                    if time.monotonic() > worker.until:
                        worker.end()
                        done(worker.task, {"error": f"hung for more than {worker.task.seconds + GRACE:.0f} s"})
                        del busy[connection]
        finally:
            for worker in busy.values():
                worker.end()
        for task in [worker.task for worker in busy.values()] + waiting:
            done(task, {"error": "not reached: out of time"})

    def freest(self, busy: Iterable["Worker"]) -> str:
        """The device with the fewest processes: one that died leaves its place."""
        taken = Counter(worker.device for worker in (*busy, *self.idle))
        return min(self.devices, key=lambda device: taken[device])


class Worker:
    """A process that does one task after the other."""

    def __init__(self, device: str):
        self.device = device
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, device), daemon=True)
        self.process.start()
        theirs.close()

    def begin(self, task: Task) -> None:
        self.task, self.until = task, time.monotonic() + task.seconds + GRACE
        self.connection.send(task)

    def result(self) -> tuple[dict, bool]:
        """The result, and whether the process can go on."""
        try:
            result = self.connection.recv()
        except EOFError:
            self.process.join(1)
            return {"error": f"its process died with {self.process.exitcode}"}, False
        alive = not any(words in result.get("error", "") for words in BROKEN)
        if not alive:
            self.end()
        return result, alive

    def end(self) -> None:
        self.process.kill()
        self.process.join(5)
        self.connection.close()


def serve(connection: Connection, device: str) -> None:
    """The process: receives tasks, sends results."""
    if device:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, alarm)
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        result = outcome(task)
        if torch.cuda.is_initialized():  # the other processes need what this one keeps
            gc.collect()
            gc.freeze()  # what is left are modules and caches, which would be looked through after every task
            try:
                torch.cuda.empty_cache()
            except RuntimeError as error:  # of a kernel that has only now failed
                result = {"error": one_line(error)} | result
        connection.send(result)


def outcome(task: Task) -> dict:
    start = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, task.seconds)
    try:
        result = task.function(**task.arguments)
    except Exception as error:  # whatever it raises is what is to be known
        result = {"error": one_line(error), "trace": traceback.format_exc(limit=-3).splitlines()[-12:]}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return result | {"took": round(time.monotonic() - start, 2)}


def alarm(number: int, frame) -> None:
    raise TimeoutError("took too long")


def one_line(error: BaseException) -> str:
    text = str(error).strip().splitlines() or [""]
    kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
    line = f"{kind}{text[0]}"
    return line if len(line) <= 200 else f"{line[:100]} ... {line[-95:]}"
