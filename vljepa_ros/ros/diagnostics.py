"""Health as diagnostic messages: levels, key-value pairs, rates.

Invariant: a status says OK only of what was seen to work since the last report.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node
from rclpy.publisher import Publisher

from vljepa_ros.inference.runtime import Runtime

OK, WARN, ERROR, STALE = (
    DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR, DiagnosticStatus.STALE,
)  # fmt: skip


@dataclass
class Status:
    """One line of /diagnostics. `part`: what of the node it is about, e.g. `camera front`."""

    part: str
    level: bytes = OK
    message: str = "running"
    values: dict[str, str | int | float] = field(default_factory=dict)


def publisher(node: Node) -> Publisher:
    """The publisher of /diagnostics; absolute, as everywhere in ROS."""
    return node.create_publisher(DiagnosticArray, "/diagnostics", 10)


def publish(to: Publisher, node: Node, statuses: Sequence[Status]) -> None:
    """Publish the statuses under the node's name."""
    array = DiagnosticArray()
    array.header.stamp = node.get_clock().now().to_msg()
    prefix = node.get_fully_qualified_name().lstrip("/")
    for status in statuses:
        pairs = [KeyValue(key=key, value=_text(v)) for key, v in status.values.items()]
        array.status.append(
            DiagnosticStatus(
                level=status.level,
                name=f"{prefix}: {status.part}",
                message=status.message,
                hardware_id="",
                values=pairs,
            )
        )
    to.publish(array)


def node_status(state: str, failure: str, model_id: str) -> Status:
    """The node's own line: its lifecycle state, why it is not further, and its bundle."""
    values: dict[str, str | int | float] = {"state": state, "model_id": model_id or "none"}
    if failure:
        return Status("state", ERROR, failure, values)
    return Status("state", OK if state == "active" else WARN, state, values)


def engine_statuses(model: Runtime) -> list[Status]:
    """One line for each engine: what runs it, and how long its last 500 runs took."""
    lines = []
    for engine in model.info:
        status = Status(f"engine {engine.name}")
        status.values = {"backend": engine.backend, "precision": engine.precision}
        status.values["device"] = engine.device
        latency = model.latency(engine.name)
        if latency is None:
            status.message = "has not run yet"
        else:
            status.values["latency p50 (ms)"] = latency[0] * 1e3
            status.values["latency p99 (ms)"] = latency[1] * 1e3
        lines.append(status)
    return lines


class Rate:
    """Turns a counter into events per second between two reports."""

    def __init__(self) -> None:
        self._count = 0
        self._time = time.monotonic()

    def update(self, count: int) -> float:
        """Events per second since the last call; `count` is the total so far."""
        now = time.monotonic()
        rate = (count - self._count) / max(now - self._time, 1e-9)
        self._count, self._time = count, now
        return rate


def _text(value: str | int | float) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
