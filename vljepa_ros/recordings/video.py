"""Pictures from a video file, a folder of images or a camera device, with their times.

Invariant: the stamps of one source rise strictly, and those of a file or folder are the same on
every run.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from vljepa_ros.perception.images import FULL_RANGE, Levels, Note, ignore
from vljepa_ros.stamps import SECOND_NS

from .image_folder import IMAGES, folder_pictures, image_paths
from .video_file import VideoError, VideoFile

log = logging.getLogger(__name__)

FOLDER_FPS = 10.0


class VideoSource:
    """A source of pictures: a video file, a folder of images, or a camera device.

    `source`: a path, `/dev/videoN` or a device number. `fps`: the rate of a folder of images
    (10 by default), or the mean rate at which a file is to be played. `levels`, `note`: of a
    folder's images, as for `to_rgb`. `tell` is told what is left out of a file or folder, which
    can be read any number of times. Attributes: `fps` (mean; 0 where a file or device does not
    say), `size` (width, height) of the first picture, `seconds` (its length, about; 0 where it does
    not say), `live`. Raises VideoError.
    """

    def __init__(
        self,
        source: str | Path | int,
        fps: float | None = None,
        levels: Levels = FULL_RANGE,
        note: Note = ignore,
        tell: Callable[[str], None] = log.warning,
    ) -> None:
        if fps is not None and not fps > 0:
            raise VideoError(f"The rate of {source} must be above 0 frames per second, not {fps}.")
        self.source = str(source)
        self._reading, self._tell = (levels, note, tell), tell
        device = re.fullmatch(r"(?:/dev/video)?(\d+)", self.source)
        self.live = device is not None and not Path(self.source).is_file()
        self._capture: cv2.VideoCapture | None = None
        self._images: list[Path] = []
        self._file: VideoFile | None = None
        self.seconds = 0.0
        if self.live and device is not None:
            self._open_device(int(device[1]), fps)
        elif Path(self.source).is_dir():
            self._open_folder(Path(self.source), fps)
        else:
            self._open_file(fps)

    def frames(self) -> Iterator[tuple[int, np.ndarray]]:
        """(offset in nanoseconds from the start, RGB uint8 `[H, W, 3]`) of every picture.

        The offset of a picture of a file is the file's own time for it, at another rate stretched
        or squeezed; of a folder its number over the rate; of a device the monotonic time since its
        first picture. After a whole run over a file `seconds` is what it took.
        """
        if self.live:
            yield from self._live_frames()
            return
        offset = -1
        for offset, picture in self._file_pictures() if self._file else self._folder_pictures():
            yield offset, picture
        if offset < 0:
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
        self._file = VideoFile(path, self._tell)
        if fps is not None and not self._file.fps:
            raise VideoError(f"{path} does not say its mean rate; play it at its own, without one.")
        self.fps = fps or self._file.fps
        self._slower = Fraction(self._file.fps) / Fraction(fps) if fps else Fraction(1)
        self.seconds = self._file.seconds * float(self._slower)
        self.size = self._file.size

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

    def _folder_pictures(self) -> Iterator[tuple[int, np.ndarray]]:
        for number, picture in folder_pictures(self._images, *self._reading):
            yield round(number * 1e9 / self.fps), picture

    def _file_pictures(self) -> Iterator[tuple[int, np.ndarray]]:
        assert self._file is not None  # neither a device nor a folder
        for seconds, picture in self._file.pictures():
            yield round(seconds * self._slower * SECOND_NS), picture
        self.seconds = self._file.seconds * float(self._slower)


def _size_of(capture: cv2.VideoCapture) -> tuple[int, int]:
    return (
        int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)),
        int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)),
    )
