"""A recorded video as a camera that is played as fast as it is perceived, and that never ends.

Images are best effort: each is sent, and again with a later stamp, until its embedding has come.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from graph import DEADLINE, SECOND, Probe, image, wait

from vljepa_ros.recordings.video import VideoSource

STEP = SECOND // 4  # the bundle's 4 Hz
AGAIN = 3.0  # seconds without an embedding after which a picture is sent again


class Player:
    """Plays from a thread of its own; where it has arrived, it shows the same picture on and on.

    `at`: seconds of the video that were played; `stamps`: of the picture at each of them.
    `begin_ns`: stamps begin there. `picture`: what is shown, RGB uint8 `[H, W, 3]`.
    """

    def __init__(self, domain_id: int, video: Path, begin_ns: int) -> None:
        self.probe = Probe(domain_id)
        self.at = self.target = 0.0
        self.stamps: dict[float, int] = {}
        self._frames = _quarters(video)
        self.picture = next(self._frames)
        self._now_ns = begin_ns
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def play(self, until: float) -> None:
        """Play on; returns once that has been perceived."""
        self.target = until
        while not (self.stamps and self.at >= until):
            shown = len(self.stamps)
            wait(lambda: len(self.stamps) > shown or not self._thread.is_alive(),  # noqa: B023
                 f"the picture after {self.at} s of the video")  # fmt: skip
            assert self._thread.is_alive(), "the player has failed"

    def close(self) -> None:
        self._end.set()
        self._thread.join(DEADLINE)
        self.probe.close()

    def _run(self) -> None:
        while not self._end.is_set():
            on = self.at < self.target
            if on:
                self.picture = next(self._frames)
            stamp = self._show()
            if on or not self.stamps:
                at = self.at + (0.25 if on else 0.0)
                self.at, self.stamps[at] = at, stamp
            else:
                time.sleep(0.1)

    def _show(self) -> int:
        """Send the picture until it was perceived; its stamp."""
        publisher = self.probe.publisher("camera/image_raw")
        while not self._end.is_set():
            self._now_ns += STEP
            publisher.publish(image(self.picture, self._now_ns))
            sent = time.monotonic()
            while time.monotonic() - sent < AGAIN:
                self.probe.executor.spin_once(timeout_sec=0.05)
                # A clip must be whole before there is an embedding: then the next is sent, too.
                if self.probe.at("camera", self._now_ns):
                    return self._now_ns
                if not self.probe.embeddings and time.monotonic() - sent > 0.1:
                    break
        return self._now_ns


def _quarters(video: Path) -> Iterator[np.ndarray]:
    """The pictures of the video at 4 Hz, over and over."""
    while True:
        due_ns = 0
        for offset_ns, picture in VideoSource(video).frames():
            if offset_ns >= due_ns:
                due_ns += STEP
                yield picture
