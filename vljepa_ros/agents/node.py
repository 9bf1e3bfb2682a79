"""The node by which the server joins the graph."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable

from rclpy.node import Node

from .graph import Graph


class AgentNode(Node):
    """Listens and asks for one server; spun by a `Spinner`.

    Its name is one of its own: a graph may have many servers, as every agent starts one, and a
    watch ends when the node has gone whose name it bears.
    """

    farewell = 0.3  # seconds in which the cancellations of watches still go out

    def __init__(self, namespace: str) -> None:
        super().__init__(f"mcp_{secrets.token_hex(4)}", start_parameter_services=False)
        self.finished = threading.Event()
        self.on_finished: Callable[[], None] = self.finished.set
        self.exit_code = 0
        self.graph = Graph(self, namespace)

    def end(self) -> None:
        """Give up what is under way."""
        self.graph.close()
