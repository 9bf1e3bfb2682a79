"""What a graph has said since somebody listens, as segments of each camera's stream.

Invariant: it holds at most `SEGMENTS` segments of each of at most `STREAMS` streams, however long
it runs; the segments of a stream are in the order of time. From any thread.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

from vljepa_ros.stamps import to_ns

SEGMENTS = 2000
STREAMS = 64  # cameras times standing questions


@dataclass
class Segment:
    """A stretch of one meaning. Stamps in nanoseconds; `end_ns`: None while it is the newest."""

    camera: str
    query: str
    key: tuple[int, int]  # stream and segment
    start_ns: int
    last_ns: int  # of the newest step that belongs to it
    whole: bool = False  # whether its beginning was heard
    text: str = ""  # empty: nothing was said of it
    confidence: float | None = None  # of the words
    familiarity: float = -1.0
    end_ns: int | None = None


class History:
    """Steps, changes and utterances, as they come, in whatever order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._streams: OrderedDict[tuple[str, str], _Stream] = OrderedDict()

    def on_step(self, message: Any) -> None:
        """A SemanticEmbedding."""
        stamp_ns = to_ns(message.header.stamp)
        with self._lock:
            stream = self._stream(message)
            if stamp_ns < stream.newest_ns:  # a recording was begun again
                stream.segments = [one for one in stream.segments if one.start_ns <= stamp_ns]
            stream.newest_ns, stream.heard = stamp_ns, time.monotonic()
            segment = stream.segment(message, stamp_ns)
            segment.last_ns = stamp_ns
            segment.familiarity = message.familiarity

    def on_change(self, message: Any) -> None:
        """A SemanticChange."""
        self._begin(message)

    def on_words(self, message: Any) -> None:
        """An Utterance."""
        segment = self._begin(message)
        segment.text, segment.confidence = message.text, message.confidence

    def _begin(self, message: Any) -> Segment:
        start_ns = to_ns(message.segment_start)
        with self._lock:
            stream = self._stream(message)
            segment = stream.segment(message, start_ns)
            segment.start_ns, segment.whole = start_ns, True
            segment.last_ns = max(segment.last_ns, start_ns)
            stream.segments.sort(key=lambda one: one.start_ns)
            return segment

    def _stream(self, message: Any) -> _Stream:
        key = (message.camera, message.query)
        stream = self._streams.setdefault(key, _Stream())
        self._streams.move_to_end(key)
        while len(self._streams) > STREAMS:  # the one heard of longest ago
            self._streams.popitem(last=False)
        return stream

    # -------------------------------------------------------------- looking back

    def cameras(self) -> list[str]:
        """The cameras that were heard."""
        with self._lock:
            return sorted({camera for camera, _ in self._streams})

    def now_ns(self, camera: str) -> int | None:
        """What time it is by the camera's own stamps; None: it was never heard."""
        with self._lock:
            found = [one for (name, _), one in self._streams.items() if name == camera]
            times = [s.newest_ns + round((time.monotonic() - s.heard) * 1e9) for s in found]
        return max(times, default=None)

    def silent_for(self, camera: str) -> float:
        """Seconds since the camera's last step came; infinite: it was never heard."""
        with self._lock:
            heard = [one.heard for (name, _), one in self._streams.items() if name == camera]
        return time.monotonic() - max(heard, default=-float("inf"))

    def segments(self, camera: str, since_ns: int = 0) -> list[Segment]:
        """Copies of the camera's segments that end at or after `since_ns`, by their start."""
        found: list[Segment] = []
        with self._lock:
            for (name, _), stream in self._streams.items():
                if name != camera:
                    continue
                for segment, after in zip(stream.segments, [*stream.segments[1:], None]):
                    end_ns = None if after is None else min(segment.last_ns, after.start_ns)
                    if end_ns is None or end_ns >= since_ns:
                        found.append(replace(segment, end_ns=end_ns))
        return sorted(found, key=lambda one: one.start_ns)


class _Stream:
    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self.newest_ns = 0
        self.heard = -float("inf")  # time.monotonic()

    def segment(self, message: Any, start_ns: int) -> Segment:
        """The segment that a message is about; a new one where it is the first."""
        key = (message.stream_id, message.segment_id)
        for segment in reversed(self.segments):
            if segment.key == key:
                return segment
        new = Segment(
            message.camera, message.query, key, start_ns, start_ns, familiarity=message.familiarity
        )
        self.segments.append(new)
        del self.segments[:-SEGMENTS]
        return new
