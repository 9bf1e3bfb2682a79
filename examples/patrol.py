"""A patrol that stops when a condition holds, asks why, and goes on.

    vljepa up --video videos/tabletop.mp4 --bundle tabletop --loop    # in one shell
    python examples/patrol.py                                           # in another

It drives (geometry_msgs/Twist on `cmd_vel`) until what the camera sees meets the parameter
`condition`; then it stands, logs the answers to its questions, and drives on after `pause` seconds.
Where nobody watches for it, or the camera has stopped, it stands, too.

    python examples/patrol.py --ros-args -p condition:="the yellow mug falls off the table"
"""

from __future__ import annotations

import signal
import time

import rclpy
from geometry_msgs.msg import Twist
from rclpy.clock import Clock, ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future

from vljepa_ros.client import SemanticClient, SemanticError

CONTROL = 0.1  # seconds between two commands to the wheels
BLIND = 1.0  # seconds without a score after which the robot no longer trusts its eyes
CONDITION = "a hand covers the blue cube"
WHY = "What is happening?"
POSSIBLE = [
    CONDITION, "the hand uncovers the blue cube", "a hand passes over the table",
    "nothing is moving",
]  # fmt: skip


class Patrol(Node):
    """Drives, stops, asks, drives on."""

    def __init__(self) -> None:
        super().__init__("patrol")
        self.condition = self.declare_parameter("condition", CONDITION).value
        self.threshold = self.declare_parameter("threshold", 0.0).value  # 0: the calibrated one
        self.speed = self.declare_parameter("speed", 0.2).value  # m/s
        self.pause = self.declare_parameter("pause", 3.0).value  # s
        self.semantics = SemanticClient(self)
        self.drive_until = 0.0  # on the steady clock
        self.wheels = self.create_publisher(Twist, "cmd_vel", 10)
        self.create_timer(CONTROL, self.drive)

    def drive(self) -> None:
        """Tell the wheels, again and again, whether to turn."""
        command = Twist()
        command.linear.x = self.speed if time.monotonic() < self.drive_until else 0.0
        self.wheels.publish(command)

    async def patrol(self) -> None:
        """The patrol, for ever."""
        while True:
            try:
                await self.round()
            except SemanticError as error:
                self.stand()
                self.get_logger().error(f"I stand still, as I cannot see: {error}")
            await self.sleep(self.pause)

    async def round(self) -> None:
        """Drive until the condition holds; stop, and ask why."""
        self.get_logger().info(f"I drive until: {self.condition}.")
        moment = await self.semantics.watch(
            self.condition, threshold=self.threshold, on_feedback=self.go
        )
        self.stand()
        self.get_logger().info(f"I stop: {self.condition} ({moment.score:.2f}).")
        camera = moment.camera
        seen = await self.semantics.ask(WHY, camera=camera)
        likeliest = await self.semantics.ask(WHY, POSSIBLE, camera)
        sure = max(likeliest.scores)
        self.get_logger().info(
            f"I see: {seen.answer}. Of what I expect here: {likeliest.answer} ({sure:.0%})."
        )

    def go(self, score: float, stamp_ns: int) -> None:
        """Drive a little further: somebody watches, and what is waited for has not come."""
        self.drive_until = time.monotonic() + BLIND

    def stand(self) -> None:
        """Stop at once."""
        self.drive_until = 0.0
        self.drive()

    async def sleep(self, seconds: float) -> None:
        """Let time pass, while callbacks go on."""
        awake = Future()
        timer = self.create_timer(
            seconds, lambda: awake.done() or awake.set_result(None),
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )  # fmt: skip
        await awake
        self.destroy_timer(timer)


def main() -> None:
    """Patrol until Ctrl-C, and leave the robot standing."""
    # Ctrl-C is only noted here, and looked at between two callbacks. As a KeyboardInterrupt it
    # could come while rclpy makes a message, in C++, and would come out as another kind of error.
    stopped: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: stopped.append(number))
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)  # it is still to speak after Ctrl-C
    node = Patrol()
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    executor.create_task(node.patrol)
    try:
        while not stopped:
            executor.spin_once(timeout_sec=0.1)
    finally:
        node.stand()
        node.semantics.destroy()
        while node.semantics.pending:  # let the node that watches know
            executor.spin_once(timeout_sec=0.1)
        node.destroy_node()
        rclpy.shutdown()


if __name__ == "__main__":
    main()
