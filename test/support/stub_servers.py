"""Servers that do what a real graph cannot be made to do, as a process: `ask` and `watch`.

The question, or the condition, says what is done with it: "refuse WHY", "never", "die", "late 0.5";
any other is answered at once. A watch may also be "reject", "abort WHY", "silent" (until it is
cancelled) or "forget" (as a server that was started again); "after 3" comes true after so many
scores. The node prints what it got, and "cancelled" where a watch was cancelled.
"""

from __future__ import annotations

import os
import sys

import rclpy
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.task import Future

from vljepa_ros.action import Watch
from vljepa_ros.srv import Ask

QOS = QoSProfile(depth=1000)
INTERVAL = 0.05  # seconds between two scores


class StubServers(Node):
    def __init__(self) -> None:
        super().__init__("stub")
        group = ReentrantCallbackGroup()
        self.create_service(Ask, "ask", self.ask, qos_profile=QOS, callback_group=group)
        self.watch = ActionServer(
            self, Watch, "watch", self.run,
            goal_callback=self.accept, cancel_callback=self.cancel, callback_group=group,
            goal_service_qos_profile=QOS, result_service_qos_profile=QOS,
        )  # fmt: skip

    async def after(self, seconds: float) -> None:
        """Until `seconds` have passed; for ever where they are infinite."""
        future = Future()
        if seconds == float("inf"):
            await future
        timer = self.create_timer(seconds, lambda: future.done() or future.set_result(None))
        await future
        self.destroy_timer(timer)

    async def obey(self, text: str) -> str:
        """Do as the text says; why it is refused."""
        print(text, flush=True)
        order, _, rest = text.partition(" ")
        if order == "die":
            os._exit(1)
        if order in ("never", "late"):
            await self.after(float(rest or "inf"))
        return rest if order in ("refuse", "abort") else ""

    async def ask(self, request: Ask.Request, response: Ask.Response) -> Ask.Response:
        response.message = await self.obey(request.question)
        response.success = not request.question.startswith("refuse")
        response.answer = request.candidates[0] if request.candidates else request.question
        return response

    def accept(self, goal: Watch.Goal) -> GoalResponse:
        return GoalResponse.REJECT if goal.text == "reject" else GoalResponse.ACCEPT

    def cancel(self, handle: object) -> CancelResponse:
        print("cancelled", flush=True)
        return CancelResponse.ACCEPT

    async def run(self, handle: object) -> Watch.Result:
        text = handle.request.text
        result = Watch.Result()
        if text.startswith("after "):
            for k in range(int(text.split()[1])):
                await self.after(INTERVAL)
                feedback = Watch.Feedback(score=k / 10)
                feedback.stamp.sec = k + 1
                handle.publish_feedback(feedback)
        elif text == "forget":
            goal = bytes(handle.goal_id.uuid)
            while not self.watch._result_futures[goal]._callbacks:  # asked for once
                await self.after(INTERVAL)
            del self.watch._goal_handles[goal]
            await self.after(float("inf"))
        elif text == "silent":
            while not handle.is_cancel_requested:
                await self.after(INTERVAL)
            handle.canceled()
            return result
        else:
            result.message = await self.obey(text)
        if text.startswith("abort"):
            handle.abort()
        else:
            result.success = not text.startswith("refuse")
            result.moment.text = text
            handle.succeed()
        return result


def main() -> None:
    rclpy.init(args=sys.argv)
    executor = SingleThreadedExecutor()
    executor.add_node(StubServers())
    print("Ready.", flush=True)
    executor.spin()


if __name__ == "__main__":
    main()
