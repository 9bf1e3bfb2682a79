"""A node that only listens: what `vljepa up` shows comes through it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile

from vljepa_ros.msg import ModelInfo, SemanticChange, SemanticEmbedding, Utterance

Handler = Callable[[Any], None]


class ListenerNode(Node):
    """Hands every message of the semantic stream to a callback, in its spinner's thread."""

    def __init__(
        self, on_info: Handler, on_embedding: Handler, on_change: Handler, on_utterance: Handler
    ) -> None:
        super().__init__("listener", start_parameter_services=False)
        self.finished = threading.Event()
        self.exit_code = 0
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.create_subscription(ModelInfo, "model_info", on_info, latched)
        self.create_subscription(SemanticEmbedding, "embeddings", on_embedding, 100)
        self.create_subscription(SemanticChange, "changes", on_change, 100)
        self.create_subscription(Utterance, "utterances", on_utterance, 100)

    def end(self) -> None:
        """There is nothing to put in order."""
