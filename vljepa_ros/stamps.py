"""Stamps in nanoseconds, the form in which everything but a message holds them.

Invariant: needs no ROS; a stamp is whatever has `sec` and `nanosec`, as messages of rclpy and of
rosbags do.
"""

from __future__ import annotations

from typing import Any

SECOND_NS = 1_000_000_000


def to_ns(stamp: Any) -> int:
    """A stamp or duration of `sec` and `nanosec` in nanoseconds."""
    return int(stamp.sec) * SECOND_NS + int(stamp.nanosec)
