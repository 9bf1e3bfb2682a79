"""What an agent is told of the past and of times, without a graph."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vljepa_ros.agents import history as history_module
from vljepa_ros.agents.history import STREAMS, History
from vljepa_ros.agents.when import ago, iso, parse_time
from vljepa_ros.errors import VLJepaError

SECOND = 1_000_000_000
NOW = 1_700_000_000 * SECOND


def stamp(seconds: float) -> Any:
    whole = int(seconds)
    return SimpleNamespace(sec=whole, nanosec=round((seconds - whole) * SECOND))


def message(at: float, segment: int, stream: int = 7, **more: Any) -> Any:
    return SimpleNamespace(
        **{
            "header": SimpleNamespace(stamp=stamp(at)), "camera": "front", "query": "what?",
            "stream_id": stream, "segment_id": segment, "familiarity": 0.5,
            "segment_start": stamp(at), "text": f"words {segment}", "confidence": 0.75, **more,
        }
    )  # fmt: skip


def told(history: History, since: float = 0) -> list[tuple[int, float, float | None, str]]:
    return [
        (one.key[1], one.start_ns / SECOND, None if one.end_ns is None else one.end_ns / SECOND,
         one.text)
        for one in history.segments("front", int(since * SECOND))
    ]  # fmt: skip


def heard(*segments: int) -> History:
    """Segments of three seconds, their steps, changes and words in the order they are sent in."""
    history = History()
    for segment in segments:
        begin = 100 + 3 * segment
        history.on_step(message(begin + 0.5, segment))
        history.on_change(message(begin + 0.5, segment, segment_start=stamp(begin)))
        history.on_words(message(begin + 0.5, segment, segment_start=stamp(begin)))
        for half in range(2, 6):
            history.on_step(message(begin + half / 2, segment))
    return history


def test_segments_follow_one_another_and_the_last_is_open() -> None:
    history = heard(1, 2, 3)
    assert told(history) == [
        (1, 103, 105.5, "words 1"), (2, 106, 108.5, "words 2"), (3, 109, None, "words 3"),
    ]  # fmt: skip
    assert [row[0] for row in told(history, 106.5)] == [2, 3]
    assert history.segments("rear") == [] and history.cameras() == ["front"]


def test_the_order_in_which_topics_arrive_does_not_matter() -> None:
    history = History()
    history.on_words(message(12, 2, segment_start=stamp(11)))
    history.on_step(message(12, 2))
    history.on_change(message(12, 2, segment_start=stamp(11)))
    history.on_words(message(10, 1, segment_start=stamp(9)))  # late
    assert told(history) == [(1, 9, 9, "words 1"), (2, 11, None, "words 2")]
    assert all(one.whole for one in history.segments("front"))


def test_a_segment_whose_beginning_was_not_heard_is_known_for_one() -> None:
    history = History()
    history.on_step(message(10, 4))
    (one,) = history.segments("front")
    assert not one.whole and one.text == ""


def test_a_recording_that_begins_again_takes_its_future_away() -> None:
    history = heard(1, 2, 3)
    history.on_step(message(106.25, 9))
    assert [row[0] for row in told(history)] == [1, 2, 9]


def test_a_node_that_was_started_again_counts_from_one_again() -> None:
    history = heard(1, 2)
    history.on_step(message(200, 1, stream=8))
    assert told(history)[-2:] == [(2, 106, 108.5, "words 2"), (1, 200, None, "")]


def test_it_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "SEGMENTS", 20)
    history = History()
    for segment in range(50):
        history.on_change(message(segment, segment))
    assert [row[0] for row in told(history)] == list(range(30, 50))
    for camera in range(STREAMS + 5):
        history.on_step(message(1, 1, camera=f"c{camera}"))
    assert len(history.cameras()) == STREAMS


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-3, "now"), (0.2, "now"), (0.6, "1 s ago"), (12, "12 s ago"), (119, "119 s ago"),
     (120, "2 min ago"), (7199, "120 min ago"), (7200, "2 h ago"), (400_000, "5 d ago")],
)  # fmt: skip
def test_ages(seconds: float, words: str) -> None:
    assert ago(round(seconds * SECOND)) == words
    if words != "now":
        back = NOW - parse_time("after", words, NOW)
        assert abs(back - seconds * SECOND) <= 0.1 * back + SECOND


def test_times_are_read_as_they_are_written() -> None:
    at = NOW + 123 * 10**6
    assert iso(at) == "2023-11-14T22:13:20.123Z"
    assert iso(12_500_000_000) == "12.500 s"
    for given, wanted in (
        (iso(at), at), ("2023-11-14T23:13:20.123+01:00", at), ("1700000000.123", at),
        ("now", NOW), ("90 s ago", NOW - 90 * SECOND), ("5 minutes ago", NOW - 300 * SECOND),
        ("2h ago", NOW - 7200 * SECOND), (" ", 0), (iso(12_500_000_000), 12_500_000_000),
    ):  # fmt: skip
        assert parse_time("after", given, NOW) == pytest.approx(wanted, abs=1000), given


@pytest.mark.parametrize("given", ["noon", "5 min", "-5", "1960-01-01", "9" * 30, "2040-01-01"])
def test_what_is_no_time_is_a_sentence(given: str) -> None:
    with pytest.raises(VLJepaError, match=r"^after '.*' is no time: give ISO 8601"):
        parse_time("after", given, NOW)
