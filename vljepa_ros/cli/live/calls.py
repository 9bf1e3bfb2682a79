"""Questions to a running graph from a command of its own.

Invariant: the command ends: with the answer, or with a sentence: within its timeout, or soon after
SIGINT or SIGTERM. These are noted, and looked at between two callbacks: raised as exceptions, they
could come while rclpy makes a message, in C++, and would come out of it as errors of another kind.
Nothing is heard while a node is made or taken away: rclpy keeps the interpreter to itself, and Fast
DDS can lock up there as another process leaves (eProsima/Fast-DDS, issue 6502). A command that does
not come back from there ends with exit code 1 and a trace.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vljepa_ros.console import GONE, reader_has_gone
from vljepa_ros.errors import VLJepaError
from vljepa_ros.ros.names import checked_namespace
from vljepa_ros.ros.process import init_ros, needs_ros, set_fastdds
from vljepa_ros.stamps import SECOND_NS, to_ns

if TYPE_CHECKING:
    from vljepa_ros.client import Call, SemanticClient
    from vljepa_ros.memory.store import Found

T = TypeVar("T")
LOOK = 3.0  # seconds until a service that nobody offers is taken for absent
TIMEOUT = 7.0  # seconds; longer than the nodes wait for one another, so that theirs is the sentence
SPIN = 0.1  # seconds until a signal is seen
LOCKED_UP = 30.0  # seconds; no node takes as long to be made or taken away
SERVICES = {  # what a command calls, of which type, and whose it is
    "ask": ("ask", "vljepa_ros/srv/Ask", "perception"),
    "classify": ("classify", "vljepa_ros/srv/Classify", "perception"),
    "watch": ("watch/_action/send_goal", "vljepa_ros/action/Watch_SendGoal", "perception"),
    "recall": ("recall", "vljepa_ros/srv/Recall", "memory"),
    "memory": ("pin", "vljepa_ros/srv/Pin", "memory"),
}


class Joined:
    """A node of the command's own, spun by whoever waits. `stopped`: the signals that have come."""

    def __init__(self, node: Any, stopped: list[int]) -> None:
        self.node = node
        self.stopped = stopped

    def spin(self) -> None:
        """Let what has come be handled; returns after `SPIN` seconds at the latest."""
        import rclpy

        rclpy.spin_once(self.node, timeout_sec=SPIN)
        faulthandler.cancel_dump_traceback_later()  # node and clients have been made


class Live:
    """A client of the running graph."""

    def __init__(self, joined: Joined, client: SemanticClient) -> None:
        self.client = client
        self._joined = joined

    def find(self, command: str, namespace: str, seconds: float) -> None:
        """Until somebody offers what `command` calls in `namespace`.

        VLJepaError where nobody does within `seconds`, which names who does elsewhere.
        """
        base, kind, owner = SERVICES[command]
        wanted, end = f"{namespace}/{base}", time.monotonic() + seconds
        while True:
            there = _offered(self._joined.node, base, kind)
            if wanted in there:
                return
            if self._joined.stopped:
                raise VLJepaError("Stopped before there was an answer.")
            if time.monotonic() >= end:
                raise VLJepaError(_nobody(wanted, there, owner))
            self._joined.spin()

    def result(self, call: Call, what: str = "there was an answer") -> Any:
        """The result of a call; VLJepaError where it has none, or is stopped before `what`.

        Where nobody reads the output any more, the command ends.
        """
        while not call.done() and not self._joined.stopped and not reader_has_gone():
            self._joined.spin()
        if not call.done():
            call.cancel()
            self._see_off()
            if not self._joined.stopped:
                sys.exit(GONE)
            raise VLJepaError(f"Stopped before {what}.")
        return call.result()

    def heard(self, hear: Callable[[Any], None], told: Sequence[T]) -> T:
        """What `hear` has made of /diagnostics first; VLJepaError where it makes nothing of it."""
        from diagnostic_msgs.msg import DiagnosticArray

        node, end = self._joined.node, time.monotonic() + TIMEOUT
        subscription = node.create_subscription(DiagnosticArray, "/diagnostics", hear, 100)
        try:
            while not told and not self._joined.stopped:
                if time.monotonic() > end:
                    raise VLJepaError("The memory node does not say where its store is; see its "
                                      "log, and give the folder by --store.")  # fmt: skip
                self._joined.spin()
        finally:
            node.destroy_subscription(subscription)
        if not told:
            raise VLJepaError("Stopped before the memory node had spoken.")
        return told[0]

    def _see_off(self) -> None:
        """Until the node has heard of the cancellation, or a second signal comes."""
        end = time.monotonic() + TIMEOUT
        while self.client.pending and len(self._joined.stopped) < 2 and time.monotonic() < end:
            self._joined.spin()


@contextmanager
def joined(command: str) -> Iterator[Joined]:
    """A node in the graph, without parameter services."""
    set_fastdds()
    try:
        import rclpy

        import vljepa_ros.client  # noqa: F401 - now: it takes longer than a node to be made
    except ImportError as error:
        raise needs_ros(command, error) from error
    with _noted() as stopped, ExitStack() as stack:
        stack.callback(faulthandler.cancel_dump_traceback_later)
        _end_if_locked_up()
        init_ros([])
        stack.callback(rclpy.try_shutdown)
        node = rclpy.create_node(f"vljepa_{command}", start_parameter_services=False)
        stack.callback(node.destroy_node)
        stack.callback(_end_if_locked_up)
        yield Joined(node, stopped)


@contextmanager
def live(command: str, namespace: str, timeout: float | None = None) -> Iterator[Live]:
    """A client of the graph in `namespace`, once what `command` calls is there.

    `timeout`: seconds that a call may take, and that its node is waited for; None: `TIMEOUT` and
    `LOOK`.
    """
    namespace = checked_namespace("--namespace", namespace)
    with joined(command) as graph:
        from vljepa_ros.client import SemanticClient

        client = SemanticClient(graph.node, namespace, TIMEOUT if timeout is None else timeout)
        try:
            found = Live(graph, client)
            found.find(command, namespace, LOOK if timeout is None else timeout)
            yield found
        finally:
            _end_if_locked_up()
            client.destroy()


def _offered(node: Any, base: str, kind: str) -> list[str]:
    """The names of the services of a type that end in `base`."""
    return [
        name
        for name, kinds in node.get_service_names_and_types()
        if kind in kinds and name.endswith(f"/{base}")
    ]


def _nobody(wanted: str, there: Sequence[str], owner: str) -> str:
    """That nobody offers a service, who offers it elsewhere, and what to do."""
    name, *others = (one.split("/_action/")[0] for one in (wanted, *sorted(there)))
    if not others:
        domain = os.environ.get("ROS_DOMAIN_ID", "0")
        return (
            f"Nobody offers {name} in ROS domain {domain}: start the {owner} node (vljepa up or "
            "the launch file), with the same ROS_DOMAIN_ID."
        )
    places = [one.rpartition("/")[0] for one in others]
    given = [f"give --namespace {place}" if place else "leave --namespace out" for place in places]
    are = "is" if len(others) == 1 else "are"
    return f"Nobody offers {name}; {', '.join(others)} {are} there: {' or '.join(given)}."


def _end_if_locked_up() -> None:
    """End the process, with a trace, unless that is cancelled in time."""
    if sys.stderr is not None:
        faulthandler.dump_traceback_later(LOCKED_UP, exit=True)


@contextmanager
def _noted() -> Iterator[list[int]]:
    """SIGINT and SIGTERM, as they come; they interrupt nothing."""
    noted: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: noted.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def recall_live(
    text: str,
    cameras: Sequence[str] = (),
    after_ns: int = 0,
    before_ns: int = 0,
    limit: int = 0,
    fleet: bool = False,
    namespace: str = "",
) -> tuple[list[Found], float]:
    """What the running memory node recalls, best first; the moments are without embeddings.

    And the cosine below which a match is weak; 0 where the node does not say. Bounds in
    nanoseconds, 0: none. `fleet`: it is to ask the fleet's server. VLJepaError where it refuses, or
    does not answer in time.
    """
    from vljepa_ros.ros.messages import to_time

    after, before = (to_time(bound) for bound in (after_ns, before_ns))
    with live("recall", namespace) as graph:
        call = graph.client.recall(text, cameras, after, before, limit, fleet)
        response = graph.result(call)
    return [_found(message) for message in response.moments], float(response.threshold)


def pin_live(ids: Sequence[str], pinned: bool, namespace: str) -> None:
    """Have the running memory node pin moments, or unpin them. VLJepaError where it refuses one."""
    with live("memory", namespace) as graph:
        for one in ids:
            graph.result(graph.client.pin(one, pinned), f"{one} was pinned")


def store_live(namespace: str) -> Path:
    """The folder of the running memory node's store, as it tells once a second.

    VLJepaError where there is no such node, or it says nothing.
    """
    told: list[Path] = []
    where = checked_namespace("--namespace", namespace)

    def hear(message: Any) -> None:
        for status in message.status:
            node, _, part = status.name.partition(": ")
            if part == "store" and f"/{node}".rpartition("/")[0] == where:
                told.extend(Path(pair.value) for pair in status.values if pair.key == "folder")

    with live("memory", namespace) as graph:
        return graph.heard(hear, told)


def _found(message: Any) -> Found:
    import numpy as np

    from vljepa_ros.memory.moment import Moment
    from vljepa_ros.memory.store import Found

    start_ns = to_ns(message.start)
    begin_ns = start_ns - round(message.position * SECOND_NS) if message.position >= 0 else -1
    moment = Moment(
        robot=message.robot, camera=message.camera, query=message.query,
        segment_id=message.segment_id, start_ns=start_ns, end_ns=to_ns(message.end),
        embedding=np.empty(0, np.float32), text=message.text,
        thumbnail=bytes(message.thumbnail.data), pinned=message.pinned,
        familiarity=message.familiarity, episode=message.episode, task=message.task,
        video_start_ns=begin_ns,
    )  # fmt: skip
    return Found(moment, message.score)
