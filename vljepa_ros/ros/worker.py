"""The one thread of a node that owns its engines.

Invariant: engines are opened, run and closed by this thread alone; no executor callback waits for
it, but for the lifecycle transitions, whose result a caller needs. Jobs and the node's own work
take turns, so that neither can starve the other.
"""

from __future__ import annotations

import inspect
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from rclpy.task import Future

log = logging.getLogger(__name__)


class Worker:
    """Runs jobs in the order they came and, in turn with them, `work` whenever it is woken.

    A job that returns a generator is done in pieces: each `yield` ends its turn and sends it to
    the back of the queue; its result is what the generator returns. `work` does one piece of what
    the node is for; it returns whether there may be more. What it raises is logged, and the thread
    goes on: whoever waits for a job would wait for ever.
    """

    def __init__(self, name: str, work: Callable[[], bool]) -> None:
        self._work = work
        self._condition = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._woken = False
        self._worked = False  # the last turn was the work's
        self._closing = False
        self._last: _Job | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There is work."""
        with self._condition:
            self._woken = True
            self._condition.notify()
        _hand_over()

    def submit(self, job: Callable[[], Any], future: Future) -> Future:
        """Run `job` soon; `future` gets its result or its exception."""
        self._put(_Job(job, future))
        return future

    def post(self, job: Callable[[], Any]) -> None:
        """Run `job` soon, for whose result nobody waits. It must not raise."""
        self._put(_Job(job, None))

    def _put(self, job: _Job) -> None:
        with self._condition:
            if self._closing:
                job.refuse()
            else:
                self._jobs.append(job)
                self._condition.notify()
        _hand_over()

    def call(self, job: Callable[[], Any]) -> Any:
        """Run `job` and wait for its result."""
        return _wait(lambda future: self.submit(job, future))

    def finish(self, last: Callable[[], Any]) -> Any:
        """End: after the piece at hand, refuse the jobs that wait, and run `last`; its result."""

        def close(future: Future) -> None:
            with self._condition:
                self._last = _Job(last, future)
                self._closing = True
                self._condition.notify()

        return _wait(close)

    def close(self, timeout: float = 2.0) -> bool:
        """End after the piece at hand; whether it ended within `timeout` seconds."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._condition:
                while not (self._jobs or self._woken or self._closing):
                    self._condition.wait()
                if self._closing:
                    break
                self._worked = self._woken and not (self._worked and self._jobs)
                if self._worked:
                    self._woken = False
                else:
                    job = self._jobs.popleft()
            if self._worked:
                self._do_work()
            elif not job.advance():
                with self._condition:
                    self._jobs.append(job)
        for job in self._jobs:
            job.refuse()
        if self._last is not None:
            self._last.advance()

    def _do_work(self) -> None:
        try:
            if self._work():
                self.wake()
        except Exception:
            log.exception("A step failed, and is left out.")


class _Job:
    """A job, the pieces that are left of it, and the future that waits for its result."""

    def __init__(self, job: Callable[[], Any], future: Future | None) -> None:
        self._job = job
        self._future = future or Future()
        self._pieces: Any = None  # a generator, where the job is one

    def advance(self) -> bool:
        """Do the next piece; whether it was the last."""
        try:
            result = self._job() if self._pieces is None else None
            if inspect.isgenerator(result):
                self._pieces = result
            if self._pieces is not None:
                next(self._pieces)
                return False
        except StopIteration as end:
            result = end.value
        except Exception as error:
            self._future.set_exception(error)
            return True
        self._future.set_result(result)
        return True

    def refuse(self) -> None:
        """Leave undone what is left."""
        if self._pieces is not None:
            self._pieces.close()
        self._future.set_exception(RuntimeError("The worker has ended."))


def _hand_over() -> None:
    """Give up the interpreter, which the woken thread else waits for, for half a millisecond."""
    time.sleep(0)


def _wait(begin: Callable[[Future], Any]) -> Any:
    """The result of a future that `begin` has the worker settle."""
    done = threading.Event()
    future = Future()
    future.add_done_callback(lambda _: done.set())
    begin(future)
    done.wait()
    return future.result()
