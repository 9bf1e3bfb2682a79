"""The one thread of a node that owns its engines.

Invariant: engines are opened, run and closed by this thread alone; no executor callback waits for
it, but for the lifecycle transitions, whose result a caller needs.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from rclpy.task import Future

log = logging.getLogger(__name__)


class Worker:
    """Runs jobs in the order they came and, between them, `work` whenever it is woken.

    `work` does one piece of what the node is for; it returns whether there may be more. What it
    raises is logged, and the thread goes on: whoever waits for a job would wait for ever.
    """

    def __init__(self, name: str, work: Callable[[], bool]) -> None:
        self._work = work
        self._condition = threading.Condition()
        self._jobs: deque[tuple[Callable[[], Any], Future]] = deque()
        self._woken = False
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There is work."""
        with self._condition:
            self._woken = True
            self._condition.notify()

    def submit(self, job: Callable[[], Any], future: Future) -> Future:
        """Run `job` soon; `future` gets its result or its exception."""
        with self._condition:
            if self._closing:
                future.set_exception(RuntimeError("The worker has ended."))
                return future
            self._jobs.append((job, future))
            self._condition.notify()
        return future

    def call(self, job: Callable[[], Any]) -> Any:
        """Run `job` and wait for its result."""
        done = threading.Event()
        future = Future()
        future.add_done_callback(lambda _: done.set())
        self.submit(job, future)
        done.wait()
        return future.result()

    def close(self, timeout: float = 2.0) -> bool:
        """End after the job or piece of work at hand; whether it ended within `timeout` seconds."""
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
                job = self._jobs.popleft() if self._jobs else None
                if job is None:
                    self._woken = False
            if job is not None:
                _settle(*job)
            else:
                self._do_work()
        for _, future in self._jobs:
            future.set_exception(RuntimeError("The worker has ended."))

    def _do_work(self) -> None:
        try:
            if self._work():
                self.wake()
        except Exception:
            log.exception("A step failed, and is left out.")


def _settle(job: Callable[[], Any], future: Future) -> None:
    try:
        result = job()
    except Exception as error:
        future.set_exception(error)
    else:
        future.set_result(result)
