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
import sys
import time

import rclpy
from geometry_msgs.msg import Twist
from rclpy.clock import Clock, ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.task import Future

from vljepa_ros.client import SemanticClient, SemanticError
from vljepa_ros.errors import VLJepaError
from vljepa_ros.ros.arguments import check_arguments
from vljepa_ros.ros.parameters import ParameterError, Spec, declare, unknown, values
from vljepa_ros.ros.process import init_ros

CONTROL = 0.1  # seconds between two commands to the wheels
BLIND = 1.0  # seconds without a score after which the robot no longer trusts its eyes
CONDITION = "a hand covers the blue cube"
WHY = "What is happening?"
POSSIBLE = [
    CONDITION, "the hand uncovers the blue cube", "a hand passes over the table",
    "nothing is moving",
]  # fmt: skip
PARAMETERS = (
    Spec("condition", CONDITION, "What it drives until, in words."),
    Spec("threshold", 0.0, "Cosine from which on the condition holds; 0: the bundle's calibrated "
         "one.", low=0, high=1),
    Spec("speed", 0.2, "How fast it drives, in metres per second.", low=-100, high=100),
    Spec("pause", 3.0, "Seconds that it stands before it drives on.", low=0, high=86400),
)  # fmt: skip


class Patrol(Node):
    """Drives, stops, asks, drives on."""

    def __init__(self) -> None:
        super().__init__("patrol")
        if problems := [*declare(self, PARAMETERS), *unknown(self)]:
            raise ParameterError(" ".join(problems))  # before the wheels are told anything
        given = values(self, PARAMETERS)
        self.condition, self.threshold = given["condition"], given["threshold"]
        self.speed, self.pause = given["speed"], given["pause"]
        self.stopping = False  # somebody wants it to end
        self.awake = Future()  # done while it does not rest
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
        """The patrol, until it is to end."""
        while not self.stopping:
            try:
                await self.round()
            except SemanticError as error:
                self.stand()
                if self.stopping:  # and that is why
                    return
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
        """Let time pass, while callbacks go on; until it is to end."""
        if self.stopping:
            return
        self.awake = Future()
        timer = self.create_timer(seconds, self.wake, clock=Clock(clock_type=ClockType.STEADY_TIME))
        await self.awake
        self.destroy_timer(timer)

    def wake(self) -> None:
        """Rest no longer."""
        if not self.awake.done():
            self.awake.set_result(None)


def main() -> int:
    """Patrol until Ctrl-C, and leave the robot standing; the exit code."""
    check_arguments(__doc__, PARAMETERS)
    # Ctrl-C is only noted here, and looked at between two callbacks. As a KeyboardInterrupt it
    # could come while rclpy makes a message, in C++, and would come out as another kind of error.
    stopped: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: stopped.append(number))
    try:
        init_ros(None)  # which leaves Ctrl-C to us: the robot is still to be stopped after it
        node = Patrol()
    except VLJepaError as error:
        print(error, file=sys.stderr)
        rclpy.try_shutdown()
        return 1
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    patrol = executor.create_task(node.patrol)
    try:
        while not stopped:
            executor.spin_once(timeout_sec=0.1)
    finally:
        node.stopping = True
        node.stand()
        node.semantics.destroy()
        node.wake()
        while node.semantics.pending or not patrol.done():  # let the node that watches know
            executor.spin_once(timeout_sec=0.1)
        node.destroy_node()
        rclpy.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
