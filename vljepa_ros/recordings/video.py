"""Pictures from a video file, a folder of images or a camera device, with their times.

Invariant: the stamps of one source rise strictly, and those of a file or folder are the same on
every run.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from vljepa_ros.errors import VLJepaError
from vljepa_ros.perception.images import FULL_RANGE, Levels, Note, ignore

from .image_folder import IMAGES, folder_pictures, image_paths

log = logging.getLogger(__name__)

FOLDER_FPS = 10.0


class VideoError(VLJepaError):
    """A video source cannot be opened or read."""


class VideoSource:
    """A source of pictures: a video file, a folder of images, or a camera device.

    `source`: a path, `/dev/videoN` or a device number. `fps`: the rate of a folder of images
    (10 by default), or one that stands in for what a file says. `levels`, `note`: of a folder's
    images, as for `to_rgb`. A file or folder can be read any
    number of times. Attributes: `fps` (0 where a device does not say), `size` (width, height) of
    the first picture, `seconds` (its length, about; 0 where it does not say), `live`. Raises
    VideoError.
    """

    def __init__(
        self,
        source: str | Path | int,
        fps: float | None = None,
        levels: Levels = FULL_RANGE,
        note: Note = ignore,
    ) -> None:
        if fps is not None and not fps > 0:
            raise VideoError(f"The rate of {source} must be above 0 frames per second, not {fps}.")
        self.source = str(source)
        self._reading = (levels, note)
        device = re.fullmatch(r"(?:/dev/video)?(\d+)", self.source)
        self.live = device is not None and not Path(self.source).is_file()
        self._capture: cv2.VideoCapture | None = None
        self._images: list[Path] = []
        self.seconds = 0.0
        if self.live and device is not None:
            self._open_device(int(device[1]), fps)
        elif Path(self.source).is_dir():
            self._open_folder(Path(self.source), fps)
        else:
            self._open_file(fps)

    def frames(self) -> Iterator[tuple[int, np.ndarray]]:
        """(offset in nanoseconds from the start, RGB uint8 `[H, W, 3]`) of every picture.

        The offset of a file's or folder's picture is its number over the rate: containers' own
        times are missing or wrong in too many files, so a file of varying rate is played at its
        mean rate. A device's is the monotonic time since its first picture.
        """
        if self.live:
            yield from self._live_frames()
            return
        found = (
            folder_pictures(self._images, *self._reading)
            if self._images
            else enumerate(self._file_pictures())
        )
        number = -1
        for number, picture in found:
            yield round(number * 1e9 / self.fps), picture
        if number < 0:
            raise VideoError(f"No picture of {self.source} could be decoded; is it damaged?")

    def close(self) -> None:
        """Release the device; a generator that still runs ends."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def _open_device(self, number: int, fps: float | None) -> None:
        capture = cv2.VideoCapture(number)
        if not capture.isOpened():
            raise VideoError(
                f"The camera device {self.source} does not open; is it connected, free, and may "
                "this user read it (group video)?"
            )
        if fps is not None:
            capture.set(cv2.CAP_PROP_FPS, fps)
        self._capture = capture
        self.fps = max(0.0, capture.get(cv2.CAP_PROP_FPS))
        self.size = _size_of(capture)

    def _open_folder(self, folder: Path, fps: float | None) -> None:
        self._images = image_paths(folder)
        if not self._images:
            kinds = ", ".join(sorted(IMAGES))
            raise VideoError(f"The folder {folder} holds no images ({kinds}).")
        self.fps = fps or FOLDER_FPS
        self.seconds = len(self._images) / self.fps
        _, picture = next(folder_pictures(self._images, *self._reading), (0, None))
        if picture is None:
            raise VideoError(f"No image of the folder {folder} can be decoded; replace them.")
        self.size = (picture.shape[1], picture.shape[0])

    def _open_file(self, fps: float | None) -> None:
        path = Path(self.source)
        if not path.exists():
            raise VideoError(
                f"No video '{path}'; give a video file, a folder of images, a device number or "
                "/dev/videoN."
            )
        capture = cv2.VideoCapture(str(path))
        try:
            if not capture.isOpened() or not capture.read()[0]:
                raise VideoError(
                    f"{path} is not a video that OpenCV can decode; it may be damaged or cut "
                    "short. Converting it with ffmpeg to H.264 in MP4 usually helps."
                )
            found = capture.get(cv2.CAP_PROP_FPS)
            if fps is None and not 0 < found < 1000:
                raise VideoError(f"{path} does not say its frame rate; give it (fps).")
            self.fps = fps or found
            self.seconds = max(0.0, capture.get(cv2.CAP_PROP_FRAME_COUNT)) / self.fps
            self.size = _size_of(capture)
        finally:
            capture.release()

    def _live_frames(self) -> Iterator[tuple[int, np.ndarray]]:
        first = last = -1
        while self._capture is not None:
            ok, picture = self._capture.read()
            if not ok:
                raise VideoError(f"The camera device {self.source} stopped sending pictures.")
            now = time.monotonic_ns()
            first = now if first < 0 else first
            last = max(last + 1, now - first)
            yield last, cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)

    def _file_pictures(self) -> Iterator[np.ndarray]:
        capture = cv2.VideoCapture(self.source)
        promised, count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0
        try:
            while True:
                ok, picture = capture.read()
                if not ok:
                    break
                count += 1
                yield cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
        finally:
            capture.release()
        if count < promised - 1:  # containers are often wrong by one
            log.warning(
                "%s ends early: %d of %d pictures could be decoded; it may be cut short.",
                self.source, count, promised,
            )  # fmt: skip


def _size_of(capture: cv2.VideoCapture) -> tuple[int, int]:
    return (
        int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)),
        int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)),
    )
