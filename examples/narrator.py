"""A narrator that keeps a log: what was said when, and the answer to a question about it.

    vljepa up --video videos/tabletop.mp4 --bundle tabletop  # in one shell
    python examples/narrator.py                              # in another; it writes narrative.jsonl

Each utterance becomes a line of JSON, with the times of images: where the new meaning began
(`start`), and what the answer is about (`stamp`), named as in docs/command-line.md.

    python examples/narrator.py --ros-args -p log:=today.jsonl -p question:="What is moving?" -p
        candidates:="[no object, the orange can, the blue cube]"
"""

from __future__ import annotations

import json
import signal
import sys
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from vljepa_ros.client import SemanticClient, SemanticError
from vljepa_ros.errors import VLJepaError
from vljepa_ros.msg import Utterance
from vljepa_ros.ros.arguments import check_arguments
from vljepa_ros.ros.parameters import ParameterError, Spec, declare, unknown, values
from vljepa_ros.ros.process import init_ros
from vljepa_ros.stamps import iso, to_ns

PARAMETERS = (
    Spec("log", "narrative.jsonl", "File that lines are added to."),
    Spec("question", "How many objects are on the table?", "What is asked after each sentence."),
    Spec("candidates", ["none", "one", "two", "three"], "What the answer may be."),
)


class Narrator(Node):
    """Listens, asks, writes."""

    def __init__(self) -> None:
        super().__init__("narrator")
        if problems := [*declare(self, PARAMETERS), *unknown(self)]:
            raise ParameterError(" ".join(problems))
        given = values(self, PARAMETERS)
        self.question, self.candidates = given["question"], given["candidates"]
        self.log = open(given["log"], "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - by line
        self.semantics = SemanticClient(self)
        self.semantics.on_utterance(self.narrate)
        self.get_logger().info(f"I write to {given['log']}.")

    async def narrate(self, said: Utterance) -> None:
        """Write down what was said; while the answer is awaited, the next utterance waits."""
        line: dict[str, Any] = {
            "camera": said.camera,
            **times("start", said.segment_start),
            "text": said.text,
            "source": said.source,
            "confidence": round(said.confidence, 4),
            "question": self.question,
        }
        try:
            found = await self.semantics.ask(self.question, self.candidates, said.camera)
            line |= {**times("stamp", found.stamp), "answer": found.answer}
            line["certainty"] = round(max(found.scores), 4)
        except SemanticError as error:
            line["error"] = str(error)
        self.log.write(json.dumps(line, ensure_ascii=False) + "\n")
        self.get_logger().info(f"{said.text} ({line.get('answer', 'no answer')})")


def times(name: str, stamp: Any) -> dict[str, Any]:
    """A stamp as the commands' JSON has it: ISO 8601, and nanoseconds."""
    return {name: iso(to_ns(stamp)), f"{name}_ns": to_ns(stamp)}


def main() -> int:
    """Narrate until Ctrl-C; the exit code."""
    check_arguments(__doc__, PARAMETERS)
    # Ctrl-C is only noted here, and looked at between two callbacks. As a KeyboardInterrupt it
    # could come while rclpy makes a message, in C++, and would come out as another kind of error.
    stopped: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: stopped.append(number))
    try:
        init_ros(None)  # which leaves Ctrl-C to us
        node = Narrator()
    except (VLJepaError, OSError) as error:  # a log that cannot be written among them
        print(error, file=sys.stderr)
        rclpy.try_shutdown()
        return 1
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        while not stopped:
            executor.spin_once(timeout_sec=0.1)
    finally:
        node.log.close()
        node.destroy_node()
        rclpy.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
