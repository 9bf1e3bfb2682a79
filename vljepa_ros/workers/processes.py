"""A pool of processes on this machine.

Invariant: a worker begins as a new program (spawn), so it shares no thread, lock or device with
its parent, and ends with it, however that ends. Ctrl-C is for the parent alone.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, cast

from .pool import Died, Failed, Message, Opening, Pool, Result, Task, Worker

WAIT = 1.0  # seconds


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


class Processes(Pool[Task, Result]):
    """The pool of `size` processes; `opening` must be of an importable module."""

    def __init__(self, opening: Opening[Task, Result], size: int) -> None:
        self._opening, self.size = opening, size
        self._spawn = multiprocessing.get_context("spawn")
        self._numbers = itertools.count()
        self._workers: dict[int, tuple[SpawnProcess, Connection]] = {}

    def begin(self) -> int:
        ours, theirs = self._spawn.Pipe()
        process = self._spawn.Process(target=_serve, args=(theirs, self._opening), daemon=True)
        with _without_interrupts():
            process.start()
        theirs.close()  # so that its end is heard
        number = next(self._numbers)
        self._workers[number] = process, ours
        return number

    def give(self, worker: int, task: Task) -> None:
        with suppress(OSError):  # it is dead, which is heard soon
            self._workers[worker][1].send(task)

    def end(self, worker: int) -> None:
        process, pipe = self._workers.pop(worker)
        pipe.close()
        process.kill()  # it owns nothing
        process.join()

    def heard(self) -> list[tuple[int, Message]]:
        workers = {pipe: number for number, (_, pipe) in self._workers.items()}
        found: list[tuple[int, Message]] = []
        for pipe in cast("list[Connection]", wait(list(workers), WAIT)):
            number = workers[pipe]
            try:
                found.append((number, pipe.recv()))
            except (EOFError, OSError):
                found.append((number, self._dead(number)))
        return found

    def close(self) -> None:
        for number in list(self._workers):
            self.end(number)

    def _dead(self, worker: int) -> Died:
        process, pipe = self._workers.pop(worker)
        pipe.close()
        process.join()
        code = process.exitcode or 0
        return Died(f"signal {-code}" if code < 0 else f"exit code {code}")


def _serve(pipe: Any, opening: Opening[Any, Any]) -> None:
    """A worker's life."""
    worker = Worker(opening)
    try:
        begun = worker.begin()
        pipe.send(begun)
        while not isinstance(begun, Failed):
            task = pipe.recv()
            for message in worker.do(task):
                pipe.send(message)
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone
        pass


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes that are begun here never get SIGINT: on Ctrl-C the pool ends them.

    Python's own helper is begun before, for where that begins SIGINT is let through again.
    """
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
