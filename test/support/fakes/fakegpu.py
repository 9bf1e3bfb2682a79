"""The made-up GPU behind the fakes: memory, streams, contexts, faults, and counts of all of it."""

from __future__ import annotations

import bisect
import os
import threading
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

ALIGNMENT = 512
counts: Counter[str] = Counter()
threads = threading.local()


def fault(word: str) -> bool:
    """Whether the file of faults has the word now."""
    path = os.environ.get("FAKE_GPU_FAULTS")
    try:
        return path is not None and word in Path(path).read_text().split()
    except FileNotFoundError:
        return False


def name() -> str:
    return os.environ.get("FAKE_GPU_NAME", "Fake Orin")


def capability() -> tuple[int, int]:
    major, minor = os.environ.get("FAKE_GPU_CAPABILITY", "8.7").split(".")
    return int(major), int(minor)


def integrated() -> bool:
    return os.environ.get("FAKE_GPU_INTEGRATED") == "1"


def count() -> int:
    return int(os.environ.get("FAKE_GPU_COUNT", "1"))


class Violation(AssertionError):
    """What the real libraries answer with undefined behaviour."""


class Memory:
    """Pieces of memory by the address where they begin."""

    def __init__(self) -> None:
        self.pieces: dict[int, np.ndarray] = {}
        self._starts: list[int] = []
        self._next = 0x7000_0000_0000

    def add(self, bytes_: np.ndarray) -> int:
        address = self._next
        self._next += -(-bytes_.nbytes // ALIGNMENT) * ALIGNMENT + ALIGNMENT  # with a gap
        self.pieces[address] = bytes_
        bisect.insort(self._starts, address)
        return address

    def remove(self, address: int) -> None:
        self.pieces.pop(address)[:] = 0xDB
        self._starts.remove(address)

    def view(self, address: int, nbytes: int) -> np.ndarray:
        """The bytes from an address on; Violation where they are not all allocated."""
        at = bisect.bisect_right(self._starts, address) - 1
        start = self._starts[at] if at >= 0 else 0
        piece = self.pieces.get(start)
        if piece is None or address + nbytes > start + piece.nbytes:
            raise Violation(f"{nbytes} bytes at {address:#x} are not allocated, or not any more")
        return piece[address - start : address - start + nbytes]


memory = Memory()


class Queue:
    """A stream: what is queued is done when somebody waits for it."""

    known: ClassVar[dict[int, Queue]] = {}
    eager = True  # what has priority is done at once, not as late as it can be
    order: ClassVar[deque[tuple[str, int]]] = deque(maxlen=1000)  # what was done: (what, handle)

    def __init__(self, priority: int = 0) -> None:
        self.handle = 0x10 + max(Queue.known, default=0)
        self.priority = priority
        self._work: deque[tuple[str, Callable[[], None]]] = deque()
        Queue.known[self.handle] = self

    def put(self, what: str, work: Callable[[], None]) -> None:
        self._work.append((what, work))
        if self.priority < 0 and Queue.eager:
            self.drain()

    def drain(self, until: Callable[[], bool] = lambda: False) -> None:
        """Do what is queued, all of it, or `until` something is so."""
        while self._work and not until():
            what, work = self._work.popleft()
            Queue.order.append((what, self.handle))
            work()


class Mark:
    """A place in a queue; waiting for it does what was queued before it."""

    def __init__(self) -> None:
        self._queue: Queue | None = None
        self._wanted = self._reached = 0

    def record(self, queue: Queue) -> None:
        self._queue = queue
        self._wanted += 1

        def reach(number: int = self._wanted) -> None:
            self._reached = number

        queue.put("mark", reach)

    def wait(self) -> None:
        if self._queue is not None:
            wanted = self._wanted
            self._queue.drain(lambda: self._reached >= wanted)


class Libcuda:
    """The functions of the CUDA driver that are called through ctypes, for one GPU."""

    least, greatest = 0, -5
    marks: ClassVar[dict[int, Mark]] = {}

    def cuCtxGetStreamPriorityRange(self, least: Any, greatest: Any) -> int:
        least._obj.value, greatest._obj.value = self.least, self.greatest
        return 0

    def cuStreamCreateWithPriority(self, stream: Any, flags: Any, priority: Any) -> int:
        assert flags.value == 1
        stream._obj.value = Queue(priority.value).handle
        return 0

    def cuEventCreate(self, event: Any, flags: Any) -> int:
        event._obj.value = len(self.marks) + 1  # none is ever used again
        self.marks[event._obj.value] = Mark()
        return 0

    def cuEventRecord(self, event: Any, stream: Any) -> int:
        self.marks[event.value].record(Queue.known[stream.value])
        return 0

    def cuStreamWaitEvent(self, stream: Any, event: Any, flags: Any) -> int:
        Queue.known[stream.value].put("wait", self.marks[event.value].wait)
        return 0

    def cuEventDestroy_v2(self, event: Any) -> int:
        self.marks[event.value] = Mark()
        return 0

    def cuStreamDestroy_v2(self, stream: Any) -> int:
        del Queue.known[stream.value]
        return 0
