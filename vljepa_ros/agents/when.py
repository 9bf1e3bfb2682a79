"""Times as a language model reads and writes them: ISO 8601, and "12 s ago".

Invariant: `parse_time` reads what `iso` and `ago` write.
"""

from __future__ import annotations

import re
from datetime import datetime

from vljepa_ros import stamps
from vljepa_ros.errors import VLJepaError
from vljepa_ros.stamps import SECOND_NS

LAST = 2**31  # seconds, as ROS counts them
_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
_AGO = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|h|d)[a-z]*\s+ago", re.IGNORECASE)


def iso(stamp_ns: int) -> str:
    """A stamp as ISO 8601 in UTC; in seconds where it comes from no calendar."""
    return stamps.iso(stamp_ns) or stamps.clock(stamp_ns)


def ago(age_ns: int) -> str:
    """How long ago that is; below half a second, and in the future, it is now."""
    seconds = age_ns / SECOND_NS
    if seconds < 0.5:
        return "now"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def parse_time(name: str, text: str, now_ns: int) -> int:
    """A time in nanoseconds: ISO 8601 (local where it has no zone), seconds, or an age.

    An age is e.g. "90 s ago" or "5 min ago". Empty: 0. Raises VLJepaError, which names `name`.
    """
    text = text.strip()
    if not text:
        return 0
    if text.lower() == "now":
        return now_ns
    if age := _AGO.fullmatch(text):
        at_ns = now_ns - round(float(age[1]) * _UNITS[age[2].lower()] * SECOND_NS)
        return max(at_ns, 1)
    try:
        if seconds := re.fullmatch(r"(\d+(?:\.\d+)?)(?: s)?", text):
            at_ns = round(float(seconds[1]) * SECOND_NS)
        else:
            given = datetime.fromisoformat(re.sub("[zZ]$", "+00:00", text))  # for Python 3.10
            at_ns = round(given.timestamp() * 1e6) * 1000
    except (ValueError, OverflowError, OSError):
        at_ns = -1
    if not 0 <= at_ns < LAST * SECOND_NS:
        raise VLJepaError(
            f"{name} '{text[:40]}' is no time: give ISO 8601, e.g. 2026-05-01T14:30:00Z, or an age,"
            " e.g. '90 s ago' or '5 min ago'."
        )
    return at_ns
