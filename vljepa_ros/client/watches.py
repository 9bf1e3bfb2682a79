"""The goals of the `watch` action as one agent sees them.

Invariant: a watch ends with its result, or with a SemanticError within the caller's timeout after
its server has ended or has forgotten it; a watch that is given up is cancelled at the server.

The action's services are called as plain services. rclpy's ActionClient (Humble to Kilted) enters a
goal in its table after it was sent: where several threads run callbacks, the answer may be faster,
and the goal's future is never done.
"""

from __future__ import annotations

import inspect
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from action_msgs.msg import GoalStatus
from action_msgs.srv import CancelGoal

from vljepa_ros.action import Watch
from vljepa_ros.stamps import to_ns

from .calls import Call, Caller, SemanticError, SemanticTimeout

QUEUE = 1000  # scores that wait, of all watches on this robot
OnFeedback = Callable[[float, int], Any]


class Watches:
    """The standing watches of one agent."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._lock = threading.Lock()
        self._goals: dict[bytes, _Goal] = {}
        self._feedback: Any = None

    def start(self, goal: Watch.Goal, on_feedback: OnFeedback | None) -> Call:
        """Send the goal; the call's result is the Moment at which it became true."""
        identity = uuid.uuid4().bytes
        # The other two follow later; a watch that is cancelled with its agent needs them at once.
        self._caller.prepare(Watch.Impl.GetResultService, "watch/_action/get_result")
        self._caller.prepare(CancelGoal, "watch/_action/cancel_goal")
        with self._lock:
            if self._feedback is None and not self._caller.closed:
                self._feedback = self._caller.subscribe(
                    Watch.Impl.FeedbackMessage, "watch/_action/feedback", self._on_feedback, QUEUE
                )
            new = _Goal(self._caller, identity, on_feedback, self._goals.pop)
            self._goals[identity] = new
        new.send(goal)
        return new.call

    def cancel(self) -> None:
        """Cancel every watch."""
        for goal in list(self._goals.values()):
            goal.call.cancel()

    def close(self) -> None:
        """Take back the subscription; after the caller was closed."""
        with self._lock:
            feedback, self._feedback = self._feedback, None
        if feedback is not None:
            self._caller.node.destroy_subscription(feedback)

    async def _on_feedback(self, message: Any) -> None:
        goal = self._goals.get(bytes(message.goal_id.uuid))
        if goal is not None:
            await goal.take(message.feedback)


class _Goal:
    """One watch, from its sending to its end."""

    def __init__(
        self,
        caller: Caller,
        identity: bytes,
        on_feedback: OnFeedback | None,
        remove: Callable[[bytes, None], Any],
    ) -> None:
        self.call = caller.promise("watch", self._on_cancel)
        self._caller = caller
        self._identity = identity
        self._on_feedback = on_feedback
        self._remove = remove
        self._patience = caller.timeout / 2  # seconds of silence until the server is asked
        self._renew_at = self._patience
        self._heard = self._alive = time.monotonic()
        self._ping: Call | None = None
        self._sent: Call | None = None
        self._result: Call | None = None

    def send(self, goal: Watch.Goal) -> None:
        """Send it to the server."""
        service = Watch.Impl.SendGoalService
        request = service.Request(goal=goal)
        request.goal_id.uuid = list(self._identity)
        self._sent = self._service(service, "send_goal", request)
        self._sent.add_done_callback(self._on_accepted)

    async def take(self, feedback: Watch.Feedback) -> None:
        """A score, which also shows that the server still has the goal."""
        self._heard = self._alive = time.monotonic()
        self._renew_at = self._patience
        if self._on_feedback is not None and not self.call.done():
            stamp = to_ns(feedback.stamp)
            done = self._on_feedback(feedback.score, stamp)
            if inspect.isawaitable(done):
                await done

    # -------------------------------------------------------------- inside

    def _service(self, kind: Any, name: str, request: Any, **options: Any) -> Call:
        return self._caller.call(kind, f"watch/_action/{name}", request, **options)

    def _on_accepted(self, sent: Call) -> None:
        error = sent.exception()
        if self.call.done() or error is not None:
            if sent.sent:
                self._cancel_at_server()  # which may have it all the same
            self._end(error=error)
        elif not sent.result().accepted:
            self._end(error=SemanticError("The perception node refused to watch; see its log."))
        else:
            self._heard = self._alive = time.monotonic()
            self._caller.look(self._look)
            self._ask_result()

    def _ask_result(self) -> None:
        """Ask for the result, which comes at the goal's end; in place of an earlier request."""
        service = Watch.Impl.GetResultService
        request = service.Request()
        request.goal_id.uuid = list(self._identity)
        earlier, self._result = (
            self._result,
            self._service(service, "get_result", request, timeout=float("inf")),
        )
        if earlier is not None:
            earlier.cancel()
        self._result.add_done_callback(self._on_result)
        if self.call.done():  # meanwhile, in another thread
            self._result.cancel()

    def _on_result(self, answer: Call) -> None:
        if answer.cancelled():
            return
        error = answer.exception()
        if error is not None:
            self._end(error=error)
            return
        status, result = answer.result().status, answer.result().result
        if result.success:
            self._end(result.moment)
        elif status == GoalStatus.STATUS_UNKNOWN:
            self._end(error=SemanticError("The perception node no longer knows the watch: it was "
                                          "started again; watch again."))  # fmt: skip
        elif status == GoalStatus.STATUS_SUCCEEDED:  # it watched to the end, and the answer is no
            self._end(error=SemanticTimeout(result.message))
        else:
            self._end(error=SemanticError(result.message or "The watch was ended at the server."))

    def _look(self, now: float) -> None:
        """Where no score comes, because the camera stands still or the server has gone: ask."""
        if self.call.done():
            self._end()
            return
        if now - self._heard >= self._renew_at:
            # A server that was started again answers at once that it does not know the goal. One
            # that does know it keeps every such request until the goal's end: so ever more rarely.
            self._renew_at *= 2
            self._ask_result()
        if now - self._alive >= self._patience and self._ping is None:
            # Any server answers this: there is no such goal to cancel.
            request = CancelGoal.Request()
            request.goal_info.goal_id.uuid = list(uuid.uuid4().bytes)
            self._ping = self._service(CancelGoal, "cancel_goal", request, timeout=self._patience)
            self._ping.add_done_callback(self._on_ping)

    def _on_ping(self, ping: Call) -> None:
        self._ping = None
        error = ping.exception()
        if error is None:
            self._alive = time.monotonic()
        else:
            self._end(error=error)

    def _on_cancel(self) -> None:
        sent = self._sent
        if sent is not None and not sent.sent:
            sent.cancel()
        elif sent is not None:
            self._cancel_at_server()  # and again, if the goal is accepted after that
        self._end()

    def _cancel_at_server(self) -> None:
        request = CancelGoal.Request()
        request.goal_info.goal_id.uuid = list(self._identity)
        self._service(CancelGoal, "cancel_goal", request, lingers=True)

    def _end(self, result: Any = None, error: Exception | None = None) -> None:
        """Settle the call, unless it has, and take back what belongs to it."""
        self.call.settle(result, error)
        self._remove(self._identity, None)
        self._caller.look_no_more(self._look)
        if self._result is not None:
            self._result.cancel()
