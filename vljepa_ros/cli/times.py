"""Stamps and numbers as people write them. Invariant: `parse_stamp` reads what `clock` prints."""

from __future__ import annotations

import math
from datetime import date, datetime

import typer

from vljepa_ros.errors import VLJepaError

LAST = 2**31  # seconds, as ROS counts them


def parse_stamp(option: str, text: str) -> int:
    """Seconds since the epoch, ISO 8601 or a time of today, in nanoseconds.

    Local time where it has no zone. Empty: 0. Raises VLJepaError, which names the option.
    """
    if not text.strip():
        return 0
    try:
        whole, _, fraction = text.strip().removesuffix(" s").partition(".")
        if whole.isdecimal() and (not fraction or fraction.isdecimal()):
            stamp_ns = int(whole) * 10**9 + int(f"{fraction:0<9.9}")
        else:
            given = text.strip().replace("Z", "+00:00")  # which Python 3.10 does not read
            if given[2:3] == ":":  # a time of today
                given = f"{date.today().isoformat()} {given}"
            stamp_ns = round(datetime.fromisoformat(given).timestamp() * 1e6) * 1000
    except (ValueError, OverflowError, OSError):
        raise VLJepaError(
            f"{option} '{text}' is no time; give seconds since 1970, or e.g. 14:30 or "
            "2026-05-01T14:30:00."
        ) from None
    if not 0 <= stamp_ns < LAST * 10**9:
        raise VLJepaError(
            f"{option} '{text}' is {'before 1970' if stamp_ns < 0 else 'after 2038'}, and ROS has "
            "no such stamps."
        )
    return stamp_ns


def finite(value: float | None) -> float | None:
    """A number of an option; `nan` is one, and passes every bound."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value
