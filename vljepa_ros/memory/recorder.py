"""Steps, changes and words into moments, the same live and offline.

Invariant: the moments of one camera and query are disjoint, in the order of the steps, and hold
every step exactly once, whatever order steps, changes and words come in; none spans a restart.

A change that is detected at step t says that its segment began before t: the steps after that,
which were published under the segment before, are the new one's. So a segment becomes a moment
when a step of the next one and the change between them are both there, or when the change must be
lost. Memory is bounded: of the open segment the last TAIL steps are kept, and the sum of the rest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from .moment import Moment
from .thumbnails import Thumbnails

TAIL = 1000  # steps that a change can reach back: the largest candidate of the change detector
PATIENCE = 64  # steps after which a change that has not come is lost
AHEAD = 256  # changes, words, and moments that words may still come for, of one stream
Words = tuple[str, float]  # text and confidence
T = TypeVar("T")


class Recorder:
    """Makes moments of what `robot` perceives.

    `keep(moment)` is called for each as its segment closes; `say(id, text, confidence)` for words
    that come after that. Not thread-safe: the owner serialises calls.
    """

    def __init__(
        self,
        robot: str,
        keep: Callable[[Moment], None],
        say: Callable[[str, str, float], None],
    ) -> None:
        self._robot, self._keep, self._say = robot, keep, say
        self._thumbnails: dict[str, Thumbnails] = {}
        self._streams: dict[tuple[str, str], _Stream] = {}

    def thumbnail(self, camera: str, stamp_ns: int, jpeg: bytes) -> None:
        """A small picture of the camera; kept where a step has its stamp, before or after it."""
        self._pictures(camera).put(stamp_ns, jpeg)

    def step(
        self,
        camera: str,
        query: str,
        stamp_ns: int,
        segment_id: int,
        embedding: np.ndarray,
        familiarity: float = -1.0,
    ) -> None:
        """A step: `embedding` float32 `[E]`, finite, of unit length; `familiarity` -1: unknown."""
        self._pictures(camera).step(stamp_ns)
        self._stream(camera, query).step(segment_id, _Step(stamp_ns, embedding, familiarity))

    def change(
        self,
        camera: str,
        query: str,
        segment_id: int,
        start_ns: int,
        previous_segment_id: int,
        previous_start_ns: int,
    ) -> None:
        """A change: where the segment begins, and which one was before."""
        change = _Change(segment_id, start_ns, previous_segment_id, previous_start_ns)
        self._stream(camera, query).change(change)

    def words(self, camera: str, query: str, segment_id: int, text: str, confidence: float) -> None:
        """What was said of a segment, which may not have begun yet, or be over."""
        self._stream(camera, query).words(segment_id, text, confidence)

    def flush(self) -> None:
        """The streams end: the segments that are open become moments."""
        for stream in self._streams.values():
            stream.flush()

    def begin_anew(self, camera: str) -> None:
        """What comes of the camera from now on has another source: no moment holds of both."""
        for (name, _), stream in self._streams.items():
            if name == camera:
                stream.flush()
                stream.begin_anew()

    def _pictures(self, camera: str) -> Thumbnails:
        return self._thumbnails.setdefault(camera, Thumbnails())

    def _stream(self, camera: str, query: str) -> _Stream:
        def close(segment: _Segment, jumped: bool) -> str:
            return self._close(camera, query, segment, jumped)

        if (camera, query) not in self._streams:
            self._streams[camera, query] = _Stream(close, self._say)
        return self._streams[camera, query]

    def _close(self, camera: str, query: str, segment: _Segment, jumped: bool) -> str:
        """Make a moment of a segment; its id."""
        start_ns, end_ns = segment.start_ns, segment.end_ns
        pictures = self._thumbnails.get(camera)
        moment = Moment(
            self._robot, camera, query, segment.segment_id, start_ns, end_ns, segment.mean(),
            *segment.words,
            thumbnail=pictures.nearest(start_ns, end_ns, jumped) if pictures else b"",
            familiarity=segment.familiarity / segment.count,
        )  # fmt: skip
        self._keep(moment)
        return moment.id


@dataclass(frozen=True, eq=False)
class _Step:
    stamp_ns: int
    embedding: np.ndarray
    familiarity: float


@dataclass(frozen=True)
class _Change:
    segment_id: int
    start_ns: int
    previous_id: int
    previous_start_ns: int


class _Segment:
    """The steps of one segment that have come so far.

    `seen_ns` and `seen`: stamp and number of the first step that carried its id, or a later one;
    `anew`: nothing before it belongs to it; `begin_ns`: where its change says that it begins.
    """

    def __init__(self, segment_id: int, seen_ns: int, seen: int, anew: bool) -> None:
        self.segment_id = segment_id
        self.seen_ns, self.seen = seen_ns, seen
        self.anew = anew
        self.begin_ns: int | None = None
        self.words: Words = ("", 0.0)
        self.count = 0
        self.start_ns = 0
        self.familiarity = 0.0  # the sum of its steps'
        self._tail: deque[_Step] = deque()
        self._sum = np.zeros(0)  # of the steps before the tail
        self._end_ns = 0  # of the last of them

    @property
    def end_ns(self) -> int:
        """The stamp of the last step."""
        return self._tail[-1].stamp_ns if self._tail else self._end_ns

    def add(self, step: _Step) -> None:
        if self.count == 0:
            self.start_ns = step.stamp_ns
        self.count += 1
        self.familiarity += step.familiarity
        self._tail.append(step)
        if len(self._tail) > TAIL:
            oldest = self._tail.popleft()
            self._end_ns, seen = oldest.stamp_ns, oldest.embedding
            self._sum = self._sum + seen if self._sum.size else seen.astype(np.float64)

    def move(self, start_ns: int, to: _Segment) -> None:
        """Give the steps from `start_ns` on to the segment after this one."""
        moved = []
        while self._tail and self._tail[-1].stamp_ns >= start_ns:
            moved.append(self._tail.pop())
        self.count -= len(moved)
        self.familiarity -= sum(step.familiarity for step in moved)
        if moved:
            own = list(to._tail)
            to._tail.clear()
            to.count, to.familiarity = 0, 0.0
            for step in [*reversed(moved), *own]:
                to.add(step)

    def mean(self) -> np.ndarray:
        """The mean of the steps, float32 `[E]`, of unit length."""
        steps = [step.embedding for step in self._tail]
        total = np.asarray(np.sum(steps, axis=0, dtype=np.float64))
        if self._sum.size:
            total = total + self._sum
        norm = float(np.linalg.norm(total))
        if norm < 1e-6 * self.count:  # steps that cancel out have no mean direction
            total, norm = steps[-1], float(np.linalg.norm(steps[-1]))
        return (total / norm).astype(np.float32)


class _Stream:
    """One camera's answers to one query. `close(segment, jumped)` returns the moment's id."""

    def __init__(
        self, close: Callable[[_Segment, bool], str], say: Callable[[str, str, float], None]
    ) -> None:
        self._close, self._say = close, say
        self._segments: deque[_Segment] = deque()  # the last is open, the others wait for a change
        self._newest_ns = 0
        self._steps = 0
        self.begin_anew()

    def step(self, segment_id: int, step: _Step) -> None:
        stamp_ns = step.stamp_ns
        newest = self._segments[-1].segment_id if self._segments else segment_id
        back = stamp_ns <= self._newest_ns
        if not self._segments:
            self._open(segment_id, stamp_ns, anew=True)
        elif stamp_ns == self._newest_ns and segment_id == newest:
            return  # it came twice
        elif not newest + back <= segment_id <= newest + PATIENCE:
            self.begin_anew()  # the node that numbers the segments was started again
            self._open(segment_id, stamp_ns, anew=True)
        elif segment_id > newest:
            for between in range(newest + 1, segment_id):  # whose own steps are lost
                self._open(between, stamp_ns, anew=False)
            self._open(segment_id, stamp_ns, anew=back)
        self._segments[-1].add(step)
        self._newest_ns = stamp_ns
        self._steps += 1
        self._settle()

    def change(self, change: _Change) -> None:
        newest = self._segments[-1] if self._segments else None
        if newest is not None and change.segment_id == newest.segment_id:
            later = change.start_ns > newest.seen_ns
            if later or newest.begin_ns not in (None, change.start_ns):
                # The node that numbers the segments was started again, within the same number.
                self.begin_anew()
                self._open(change.segment_id, change.start_ns, anew=True)
                newest.move(change.start_ns, self._segments[-1])
        _put(self._changes, change.segment_id, change)
        self._settle()

    def words(self, segment_id: int, text: str, confidence: float) -> None:
        # Words of a segment of which no step was heard have no moment to go to.
        for segment in self._segments:
            if segment.segment_id == segment_id:
                segment.words = (text, confidence)
                return
        if segment_id in self._closed:
            self._say(self._closed[segment_id], text, confidence)
        elif not self._segments or segment_id > self._segments[-1].segment_id:
            _put(self._ahead, segment_id, (text, confidence))

    def flush(self) -> None:
        self._settle(PATIENCE)
        if self._segments:
            self._finish(self._segments.popleft(), jumped=False)

    def begin_anew(self) -> None:
        """What came so far says nothing of the numbers to come."""
        self._changes: dict[int, _Change] = {}  # by the segment that opens
        self._ahead: dict[int, Words] = {}  # of segments that have not begun
        self._closed: dict[int, str] = {}  # ids of moments

    def _open(self, segment_id: int, seen_ns: int, anew: bool) -> None:
        segment = _Segment(segment_id, seen_ns, self._steps, anew)
        segment.words = self._ahead.pop(segment_id, segment.words)
        self._segments.append(segment)

    def _settle(self, patience: int = 0) -> None:
        """Close the segments that are followed by another and miss nothing any more."""
        for segment in self._segments:
            change = self._changes.get(segment.segment_id)
            if segment.begin_ns is None and change is not None:
                segment.begin_ns = change.start_ns
        while len(self._segments) > 1:
            first, second = self._segments[0], self._segments[1]
            change = self._changes.get(second.segment_id)
            if not second.anew:
                if change is not None and _follows(change, first):
                    first.move(change.start_ns + 1, second)
                elif self._steps + patience - second.seen <= PATIENCE:
                    return
            self._segments.popleft()
            self._finish(first, jumped=second.anew and second.seen_ns <= first.end_ns)

    def _finish(self, segment: _Segment, jumped: bool) -> None:
        if segment.count:
            _put(self._closed, segment.segment_id, self._close(segment, jumped))


def _follows(change: _Change, segment: _Segment) -> bool:
    """Whether the change closes the segment, as far as is known."""
    begins = segment.begin_ns in (None, change.previous_start_ns)
    return begins and change.previous_id == segment.segment_id


def _put(into: dict[int, T], key: int, value: T) -> None:
    """Keep the last AHEAD."""
    into.pop(key, None)
    into[key] = value
    if len(into) > AHEAD:
        del into[next(iter(into))]
