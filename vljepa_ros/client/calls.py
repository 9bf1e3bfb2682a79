"""Service calls that settle: each is answered, refused or given up within its time.

Invariant: a `Call` is settled exactly once, by whichever comes first: the answer, its deadline,
`cancel` or the caller's end. Deadlines are kept by one timer of the node, on the steady clock, that
runs only while calls are under way; nothing here has a thread of its own.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import InvalidNamespaceException
from rclpy.node import SubscriptionEventCallbacks  # whose own module has two names, by distribution
from rclpy.qos import QoSProfile
from rclpy.task import Future, Task
from rclpy.validate_namespace import validate_namespace

from vljepa_ros.errors import VLJepaError
from vljepa_ros.srv import Pin, Recall

TICK = 0.1  # seconds between two looks at the calls under way
STILL = 5.0  # seconds without such a look until a waiting thread is told that nobody spins
QOS = QoSProfile(depth=1000)  # answers; the default, 10, loses those of many calls at once
Read = Callable[[Any], Any]
_DESTROYED = "{} has no result: the client was destroyed."


class SemanticError(VLJepaError):
    """A call has no result, and the message says why and what to do."""


class SemanticTimeout(SemanticError):  # noqa: N818 - agents know it by this name
    """What was waited for did not happen in time, though nothing failed."""


class Call(Future):  # type: ignore[misc]  # rclpy hands out Any
    """A call under way: a future of rclpy that can also be waited for.

    In a coroutine of the executor (an async callback): `await call`. Anywhere:
    `add_done_callback`, `done()`, `result()`, `exception()`, `cancel()`. In a thread that spins
    nothing: `wait()`. Where there is no result, they raise SemanticError.
    """

    def __init__(self, caller: Caller, what: str, on_cancel: Callable[[], None]) -> None:
        super().__init__(executor=caller.node.executor)
        self._caller = caller
        self.what = what
        self._on_cancel = on_cancel
        self._begun = time.monotonic()
        self._once = threading.Lock()
        self._claimed = False
        self._given_up = False
        self._settled = threading.Event()
        self.sent = False  # whether the request has gone out
        self.quiet = False  # whether nobody will look at its error

    def settle(self, result: Any = None, error: Exception | None = None) -> bool:
        """Take the result or the error, unless there is one; whether it was taken."""
        return self._finish(result, error, False)

    def cancel(self) -> None:
        """Give the call up, unless it has settled: whoever waits for it gets a SemanticError."""
        if self._finish(None, SemanticError(f"{self.what} was cancelled."), True):
            self._on_cancel()

    def cancelled(self) -> bool:
        """Whether it was given up by `cancel`."""
        return self._given_up

    def wait(self, timeout: float | None = None) -> Any:
        """The result, waited for in a thread other than the executor's.

        Raises SemanticTimeout after `timeout` seconds (None: no limit), while the call goes on;
        SemanticError where the call fails, where nobody spins the node, and inside a callback,
        which would wait for itself.
        """
        if _inside_callback():
            raise SemanticError(
                f"{self.what} is waited for inside a callback, which would block its executor: "
                "make the callback `async def` and `await` the call, or use add_done_callback."
            )
        end = float("inf") if timeout is None else time.monotonic() + timeout
        while not self._settled.wait(max(0.0, min(TICK, end - time.monotonic()))):
            if time.monotonic() >= end:
                raise SemanticTimeout(f"{self.what} has no result after {timeout:g} s.")
            self._caller.check_spun(self._begun)
        return self.result()

    def _finish(self, result: Any, error: Exception | None, given_up: bool) -> bool:
        with self._once:
            if self._claimed:
                return False
            self._claimed = True
        self._given_up = given_up
        if error is None:
            self.set_result(result)
        else:
            self.set_exception(error)
            if given_up or self.quiet:
                self.exception()  # or rclpy complains that nobody did
        self._settled.set()
        self._caller.wake()  # for a coroutine that awaits it
        return True


@dataclass(eq=False)
class _Request:
    """A request on its way."""

    call: Call
    client: Any
    message: Any
    read: Read
    timeout: float
    deadline: float
    lingers: bool
    answer: Future | None = None  # None: not sent yet


class Caller:
    """Calls services for one node, from any thread. `timeout`: seconds that a call may take."""

    def __init__(self, node: Any, namespace: str, timeout: float) -> None:
        self.node = node
        self.timeout = timeout
        self._namespace = _namespace(namespace)
        self._group = ReentrantCallbackGroup()
        self._lock = threading.RLock()
        self._clients: dict[str, Any] = {}
        self._open: set[_Request] = set()
        self._looks: set[Callable[[float], None]] = set()
        self._closed = False
        self._ticked = time.monotonic()
        self._timer: Any = node.create_timer(
            TICK, self._tick, callback_group=MutuallyExclusiveCallbackGroup(),
            clock=Clock(clock_type=ClockType.STEADY_TIME),  # the simulation's clock may stand still
        )  # fmt: skip
        self._timer.cancel()

    def name(self, base: str) -> str:
        """A topic's or service's name in the namespace; where that is empty, in the node's own."""
        return f"/{self._namespace}/{base}" if self._namespace else base

    @property
    def closed(self) -> bool:
        """Whether `close` was called: nothing can be called any more."""
        return self._closed

    @property
    def pending(self) -> int:
        """Requests that are neither answered nor given up."""
        return len(self._open)

    def promise(self, base: str, on_cancel: Callable[[], None] = lambda: None) -> Call:
        """A call of the service `base` that somebody else settles."""
        name = self.node.resolve_service_name(self.name(base))
        return Call(self, name.split("/_action/")[0], on_cancel)  # what people know an action by

    def call(
        self,
        kind: Any,
        base: str,
        message: Any,
        read: Read = lambda response: response,
        timeout: float | None = None,
        lingers: bool = False,
    ) -> Call:
        """Call the service `base` of type `kind`; the result is what `read` makes of the response.

        `read` raises SemanticError where the response says no. `timeout`: seconds until it is given
        up, as for a service that is not there; None: the caller's own. `lingers`: `close` lets it
        go on, and nobody will look at its error.
        """
        seconds = self.timeout if timeout is None else timeout
        call = self.promise(base, lambda: self._forget(request))
        call.quiet = lingers
        with self._lock:
            if self._closed:
                call.settle(error=SemanticError(_DESTROYED.format(call.what)))
                return call
            client = self._client(kind, base)
            deadline = time.monotonic() + seconds
            request = _Request(call, client, message, read, seconds, deadline, lingers)
            self._open.add(request)
            self._start()
        self._send(request)
        return call

    def subscribe(
        self, kind: Any, base: str, callback: Callable[[Any], Any], qos: QoSProfile | int
    ) -> Any:
        """A subscription whose callbacks run one after the other, in order.

        It may be destroyed in any thread: it has no QoS events, over which an executor that looks
        at them in that moment would fail.
        """
        return self.node.create_subscription(
            kind, self.name(base), callback, qos,
            callback_group=MutuallyExclusiveCallbackGroup(),
            event_callbacks=SubscriptionEventCallbacks(use_default_callbacks=False),
        )  # fmt: skip

    def prepare(self, kind: Any, base: str) -> None:
        """Let the service `base` be found, so that a later call reaches it at once."""
        with self._lock:
            if not self._closed:
                self._client(kind, base)

    def look(self, look: Callable[[float], None]) -> None:
        """Call `look(time.monotonic())` at every tick, until `look_no_more`."""
        with self._lock:
            self._looks.add(look)
            self._start()

    def look_no_more(self, look: Callable[[float], None]) -> None:
        """Undo `look`."""
        with self._lock:
            self._looks.discard(look)

    def wake(self) -> None:
        """Let the executor look again at what it waits for."""
        executor = self.node.executor
        if executor is not None:
            executor.wake()

    def check_spun(self, begun: float) -> None:
        """SemanticError where the node's callbacks have not run since `begun`, or for too long."""
        if not self.node.context.ok():
            raise SemanticError("ROS was shut down before the call had a result.")
        if time.monotonic() - max(begun, self._ticked) > STILL:
            raise SemanticError(
                f"Nobody spins {self.node.get_fully_qualified_name()}, or a callback of it blocks: "
                "spin it in another thread, e.g. by an executor, while this one waits."
            )

    def close(self) -> None:
        """Give up what is under way, and take everything back when nothing lingers any more."""
        with self._lock:
            self._closed = True
            given_up = [request for request in self._open if not request.lingers]
            self._open.difference_update(given_up)
            self._looks.clear()
        for request in given_up:
            request.call.quiet = True  # whoever gave it up may have left it
            request.call.settle(error=SemanticError(_DESTROYED.format(request.call.what)))
        self._take_back()

    # -------------------------------------------------------------- inside

    def _take_back(self) -> None:
        """Destroy the clients and the timer if the caller is closed and nothing lingers."""
        with self._lock:
            if not self._closed or self._open or self._timer is None:
                return
            clients, self._clients = self._clients, {}
            timer, self._timer = self._timer, None
        for client in clients.values():
            self.node.destroy_client(client)
        self.node.destroy_timer(timer)

    def _client(self, kind: Any, base: str) -> Any:
        """The client of a service; under the lock."""
        if base not in self._clients:
            self._clients[base] = self.node.create_client(
                kind, self.name(base), qos_profile=QOS, callback_group=self._group
            )
        return self._clients[base]

    def _start(self) -> None:
        """Let the timer run; under the lock."""
        if self._timer is not None and self._timer.is_canceled():
            self._timer.reset()
            self.wake()

    def _send(self, request: _Request) -> None:
        """Send the request if the service is there."""
        with self._lock:
            if request not in self._open or request.answer is not None:
                return
            if not request.client.service_is_ready():
                return
            answer = request.answer = request.client.call_async(request.message)
            request.call.sent = True
        answer.add_done_callback(lambda answer: self._answered(request, answer))

    def _answered(self, request: _Request, answer: Future) -> None:
        self._forget(request)
        try:
            request.call.settle(request.read(answer.result()))
        except SemanticError as error:
            request.call.settle(error=error)

    def _forget(self, request: _Request) -> None:
        with self._lock:
            self._open.discard(request)
        if request.answer is not None:
            request.client.remove_pending_request(request.answer)

    def _tick(self) -> None:
        now = self._ticked = time.monotonic()
        with self._lock:
            requests, looks = list(self._open), list(self._looks)
        for request in requests:
            if now >= request.deadline:
                self._forget(request)
                request.call.settle(error=SemanticError(self._why(request)))
            else:
                self._send(request)
        for look in looks:
            look(now)
        with self._lock:
            if self._timer is not None and not self._open and not self._looks:
                self._timer.cancel()
        self._take_back()

    def _why(self, request: _Request) -> str:
        """Why a request has no answer in time."""
        name = request.call.what
        memory = request.client.srv_type in (Pin, Recall)
        owner = "the memory node" if memory else "the perception node"
        if request.answer is None:
            return (
                f"Nobody offered {name} within {request.timeout:g} s: start {owner} (vljepa up or "
                "the launch file), with the same ROS_DOMAIN_ID and namespace."
            )
        return (
            f"{name} did not answer within {request.timeout:g} s: {owner} has ended or is too "
            "busy; see its log, and start it again if it has ended."
        )


def _namespace(name: str) -> str:
    """A namespace without slashes around it; SemanticError where it cannot be one."""
    try:
        validate_namespace("/" + name.strip("/"))
    except InvalidNamespaceException as error:
        reason = " ".join(str(error).split())
        raise SemanticError(f"'{name}' is no namespace: {reason}") from None
    return name.strip("/")


def _inside_callback() -> bool:
    """Whether an executor runs this code."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code is Task.__call__.__code__:
            return True
        frame = frame.f_back
    return False
