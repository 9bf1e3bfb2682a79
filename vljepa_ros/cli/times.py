"""Stamps as people write and read them. Invariant: `parse_stamp` reads what `clock` prints."""

from __future__ import annotations

from datetime import datetime

from vljepa_ros.errors import VLJepaError

WALL = 1_000_000_000  # seconds; stamps below are of a simulation or a video, not of a calendar


def parse_stamp(option: str, text: str) -> int:
    """Seconds since the epoch, or ISO 8601 (local time where it has no zone), in nanoseconds.

    Empty: 0. Raises VLJepaError, which names the option.
    """
    if not text.strip():
        return 0
    try:
        whole, _, fraction = text.strip().removesuffix(" s").partition(".")
        if whole.isdecimal() and (not fraction or fraction.isdecimal()):
            return int(whole) * 10**9 + int(f"{fraction:0<9.9}")
        iso = text.strip().replace("Z", "+00:00")  # which Python 3.10 does not read
        seconds = datetime.fromisoformat(iso).timestamp()
    except (ValueError, OverflowError, OSError):
        raise VLJepaError(
            f"{option} '{text}' is no time; give seconds since 1970, or e.g. 2026-05-01T14:30:00."
        ) from None
    if seconds < 0:
        raise VLJepaError(f"{option} '{text}' is before 1970.")
    return round(seconds * 1e6) * 1000


def clock(stamp_ns: int) -> str:
    """A stamp as local date and time, or in seconds where it comes from no calendar."""
    if stamp_ns < WALL * 10**9:
        return f"{stamp_ns / 1e9:.2f} s"
    return datetime.fromtimestamp(stamp_ns / 1e9).isoformat(" ", "milliseconds")
