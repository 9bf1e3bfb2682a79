"""Moments on their way into a store that does not always take them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from vljepa_ros.errors import StoreError
from vljepa_ros.memory.moment import Moment
from vljepa_ros.memory.writer import MOST, Writer


class Store:
    """Takes moments, but for a full disk."""

    def __init__(self) -> None:
        self.full = False
        self.moments: dict[str, Moment] = {}
        self.texts: dict[str, str] = {}

    def add(self, moments: Sequence[Moment]) -> None:
        self._check()
        self.moments.update((moment.id, moment) for moment in moments)

    def set_text(self, id: str, text: str, confidence: float) -> bool:
        self._check()
        self.texts[id] = text
        return id in self.moments

    def _check(self) -> None:
        if self.full:
            raise StoreError("The disk is full.")


def moment(number: int) -> Moment:
    return Moment("r", "c", "q", number, number, number + 1, np.ones(1, np.float32))


def test_what_was_refused_is_written_later_with_its_words() -> None:
    store = Store()
    writer = Writer(store)  # type: ignore[arg-type]
    writer.keep(moment(1))
    writer.write()
    assert (writer.waiting, writer.written) == (0, 1)
    store.full = True
    writer.keep(moment(2))
    writer.say(moment(1).id, "one", 0.5)  # which the store has
    writer.say(moment(2).id, "two", 0.5)  # which waits
    for _ in range(2):
        with pytest.raises(StoreError):
            writer.write()
    assert (writer.waiting, writer.written) == (2, 1)
    store.full = False
    writer.write()
    assert (writer.waiting, writer.written, writer.lost) == (0, 2, 0)
    assert store.texts == {moment(1).id: "one"}
    assert store.moments[moment(2).id].text == "two"


def test_no_more_wait_than_there_is_room_for_and_what_is_lost_is_counted() -> None:
    store = Store()
    store.full = True
    writer = Writer(store)  # type: ignore[arg-type]
    for number in range(MOST + 7):
        writer.keep(moment(number))
    for number in range(MOST + 5):
        writer.say(str(number), "late", 0.5)
    assert (writer.waiting, writer.lost) == (2 * MOST, 7 + 5)
    store.full = False
    writer.write()
    kept = [m.segment_id for m in store.moments.values()]
    assert kept == list(range(7, MOST + 7))  # the oldest went
