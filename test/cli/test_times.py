"""The one rule by which commands write times, and that what they write is read again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import date, datetime, timedelta

import pytest

from vljepa_ros.cli.times import parse_stamp
from vljepa_ros.errors import VLJepaError
from vljepa_ros.stamps import clock, iso

SECOND = 1_000_000_000
NOON = 1_700_000_000 * SECOND + 123_456_789  # 2023-11-14 22:13:20 UTC


def day_of(stamp_ns: int) -> date:
    return datetime.fromtimestamp(stamp_ns / SECOND).date()


def test_today_is_a_time_of_day_and_another_day_has_its_date() -> None:
    today = day_of(NOON)
    time_of_day = clock(NOON, today)
    assert re.fullmatch(r"\d\d:\d\d:20\.123", time_of_day)
    for other in (today - timedelta(1), today + timedelta(1)):
        assert clock(NOON, other) == f"{today.isoformat()} {time_of_day}"


def test_a_stamp_of_no_calendar_is_in_seconds() -> None:
    assert [clock(ns) for ns in (0, 14_800_000_000, 83_440_000_000)] == [
        "0.000 s", "14.800 s", "83.440 s"
    ]  # fmt: skip
    assert iso(14_800_000_000) is None
    assert clock(10**18).count(":") == 2  # the first that a clock on the wall shows


def test_digits_are_cut_and_not_rounded() -> None:
    """So the time that is shown is never after the stamp."""
    last = 1_700_000_000 * SECOND + 999_999_999
    assert clock(last, day_of(last)).endswith(":20.999")
    assert iso(last) == "2023-11-14T22:13:20.999Z"


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata", "America/St_Johns"])
def test_what_is_shown_is_read_again(zone: str) -> None:
    code = (
        "from datetime import datetime\n"
        "from vljepa_ros.cli.times import parse_stamp\n"
        "from vljepa_ros.stamps import clock, iso\n"
        "now = int(datetime.now().replace(hour=12).timestamp() * 1e3) * 10**6\n"
        f"for ns in ({NOON} // 10**6 * 10**6, now, 14_800_000_000):\n"
        "    assert parse_stamp('--after', clock(ns)) == ns, clock(ns)\n"
        f"assert parse_stamp('--after', iso({NOON})) == {NOON} // 10**6 * 10**6\n"
        "print(clock(now))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "TZ": zone}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert re.fullmatch(r"12:\d\d:\d\d\.\d{3}\n", run.stdout)


@pytest.mark.parametrize("text", ["25:00", "14:", "noon", "14:30 o'clock", "2026-13-01", "-1"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(VLJepaError, match=r"--before .* is no time; give seconds since 1970"):
        parse_stamp("--before", text)
    assert parse_stamp("--before", " ") == 0
