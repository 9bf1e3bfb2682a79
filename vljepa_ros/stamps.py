"""Stamps in nanoseconds, the form in which everything but a message holds them, and as text.

Invariant: needs no ROS; a stamp is whatever has `sec` and `nanosec`, as messages of rclpy and of
rosbags do. Commands write one as `clock` does for people, as `iso` for programs, so that lines of
two shells can be matched; the page's `clock`, in web/static/dom.js, keeps the same rule.
"""

from __future__ import annotations

from datetime import date, datetime, timezone
from typing import Any

SECOND_NS = 1_000_000_000
CALENDAR_NS = 10**18  # 2001; stamps below are of a simulation's clock, or places in a video


def to_ns(stamp: Any) -> int:
    """A stamp or duration of `sec` and `nanosec` in nanoseconds."""
    return int(stamp.sec) * SECOND_NS + int(stamp.nanosec)


def clock(stamp_ns: int, today: date | None = None) -> str:
    """A stamp as people read it: local time of day, the date before it where that is not `today`.

    Where it comes from no calendar (a simulation's clock, a place in a video) it is in seconds.
    """
    if stamp_ns < CALENDAR_NS:
        return f"{stamp_ns // 10**6 / 1000:.3f} s"
    seconds, rest = divmod(stamp_ns, SECOND_NS)
    at = datetime.fromtimestamp(seconds).replace(microsecond=rest // 1000)
    if at.date() == (today or date.today()):
        return at.time().isoformat("milliseconds")
    return at.isoformat(" ", "milliseconds")


def iso(stamp_ns: int) -> str | None:
    """A stamp as ISO 8601 in UTC, cut to milliseconds; None where it comes from no calendar."""
    if stamp_ns < CALENDAR_NS:
        return None
    seconds, rest = divmod(stamp_ns, SECOND_NS)
    at = datetime.fromtimestamp(seconds, timezone.utc).replace(microsecond=rest // 1000)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


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
