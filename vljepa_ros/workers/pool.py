"""Tasks for a pool of workers, wherever these are.

Invariant: results come in the order of the tasks, each once, as if one worker had done them all. A
task whose worker dies is done again by another, from its start; a task goes whole to one worker,
and what it changes must be nothing but its result.
"""

from __future__ import annotations

import heapq
import time
import traceback
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from vljepa_ros.errors import VLJepaError

Task = TypeVar("Task")
Result = TypeVar("Result")
# Does a task: yields how far it is, and returns the result. Made by an opening, once in a worker.
Work: TypeAlias = Callable[[Task], Generator[float, None, Result]]
Opening: TypeAlias = Callable[[], Work[Task, Result]]

TRIES = 3  # workers that may die of a task, or as they begin
AHEAD = 4  # tasks a worker by which one may be done before its turn: their results are held
PACE = 0.5  # seconds between two reports of how far a task is
PATIENCE = 30.0  # seconds without any worker, until that is said


class LostError(VLJepaError):
    """A task of which every worker died."""


# --- what a worker says ---


@dataclass(frozen=True)
class Ready:
    """It has opened what it works with, and takes tasks."""


@dataclass(frozen=True)
class Told:
    """How far its task is."""

    done: float


@dataclass(frozen=True)
class Done:
    """Its task is done."""

    result: Any


@dataclass(frozen=True)
class Failed:
    """It cannot go on, nor could another. `trace`: empty where the sentence says enough."""

    sentence: str
    trace: str = ""


@dataclass(frozen=True)
class Died:
    """It is gone; said by the pool. `why`: e.g. "signal 9"."""

    why: str


Message: TypeAlias = Ready | Told | Done | Failed | Died


class Worker(Generic[Task, Result]):
    """What runs in a worker: nothing leaves it but messages."""

    def __init__(self, opening: Opening[Task, Result]) -> None:
        self._opening = opening

    def begin(self) -> Ready | Failed:
        """Open what it works with."""
        try:
            self._work = self._opening()
        except Exception as error:  # is told where it can be seen
            return _failed(error)
        return Ready()

    def do(self, task: Task) -> Iterator[Told | Done | Failed]:
        """Do one task."""
        told = time.monotonic()
        try:
            steps = self._work(task)
            while True:
                try:
                    done = next(steps)
                except StopIteration as end:
                    yield Done(end.value)
                    return
                if time.monotonic() - told >= PACE:
                    told = time.monotonic()
                    yield Told(done)
        except Exception as error:  # as above
            yield _failed(error)


def _failed(error: Exception) -> Failed:
    if isinstance(error, VLJepaError):
        return Failed(str(error))
    if isinstance(error, OSError) and error.filename is not None:
        return Failed(f"{str(error.filename)[:200]}: {error.strerror}; check the path.")
    return Failed(f"{type(error).__name__}: {error}", traceback.format_exc())


class Pool(ABC, Generic[Task, Result]):
    """Workers by their numbers, which are used once. `size`: how many are to work at a time."""

    size: int

    @abstractmethod
    def begin(self) -> int:
        """Begin another worker: its number. It says whether it is `Ready`, `Failed` or `Died`."""

    @abstractmethod
    def give(self, worker: int, task: Task) -> None:
        """Let a worker that is ready, and has no task, do this one."""

    @abstractmethod
    def end(self, worker: int) -> None:
        """End a worker; nothing more is heard of it."""

    @abstractmethod
    def heard(self) -> list[tuple[int, Message]]:
        """What workers say, by their numbers; waits for it, but not long."""

    @abstractmethod
    def close(self) -> None:
        """End all workers at once."""


def in_order(
    pool: Pool[Task, Result],
    tasks: Sequence[Task],
    progress: Callable[[float], None] = lambda done: None,
    say: Callable[[str], None] = lambda sentence: None,
    renew: int = 0,
) -> Iterator[tuple[Task, Result | LostError]]:
    """(task, its result) of all tasks, in their order.

    LostError in the place of a result: TRIES workers died of that task. `progress`: of the tasks
    that are not handed out yet, the sum of how far they are; `say`: is told of a worker that died;
    `renew`: tasks after which a worker is replaced, 0: never. Raises VLJepaError where a worker
    fails, or none can begin; RuntimeError, with the worker's trace, where the code is wrong.
    """
    shift = _Shift(pool, tasks, say, renew)
    for number, task in enumerate(tasks):
        while number not in shift.results:
            shift.step(number)
            progress(sum(shift.done.values()))
        shift.done.pop(number, None)
        yield task, shift.results.pop(number)


class _Shift(Generic[Task, Result]):
    """Who does what. Tasks go by their numbers."""

    def __init__(
        self, pool: Pool[Task, Result], tasks: Sequence[Task], say: Callable[[str], None],
        renew: int,
    ) -> None:  # fmt: skip
        self._pool, self._tasks, self._say, self._renew = pool, tasks, say, renew
        self.results: dict[int, Result | LostError] = {}  # whose turn has not come
        self.done: dict[int, float] = {}  # how far those are that were begun
        self._todo = list(range(len(tasks)))  # a heap: what has to be done again comes first
        self._busy: dict[int, int] = {}  # worker: task
        self._free: list[int] = []
        self._starting: set[int] = set()
        self._did = Counter[int]()  # by worker: tasks
        self._deaths = Counter[int]()  # by task
        self._false_starts = 0
        self._patience: float | None = time.monotonic() + PATIENCE
        self._fill()

    def step(self, turn: int) -> None:
        """Hand out tasks, and hear what comes; `turn`: the task that is waited for."""
        while self._free and self._todo and self._todo[0] < turn + AHEAD * self._pool.size:
            worker, number = self._free.pop(0), heapq.heappop(self._todo)
            self._busy[worker] = number
            self._pool.give(worker, self._tasks[number])
        for worker, message in self._pool.heard():
            self._hear(worker, message)
        if self._patience is not None and time.monotonic() > self._patience:
            self._patience = None
            self._say(
                f"Still waiting for the first of {self._pool.size} workers: for a machine that is "
                "free, or until its engines are open."
            )

    def _hear(self, worker: int, message: Message) -> None:
        if isinstance(message, Ready):
            self._patience = None
            self._starting.discard(worker)
            self._free.append(worker)
        elif isinstance(message, Told):
            self.done[self._busy[worker]] = message.done
        elif isinstance(message, Done):
            self.results[self._busy.pop(worker)] = message.result
            self._did[worker] += 1
            if self._did[worker] == self._renew:
                self._pool.end(worker)
                self._fill()
            else:
                self._free.append(worker)
        elif isinstance(message, Failed):
            if message.trace:
                raise RuntimeError(f"A worker failed.\n{message.trace}")
            raise VLJepaError(message.sentence)
        else:
            self._lose(worker, message.why)

    def _lose(self, worker: int, why: str) -> None:
        if worker in self._starting:
            self._starting.discard(worker)
            self._false_starts += 1
        elif worker in self._busy:
            number = self._busy.pop(worker)
            self.done.pop(number, None)
            self._deaths[number] += 1
            task = self._tasks[number]
            if self._deaths[number] < TRIES:
                heapq.heappush(self._todo, number)
                self._say(f"A worker died ({why}) at {task}, which another does again.")
            else:
                self.results[number] = LostError(
                    f"{task} is left out: {TRIES} workers died of it, the last of {why}; is there "
                    "too little memory? Try it with fewer workers."
                )
        else:
            self._free.remove(worker)
        self._fill()
        if not (self._starting or self._busy or self._free) and self._todo:
            raise VLJepaError(
                f"{TRIES} workers died as they began, the last of {why}: is there too little "
                "memory? Take fewer workers."
            )

    def _fill(self) -> None:
        """Begin as many workers as there is work for."""
        live = len(self._starting) + len(self._busy) + len(self._free)
        wanted = min(self._pool.size, len(self._todo) + len(self._busy))
        for _ in range(wanted - live):
            if self._false_starts < TRIES:
                self._starting.add(self._pool.begin())
