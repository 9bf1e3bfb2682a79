"""Which stream is followed, where several perception nodes publish the same camera.

Invariant: of each camera the messages of one stream are taken: of the one heard first, until it
has ended, as its `model_info` says, or its silence. Each node numbers its segments for itself, so
a mixture of two means nothing.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from vljepa_ros.msg import ModelInfo, Utterance

GONE = 3.0  # seconds without a sign of a stream, whose `model_info` comes every second
SAID = 64  # utterances that a second decoder may repeat
OTHERS = "a second perception node publishes the same cameras; one of the two is followed"


class Sources:
    """The streams of one namespace, for one listener. From any thread.

    `warn(sentence)`: once for each camera and stream that is left out beside a living one.
    `on_other(camera)`: another stream is followed from now on.
    """

    def __init__(
        self,
        warn: Callable[[str], Any],
        on_other: Callable[[str], None] = lambda camera: None,
    ) -> None:
        self.refused = 0  # messages of streams that are not followed
        self._warn, self._on_other = warn, on_other
        self._lock = threading.Lock()
        self._followed: dict[str, int] = {}  # stream ids by camera
        self._heard: dict[tuple[str, int], float] = {}  # time.monotonic() of each one's last sign
        self._rivals: dict[tuple[str, int], float] = {}  # when each was first left out
        self._said: deque[tuple[Any, ...]] = deque(maxlen=SAID)

    def on_info(self, info: ModelInfo) -> None:
        """A sign of a stream for each camera that it names, and the end for the others."""
        stream = info.stream_id
        with self._lock:
            for camera, other in list(self._heard):
                if other == stream and camera not in info.cameras:
                    del self._heard[camera, other]
            for camera in info.cameras:
                self._followed.setdefault(camera, stream)
                self._heard[camera, stream] = time.monotonic()

    def takes(self, message: Any) -> bool:
        """Whether an embedding, a change or an utterance is of the stream that is followed."""
        camera, stream = message.camera, message.stream_id
        now = time.monotonic()
        warn = other = False
        with self._lock:
            followed = self._followed.setdefault(camera, stream)
            sign = self._heard.get((camera, followed), -math.inf)
            taken = stream == followed or now - sign > GONE
            if taken:
                other = stream != followed
                self._followed[camera], self._heard[camera, stream] = stream, now
            else:
                self.refused += 1
                # One that takes over within a moment of the other's end is no second one.
                first = self._rivals.setdefault((camera, stream), now)
                warn = first < sign
                if warn:
                    self._rivals[camera, stream] = math.inf  # once
        if warn:
            self._warn(
                f"Two perception nodes publish camera '{camera}'; the one that was heard first is "
                "followed. End the other, or give it another namespace."
            )
        if other:
            self._on_other(camera)
        return taken

    def takes_words(self, words: Utterance) -> bool:
        """Whether an utterance is of that stream, and no second decoder's repetition."""
        if not self.takes(words):
            return False
        stamp = words.header.stamp
        said = (words.stream_id, words.camera, words.query, words.segment_id, stamp.sec,
                stamp.nanosec, words.text)  # fmt: skip
        with self._lock:
            if words.stream_id and said in self._said:
                return False
            self._said.append(said)
        return True
