"""A pool of actors on a Ray cluster (extra `cluster`), each with a CPU, or a GPU, of its own.

Invariant: Ray retries nothing here, for the pool does; nothing is reported to Ray's makers by a
cluster that is begun here.
"""

from __future__ import annotations

import itertools
import os
import socket
from typing import Any

from vljepa_ros.errors import VLJepaError

from .pool import Died, Failed, Message, Opening, Pool, Ready, Result, Task, Worker

WAIT = 1.0  # seconds
CONNECT = 5.0  # seconds until a cluster has to answer
# Read as Ray is imported. The last: it would print to stdout that a worker died, which we say.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
}


class RayActors(Pool[Task, Result]):
    """The pool on the cluster at `address`; empty: $RAY_ADDRESS, or this machine's, or a new one.

    `size`: 0: as many as the cluster has CPUs, or, with `gpus`, GPUs; `gpus`: of each worker.
    Workers are in the folder in which this is made: `opening` and tasks mean files that every
    machine has there. Raises VLJepaError.
    """

    def __init__(
        self, opening: Opening[Task, Result], address: str = "", size: int = 0, gpus: int = 0
    ) -> None:
        os.environ.update(QUIET)
        try:
            import ray
        except ImportError as error:
            raise VLJepaError(
                f"Working on a cluster needs Ray ({error}): pip install 'ray>=2.40'."
            ) from error
        self._ray: Any = ray
        _look_for(address or os.environ.get("RAY_ADDRESS", ""))
        try:
            ray.init(
                address=address or None, log_to_driver=False, logging_level="ERROR",
                include_dashboard=False,
            )  # fmt: skip
        except Exception as error:  # ConnectionError, ValueError, RuntimeError, as it likes
            raise VLJepaError(
                f"Ray does not take '{address}' ({_line(error)}): give HOST:PORT of the cluster "
                "that this machine is in, auto, or nothing; `ray status` says what runs."
            ) from error
        there = ray.cluster_resources().get("GPU" if gpus else "CPU", 0)
        self.size = size or max(1, int(there))
        self._opening = opening
        self._actor = ray.remote(_Actor).options(
            num_cpus=1, num_gpus=gpus, max_restarts=0, max_task_retries=0
        )
        self._numbers = itertools.count()
        self._actors: dict[int, Any] = {}
        self._waits: dict[Any, int] = {}  # what is to come: whose it is

    def begin(self) -> int:
        number = next(self._numbers)
        actor = self._actors[number] = self._actor.remote(self._opening, os.getcwd())
        self._waits[actor.begin.remote()] = number
        return number

    def give(self, worker: int, task: Task) -> None:
        steps = self._actors[worker].do.options(num_returns="streaming").remote(task)
        self._waits[steps] = worker

    def end(self, worker: int) -> None:
        self._waits = {one: number for one, number in self._waits.items() if number != worker}
        self._ray.kill(self._actors.pop(worker))

    def heard(self) -> list[tuple[int, Message]]:
        found: list[tuple[int, Message]] = []
        for one in self._ray.wait(list(self._waits), num_returns=1, timeout=WAIT)[0]:
            worker = self._waits[one]
            message = self._message(one)
            if message is None or isinstance(message, Ready):
                del self._waits[one]
            if isinstance(message, Died):
                self.end(worker)
            if message is not None:
                found.append((worker, message))
        return found

    def close(self) -> None:
        self._ray.shutdown()

    def _message(self, one: Any) -> Message | None:
        """What has come; None: the steps of a task are over."""
        errors = self._ray.exceptions
        try:
            if isinstance(one, self._ray.ObjectRef):
                return self._ray.get(one)
            return self._ray.get(next(one))
        except StopIteration:
            return None
        except errors.RayError as error:
            made = isinstance(error, errors.RayTaskError) or "creation task" in str(error)
            return _unmade(error) if made else Died(_line(error))


class _Actor(Worker[Task, Result]):
    """A worker in the folder of whoever began it."""

    def __init__(self, opening: Opening[Task, Result], folder: str) -> None:
        super().__init__(opening)
        self._folder = folder

    def begin(self) -> Ready | Failed:
        where = f"On {socket.gethostname()}: "
        try:
            os.chdir(self._folder)
        except OSError as error:
            return Failed(
                f"{where}there is no folder {self._folder} ({error.strerror}); start the command "
                "in one that all machines of the cluster share, as they have to share the "
                "recordings."
            )
        begun = super().begin()
        return begun if isinstance(begun, Ready) else Failed(where + begun.sentence, begun.trace)


def _look_for(address: str) -> None:
    """VLJepaError where no cluster answers there; Ray itself would try for minutes."""
    if "://" in address:
        raise VLJepaError(
            f"Ray's client ({address}) is not supported: give the address of the cluster itself, "
            "HOST:6379, on one of its machines."
        )
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT).close()
    except (OSError, OverflowError) as error:
        raise VLJepaError(
            f"There is no Ray cluster at {address} ({error}); `ray status` on one of its machines "
            "says its address."
        ) from error


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _unmade(error: Exception) -> Failed:
    """What is wrong before there is a Worker to say it: Python finds no class there to make."""
    last = str(error).strip().splitlines()[-1].strip()
    return Failed(
        f"A worker cannot begin ({last}): every machine of the cluster needs vljepa_ros, in the "
        "Python environment that runs Ray."
    )
