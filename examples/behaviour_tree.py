"""A behaviour tree that waits for a condition, asks, and branches on the answer.

    vljepa up --video videos/tabletop.mp4 --bundle tabletop --loop    # in one shell
    python examples/behaviour_tree.py                                   # in another

Whenever nothing is moving, it looks whether the blue cube lies where it
belongs.

`WaitUntil` and `Ask` are leaves for trees of your own. They are running until
there is a result, and give up what they wait for when the tree leaves them;
where nobody answers they fail, and their feedback says why. It needs the
package py_trees: pip install py_trees.

    python examples/behaviour_tree.py --ros-args -p condition:="a hand covers the blue cube"
"""

from __future__ import annotations

import operator
import signal
import sys
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import rclpy
from rclpy.clock import Clock, ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from vljepa_ros.client import Call, SemanticClient, SemanticError
from vljepa_ros.errors import VLJepaError
from vljepa_ros.ros.arguments import check_arguments
from vljepa_ros.ros.parameters import ParameterError, Spec, declare, unknown, values
from vljepa_ros.ros.process import init_ros

try:
    import py_trees
except ImportError:
    sys.exit("behaviour_tree.py needs the package py_trees: pip install py_trees")

TICK = 0.1  # seconds between two ticks of the tree
PARAMETERS = (
    Spec("condition", "nothing is moving", "What it waits for, in words."),
    Spec("threshold", 0.0, "Cosine from which on the condition holds; 0: the bundle's calibrated "
         "one.", low=0, high=1),
    Spec("question", "Where is the blue cube?", "What it asks then."),
    Spec("candidates", ["far left", "far middle", "far right", "near left", "near middle",
                        "near right"], "What the answer may be."),
    Spec("expected", "near right", "The answer that all is well with."),
    Spec("camera", "", "Which camera; empty: the only one."),
    Spec("pause", 5.0, "Seconds from an end of the tree to its next beginning.", low=0, high=86400),
)  # fmt: skip


class Leaf(py_trees.behaviour.Behaviour):
    """A leaf that calls the robot's perception: running until the call has a result."""

    def __init__(self, name: str, start: Callable[[], Call]) -> None:
        super().__init__(name)
        self._start = start
        self._call: Call | None = None

    def initialise(self) -> None:
        """Call; py_trees says so when it comes here anew."""
        self.feedback_message = ""
        self._call = self._start()

    def update(self) -> py_trees.common.Status:
        """Look whether there is a result; never waits."""
        if self._call is None or not self._call.done():
            return py_trees.common.Status.RUNNING
        try:
            self.take(self._call.result())
        except SemanticError as error:
            self.feedback_message = str(error)
            return py_trees.common.Status.FAILURE
        return py_trees.common.Status.SUCCESS

    @abstractmethod
    def take(self, result: Any) -> None:
        """Use the result."""

    def terminate(self, new_status: py_trees.common.Status) -> None:
        """Give up what is under way: the tree goes elsewhere, or ends."""
        if self._call is not None:
            self._call.cancel()  # which does nothing where there is a result


class WaitUntil(Leaf):
    """Succeeds when `condition` is true of what the camera sees; its feedback is the cosine."""

    def __init__(
        self, semantics: SemanticClient, condition: str, camera: str = "", threshold: float = 0.0
    ) -> None:
        super().__init__(
            f"wait until: {condition}",
            lambda: semantics.watch(condition, camera, threshold, on_feedback=self._score),
        )

    def _score(self, score: float, stamp_ns: int) -> None:
        self.feedback_message = f"{score:.2f}"

    def take(self, result: Any) -> None:
        self.feedback_message = f"{result.score:.2f}"


class Ask(Leaf):
    """Succeeds with an answer, which it writes on the blackboard as `key`."""

    def __init__(
        self,
        semantics: SemanticClient,
        question: str,
        candidates: Sequence[str] = (),
        camera: str = "",
        key: str = "answer",
    ) -> None:
        super().__init__(f"ask: {question}", lambda: semantics.ask(question, candidates, camera))
        self._key = key
        self._blackboard = self.attach_blackboard_client()
        self._blackboard.register_key(key, access=py_trees.common.Access.WRITE)

    def take(self, result: Any) -> None:
        self._blackboard.set(self._key, result.answer)
        self.feedback_message = f"{result.answer}. {result.message}".strip()


class Act(py_trees.behaviour.Behaviour):
    """Stands for what your robot does: it says so, and succeeds."""

    def __init__(self, name: str, node: Node) -> None:
        super().__init__(name)
        self._node = node

    def update(self) -> py_trees.common.Status:
        self._node.get_logger().info(f"{self.name}.")
        return py_trees.common.Status.SUCCESS


class Agent(Node):
    """Ticks the tree, from its beginning again whenever it has ended."""

    def __init__(self) -> None:
        super().__init__("behaviour_tree")
        if problems := [*declare(self, PARAMETERS), *unknown(self)]:
            raise ParameterError(" ".join(problems))
        given = values(self, PARAMETERS)
        self.pause = given["pause"]
        self.rest_until = 0.0  # on the steady clock
        self.semantics = SemanticClient(self)
        self.tree = py_trees.trees.BehaviourTree(self.plant(given))
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.ticking = self.create_timer(TICK, self.tick, clock=steady)
        self.get_logger().info(f"I wait until: {given['condition']}.")

    def plant(self, given: dict[str, Any]) -> py_trees.behaviour.Behaviour:
        """The tree, for the parameters' values."""
        well = py_trees.common.ComparisonExpression("answer", given["expected"], operator.eq)
        return py_trees.composites.Sequence("look after it", memory=True, children=[
            WaitUntil(self.semantics, given["condition"], given["camera"], given["threshold"]),
            Ask(self.semantics, given["question"], given["candidates"], given["camera"]),
            py_trees.composites.Selector("what now", memory=True, children=[
                py_trees.composites.Sequence("well", memory=True, children=[
                    py_trees.behaviours.CheckBlackboardVariableValue(
                        f"is it: {given['expected']}", well
                    ),
                    Act("All is well", self),
                ]),
                Act("I put it right", self),
            ]),
        ])  # fmt: skip

    def tick(self) -> None:
        """Let the tree look around, unless it rests."""
        if time.monotonic() < self.rest_until:
            return
        self.tree.tick()
        root = self.tree.root
        if root.status == py_trees.common.Status.RUNNING:
            return
        self.rest_until = time.monotonic() + self.pause
        print(py_trees.display.unicode_tree(root, show_status=True), flush=True)
        if root.status == py_trees.common.Status.FAILURE and (failed := root.tip()) is not None:
            self.get_logger().error(f"{failed.name}: {failed.feedback_message}")


def main() -> int:
    """Tick until Ctrl-C; the exit code."""
    check_arguments(__doc__, PARAMETERS)
    # Ctrl-C is only noted here, and looked at between two callbacks. As a KeyboardInterrupt it
    # could come while rclpy makes a message, in C++, and would come out as another kind of error.
    stopped: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: stopped.append(number))
    try:
        init_ros(None)  # which leaves Ctrl-C to us
        agent = Agent()
    except VLJepaError as error:
        print(error, file=sys.stderr)
        rclpy.try_shutdown()
        return 1
    executor = SingleThreadedExecutor()
    executor.add_node(agent)
    try:
        while not stopped:
            executor.spin_once(timeout_sec=0.1)
    finally:
        agent.ticking.cancel()
        agent.tree.root.stop(py_trees.common.Status.INVALID)  # its leaves give up
        agent.semantics.destroy()
        while agent.semantics.pending:  # let the node that watches know
            executor.spin_once(timeout_sec=0.1)
        agent.destroy_node()
        rclpy.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
