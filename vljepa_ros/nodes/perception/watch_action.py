"""The `watch` action of the perception node: "tell me when …".

Invariant: every goal is accepted, as a refusal could carry no sentence, and ends exactly once:
with the moment its condition came true, or with a sentence: refused, cancelled, out of time, its
client gone, or the node no longer active.

A goal stays accepted, and is executed only to be ended: rclpy would otherwise keep a coroutine for
each and resume all of them whenever anything happens. Their states are changed by the executor's
thread alone; the worker scores them.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rclpy.action import ActionServer, CancelResponse
from rclpy.qos import QoSProfile
from rclpy.timer import Timer
from std_msgs.msg import Header

from vljepa_ros.action import Watch
from vljepa_ros.errors import VLJepaError
from vljepa_ros.msg import Moment
from vljepa_ros.perception.conditions import Conditions
from vljepa_ros.perception.perceiver import Step
from vljepa_ros.perception.texts import QuestionError, checked_text, find_camera, note, shown
from vljepa_ros.perception.thumbnails import thumbnail
from vljepa_ros.ros.diagnostics import Status
from vljepa_ros.ros.lifecycle import BURST, ModelNode
from vljepa_ros.ros.messages import jpeg_message, to_time
from vljepa_ros.ros.pace import Pace
from vljepa_ros.stamps import to_ns

from .cameras import node_name
from .stream import LiveStream

MOST = 256  # watches at once
TICK = 0.1  # seconds between two looks at the timeouts, and at who may have sent a new goal
LOOK = 1.0  # seconds between two looks at whether the clients are there
DISCOVERY = 5.0  # seconds in which the client of a new goal is to be found
NAMELESS = "_NODE_NAME_UNKNOWN_"  # rmw's word for a node that discovery has not named yet
FAREWELL = 0.3  # seconds in which a process that ends still sends the results of its watches


@dataclass(eq=False)
class _Watch:
    """A goal that stands. `began_ns`, on the ROS clock; 0: that clock has not begun."""

    handle: Any
    camera: str
    text: str
    threshold: float
    timeout_ns: int
    began_ns: int
    best: float | None = None  # score so far
    accepted: float = field(default_factory=time.monotonic)
    there: dict[bytes, str] = field(default_factory=dict)  # who was there: GIDs and names

    @property
    def key(self) -> bytes:
        return bytes(self.handle.goal_id.uuid)

    @property
    def young(self) -> bool:
        """Whether discovery may still name its client."""
        return time.monotonic() - self.accepted < DISCOVERY

    def meet(self, there: Mapping[bytes, str]) -> None:
        """Remember who subscribes to feedback: GIDs and names of their nodes."""
        self.there |= there

    def clients(self) -> set[bytes]:
        """The GIDs of whoever may have asked.

        Those of the name in the goal; else those who left before discovery named them; else, as a
        bridge hides names, all who were there.
        """
        asked = self.handle.request.client
        named = {gid for gid, name in self.there.items() if asked in ("", name)}
        nameless = {gid for gid, name in self.there.items() if name.endswith(NAMELESS)}
        return named or nameless or set(self.there)


class Watches:
    """The action server, for the node's life: a node that is not active says so."""

    def __init__(self, node: ModelNode, stream: LiveStream) -> None:
        self._node = node
        self._stream = stream
        self._lock = threading.Lock()
        self._standing: dict[bytes, _Watch] = {}
        self._conditions: dict[str, Conditions] = {}  # by camera
        self._timer: Timer | None = None
        self._pace = Pace(node)
        self.counts: Counter[str] = Counter()
        self._server = ActionServer(
            node, Watch, "watch", lambda handle: Watch.Result(),
            callback_group=node.waiting_services,
            handle_accepted_callback=self._accepted, cancel_callback=self._cancelled,
            goal_service_qos_profile=BURST, result_service_qos_profile=BURST,
            cancel_service_qos_profile=BURST, feedback_pub_qos_profile=QoSProfile(depth=MOST),
        )  # fmt: skip

        node.create_timer(LOOK, self._end_forsaken, clock=node.steady)

    def destroy(self) -> None:
        """Take the action server back, with the node."""
        self._server.destroy()

    def hurry(self) -> float:
        """The process ends: seconds for which it should still spin, to send the results."""
        self._pace.hurry = True
        return FAREWELL if self._standing else 0.0

    def setup(self) -> None:
        """Make room for the conditions of the model's cameras."""
        model = self._stream.model
        assert model is not None
        self._conditions = {name: Conditions(model) for name in self._stream.cameras}

    def stop(self, why: str) -> None:
        """End every watch with a sentence."""
        with self._lock:
            standing = list(self._standing.values())
        for watch in standing:
            self._end(watch, why)

    def status(self) -> Status:
        """The line of /diagnostics."""
        names = ("asked", "came true", "ended", "refused")
        counts = {name: self.counts[name] for name in names}
        return Status("watches", values={"standing": len(self._standing), **counts})

    # -------------------------------------------------------------- the worker's side

    def publish(self, steps: Sequence[Step], picture: Callable[[str], Any]) -> None:
        """Score every watch for steps of the first standing query.

        `picture(camera)`: the newest picture, RGB uint8, of a camera that stepped.
        """
        if not self._standing:
            return
        started = time.monotonic()
        for step in steps:
            judged = self._conditions[step.camera].judge(step.embedding)
            moment: Moment | None = None
            for judgement in judged:
                watch = self._standing.get(judgement.key)  # type: ignore[call-overload]
                if watch is None:
                    continue
                if watch.best is None or judgement.score > watch.best:
                    watch.best = judgement.score
                watch.handle.publish_feedback(
                    Watch.Feedback(score=judgement.score, stamp=to_time(step.stamp_ns))
                )
                if judgement.holds:
                    moment = moment or _moment(step, picture(step.camera))
                    why = self._note(step)
                    self._end(watch, why, _scored(moment, judgement.score))
        self._stream.stages.lap("watches", started)

    def _note(self, step: Step) -> str:
        """What to make of a condition that came true; empty where what is seen is known."""
        model = self._stream.model
        assert model is not None
        return note(model.bundle, step.familiarity, "that the condition holds")

    def _stand(self, watch: _Watch) -> Generator[None, None, None]:
        yield from self._conditions[watch.camera].add(watch.key, watch.text, watch.threshold)
        if watch.key not in self._standing:  # it has ended meanwhile
            self._conditions[watch.camera].remove(watch.key)

    # -------------------------------------------------------------- the executor's side

    def _accepted(self, handle: Any) -> None:
        self.counts["asked"] += 1
        try:
            watch = self._checked(handle)
        except VLJepaError as error:
            self.counts["refused"] += 1
            _conclude(handle, str(error), None)
            return
        watch.meet(self._clients())
        with self._lock:
            self._standing[watch.key] = watch
        if self._timer is None:
            self._timer = self._node.create_timer(TICK, self._look, clock=self._node.steady)
        worker = self._node.worker
        assert worker is not None  # the node is active
        future = self._node.promise()
        future.add_done_callback(lambda done: self._stands(watch, done))
        worker.submit(lambda: self._stand(watch), future)

    def _checked(self, handle: Any) -> _Watch:
        """The watch that a goal asks for; QuestionError, a sentence, where it cannot be had."""
        goal = handle.request
        self._stream.check_active()
        text = checked_text("condition", goal.text)
        camera = find_camera(goal.camera, self._stream.ready())
        if not 0 <= goal.threshold <= 1:
            raise QuestionError(
                f"The threshold must be in 0..1, where 0 is the bundle's, not {goal.threshold:g}."
            )
        timeout_ns = to_ns(goal.timeout)
        if timeout_ns < 0:
            raise QuestionError(
                f"The timeout must not be negative, as {timeout_ns / 1e9:g} s; 0 is none."
            )
        if len(self._standing) >= MOST:
            raise QuestionError(f"{MOST} watches stand already; cancel one, then ask again.")
        now_ns = self._node.get_clock().now().nanoseconds
        return _Watch(handle, camera, text, goal.threshold, timeout_ns, now_ns)

    def _stands(self, watch: _Watch, done: Any) -> None:
        """End a watch whose condition could not be embedded."""
        error = done.exception()
        if error is not None:
            self._end(watch, f"The condition cannot be watched for: {error}")

    def _cancelled(self, handle: Any) -> CancelResponse:
        watch = self._standing.get(bytes(handle.goal_id.uuid))
        if watch is None:
            return CancelResponse.REJECT
        self._end(watch, "The watch was cancelled.")
        return CancelResponse.ACCEPT

    def _look(self) -> None:
        """End the watches whose time is over, by the ROS clock; meet the clients of new ones."""
        now_ns = self._node.get_clock().now().nanoseconds
        with self._lock:
            timed = [watch for watch in self._standing.values() if watch.timeout_ns]
            young = [watch for watch in self._standing.values() if watch.young]
        if not timed and not young and self._timer is not None:
            self._node.destroy_timer(self._timer)
            self._timer = None
        there = self._clients() if young else {}
        for watch in young:
            watch.meet(there)
        for watch in timed:
            if watch.began_ns == 0 or now_ns < watch.began_ns:  # time has begun, or begun anew
                watch.began_ns = now_ns
            if now_ns - watch.began_ns >= watch.timeout_ns:
                why = _too_late(watch, self._conditions[watch.camera].threshold)
                self._end(watch, why, watched=True)

    def _end_forsaken(self) -> None:
        """End the watches whose client has gone, by the subscribers to feedback: each client is.

        rclpy does not tell who sent a goal.
        """
        with self._lock:
            standing = [watch for watch in self._standing.values() if not watch.young]
        if not standing:
            return
        there = self._clients()
        for watch in standing:
            if watch.clients().isdisjoint(there):
                why = f"The client that watched for '{shown(watch.text)}' has gone."
                self._node.get_logger().info(why)
                self._end(watch, why)

    def _clients(self) -> dict[bytes, str]:
        """Who subscribes to feedback: GIDs, and the names of their nodes."""
        subscribers = self._node.get_subscriptions_info_by_topic("watch/_action/feedback")
        return {bytes(one.endpoint_gid): node_name(one) for one in subscribers}

    def _end(
        self, watch: _Watch, why: str, moment: Moment | None = None, watched: bool = False
    ) -> None:
        """End a watch, once; from any thread. `watched`: to its end, and the answer is no."""
        with self._lock:
            if self._standing.pop(watch.key, None) is None:
                return
        self._conditions[watch.camera].remove(watch.key)
        self.counts["came true" if moment is not None else "ended"] += 1
        executor = self._node.executor
        if executor is not None:
            self._pace.enter()
            # A task, as the state that a request to cancel makes follows on its callback.
            executor.create_task(self._conclude_in_turn, watch.handle, why, moment, watched)

    async def _conclude_in_turn(self, handle: Any, *outcome: Any) -> None:
        await self._pace.leave()
        _conclude(handle, *outcome)


def _conclude(handle: Any, why: str, moment: Moment | None, watched: bool = False) -> None:
    """Send a goal's result; in the executor's thread.

    The status tells who asked what the sentence tells a person: succeeded, if it was watched for as
    long as was wanted, true or not; aborted, if it could not be.
    """

    def result(handle: Any) -> Watch.Result:
        if moment is not None:
            handle.succeed()
            return Watch.Result(success=True, message=why, moment=moment)
        if handle.is_cancel_requested:
            handle.canceled()
        elif watched:
            handle.succeed()
        else:
            handle.abort()
        return Watch.Result(message=why)

    handle.execute(result)


def _moment(step: Step, picture: Any) -> Moment:
    """The moment of a step: from its segment's first step to this one."""
    header = Header(stamp=to_time(step.stamp_ns), frame_id=step.frame_id)
    return Moment(
        camera=step.camera,
        query=step.query,
        segment_id=step.segment_id,
        start=to_time(step.segment_start_ns),
        end=to_time(step.stamp_ns),
        thumbnail=jpeg_message(thumbnail(picture), header),
        familiarity=step.familiarity,
    )


def _scored(moment: Moment, score: float) -> Moment:
    """The same moment, with another condition's score."""
    return Moment(
        camera=moment.camera, query=moment.query, segment_id=moment.segment_id,
        start=moment.start, end=moment.end, thumbnail=moment.thumbnail, score=score,
        familiarity=moment.familiarity,
    )  # fmt: skip


def _too_late(watch: _Watch, default: float) -> str:
    """Why a watch ended without its condition."""
    told = f"'{shown(watch.text)}' did not come true within {watch.timeout_ns / 1e9:g} s"
    if watch.best is None:
        return f"{told}; camera '{watch.camera}' made no step in that time."
    return f"{told}; its best score was {watch.best:.2f} of {watch.threshold or default:.2f}."
