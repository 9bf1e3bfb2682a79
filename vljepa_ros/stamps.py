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


def other_clock(age: float) -> str:
    """How far stamps lie "ahead of" or "behind" a clock where `age`, seconds, is no age.

    Empty for what may be one: of a second ahead, as clocks of two machines may differ, to 10
    minutes behind.
    """
    if -1.0 <= age <= 600.0:
        return ""
    seconds = abs(age)
    for unit, length in (("years", 31_557_600.0), ("days", 86400.0), ("hours", 3600.0)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit} {'behind' if age > 0 else 'ahead of'}"
    return f"{seconds:.1f} s {'behind' if age > 0 else 'ahead of'}"
