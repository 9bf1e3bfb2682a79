"""A narrator that keeps a log: what was said when, and the answer to a question about it.

    vljepa up --video videos/tabletop.mp4 --bundle tabletop  # in one shell
    python examples/narrator.py                              # in another; it writes narrative.jsonl

Each utterance becomes a line of JSON, with the times of the images: when the new meaning began, and
when the question was answered.

    python examples/narrator.py --ros-args -p log:=today.jsonl -p question:="What is moving?" -p
        candidates:="[no object, the orange can, the blue cube]"
"""

from __future__ import annotations

import json
import signal
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from vljepa_ros.client import SemanticClient, SemanticError
from vljepa_ros.msg import Utterance


class Narrator(Node):
    """Listens, asks, writes."""

    def __init__(self) -> None:
        super().__init__("narrator")
        path = self.declare_parameter("log", "narrative.jsonl").value
        self.question = self.declare_parameter("question", "How many objects are on the table?")
        self.candidates = self.declare_parameter("candidates", ["none", "one", "two", "three"])
        self.log = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - a line at a time
        self.semantics = SemanticClient(self)
        self.semantics.on_utterance(self.narrate)
        self.get_logger().info(f"I write to {path}.")

    async def narrate(self, said: Utterance) -> None:
        """Write down what was said; while the answer is awaited, the next utterance waits."""
        line: dict[str, Any] = {
            "time": seconds(said.segment_start),
            "camera": said.camera,
            "text": said.text,
            "confidence": round(said.confidence, 3),
            "source": said.source,
            "question": self.question.value,
        }
        try:
            candidates = list(self.candidates.value)
            found = await self.semantics.ask(self.question.value, candidates, said.camera)
            line["answer"] = found.answer
            line["certainty"] = round(max(found.scores), 3)
            line["answered_at"] = seconds(found.stamp)
        except SemanticError as error:
            line["error"] = str(error)
        self.log.write(json.dumps(line, ensure_ascii=False) + "\n")
        self.get_logger().info(f"{said.text} ({line.get('answer', 'no answer')})")


def seconds(stamp: Any) -> float:
    """A stamp in seconds."""
    return stamp.sec + stamp.nanosec / 1e9


def main() -> None:
    """Narrate until Ctrl-C."""
    # Ctrl-C is only noted here, and looked at between two callbacks. As a KeyboardInterrupt it
    # could come while rclpy makes a message, in C++, and would come out as another kind of error.
    stopped: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: stopped.append(number))
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = Narrator()
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        while not stopped:
            executor.spin_once(timeout_sec=0.1)
    finally:
        node.log.close()
        node.destroy_node()
        rclpy.shutdown()


if __name__ == "__main__":
    main()
