"""Answers to many callers at once, no faster than their clients can take them.

DDS hands every answer of a service to every client of it, which drops those of others; a client
keeps 10 by default, and where more come before it looks, its own may be among those pushed out.
It would wait for ever. So few answers go at once, and those to a crowd one after the other.

Invariant: none waits where no more callers wait for an answer than a client keeps.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from rclpy.clock import Clock
from rclpy.task import Future
from rclpy.timer import Timer

KEPT = 8  # answers that a client keeps by default, less some that it has not looked at yet
PER_CALLER = 0.0005  # seconds in which one caller of a busy machine looks at an answer
LONGEST = 0.025  # seconds between two answers


class Host(Protocol):
    """What answers need of the node that gives them (`ros.lifecycle.ModelNode`)."""

    steady: Clock
    waiting_services: Any
    create_timer: Callable[..., Timer]
    destroy_timer: Callable[[Timer], Any]

    def promise(self) -> Future: ...


class Pace:
    """The answers of one service."""

    def __init__(self, node: Host) -> None:
        self.hurry = False  # the process ends: there is no time to wait
        self._node = node
        self._lock = threading.Lock()
        self._callers = 0
        self._most = 0  # callers at once since there were none
        self._waiting: deque[Future] = deque()
        self._timer: Timer | None = None

    def enter(self) -> None:
        """Somebody waits for an answer; from any thread."""
        with self._lock:
            self._callers += 1
            self._most = max(self._most, self._callers)

    async def leave(self) -> None:
        """Until the answer may go; in the executor's thread."""
        if self._callers > KEPT and not self.hurry:
            turn = self._node.promise()
            self._waiting.append(turn)
            if self._timer is None:
                seconds = min(PER_CALLER * self._most, LONGEST)
                self._timer = self._node.create_timer(
                    seconds, self._next, self._node.waiting_services, self._node.steady
                )
            await turn
        with self._lock:
            self._callers -= 1
            if self._callers == 0:
                self._most = 0

    def _next(self) -> None:
        """Let the answer go that has waited longest, and all where few are left."""
        few = self._callers <= KEPT + 1 or self.hurry
        for _ in range(len(self._waiting) if few else 1):
            self._waiting.popleft().set_result(None)
        if not self._waiting and self._timer is not None:
            self._node.destroy_timer(self._timer)
            self._timer = None
