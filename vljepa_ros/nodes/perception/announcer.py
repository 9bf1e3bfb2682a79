"""`model_info`: which stream this node publishes, and whether another node publishes the same.

Invariant: while the node is active its `model_info` comes every second, so that whoever follows
the stream knows that it lives; the last one before it is silent names no cameras.
"""

from __future__ import annotations

import time
from typing import Any

from rclpy.qos import DurabilityPolicy, QoSProfile

from vljepa_ros.client.source import GONE
from vljepa_ros.msg import ModelInfo
from vljepa_ros.ros.diagnostics import WARN, Status
from vljepa_ros.ros.lifecycle import ModelNode

from .messages import info_message
from .stream import LiveStream


class Announcer:
    """Publishes `model_info` of a stream, and hears that of others on the same topic."""

    def __init__(self, node: ModelNode, stream: LiveStream) -> None:
        self._node, self._stream = node, stream
        self._publisher: Any = None
        self._subscription: Any = None
        self._others: dict[int, tuple[float, str]] = {}  # when heard, and a camera they share
        self._warned: set[int] = set()

    def setup(self) -> None:
        """Make the publisher, and listen to others."""
        node, latched = self._node, QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._publisher = node.create_publisher(ModelInfo, "model_info", latched)
        self._subscription = node.create_subscription(ModelInfo, "model_info", self._on_info, 10)
        self.announce()

    def teardown(self) -> None:
        """Take back what `setup` made."""
        publisher, self._publisher = self._publisher, None
        subscription, self._subscription = self._subscription, None
        self._node.destroy_publisher(publisher)
        self._node.destroy_subscription(subscription)
        self._others.clear()

    def announce(self) -> None:
        """Publish `model_info`, with the queries that stand now; from any thread."""
        perceiver, model, publisher = self._stream.perceiver, self._stream.model, self._publisher
        if perceiver is None or model is None or publisher is None:
            return
        info = info_message(model, perceiver.settings)
        info.stream_id = self._stream.id
        info.cameras = self._stream.seeing() if self._node.state == "active" else []
        publisher.publish(info)

    def status(self) -> Status:
        """Announce the stream again, and tell of others; once a second, in the executor's thread.

        The line of /diagnostics.
        """
        self.announce()
        oldest = time.monotonic() - GONE
        living = [camera for heard, camera in self._others.values() if heard > oldest]
        status = Status("stream", values={"id": self._stream.id, "others": len(living)})
        if living:
            status.level, status.message = WARN, self._sentence(living[0])
        return status

    def _on_info(self, info: ModelInfo) -> None:
        perceiver = self._stream.perceiver
        if info.stream_id == self._stream.id or perceiver is None:
            return
        shared = [camera for camera in perceiver.cameras if camera in info.cameras]
        if not shared or self._node.state != "active":
            self._others.pop(info.stream_id, None)
            return
        self._others[info.stream_id] = time.monotonic(), shared[0]
        if info.stream_id not in self._warned:
            self._warned.add(info.stream_id)
            self._node.get_logger().warning(self._sentence(shared[0]))

    def _sentence(self, camera: str) -> str:
        topic = self._node.resolve_topic_name("embeddings")
        return (
            f"another perception node publishes camera '{camera}' on '{topic}', too, and listeners "
            "follow the one that they heard first; end one of the two, or give it another "
            "namespace."
        )
