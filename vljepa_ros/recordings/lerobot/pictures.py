"""The pictures of an episode, each at its own time.

Invariant: an episode gives the picture nearest to each of its rows, half a frame off at most, or
ends with an EpisodeError that says what is missing: never fewer, and none twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vljepa_ros.perception.compressed import image_to_rgb

from ..offline import RecordedFrame
from ..video_file import VideoError, VideoFile
from .dataset import Episode, EpisodeError
from .rows import Rows, images

Picture = Callable[[], np.ndarray]


def pictures(rows: Rows) -> Iterator[tuple[float, Picture]]:
    """(seconds from the start of the episode, picture) of every row. EpisodeError.

    `picture()`: RGB uint8 `[H, W, 3]`; EpisodeError where it cannot be decoded.
    """
    return _of_video(rows) if rows.episode.video else _of_images(rows)


def recorded_frames(rows: Rows, camera: str, start_ns: int) -> Iterator[RecordedFrame]:
    """The frames of an episode that begins at the stamp `start_ns`. EpisodeError."""
    for seconds, picture in pictures(rows):
        stamp_ns = start_ns + round(seconds * 1e9)
        yield RecordedFrame(camera, stamp_ns, "", stamp_ns, picture)


def _of_video(rows: Rows) -> Iterator[tuple[float, Picture]]:
    episode = rows.episode
    half = 0.5 / episode.dataset.fps
    begins = episode.video_begins
    try:
        file = _video(episode)
        found = file.stretch(begins + rows.times[0] - half, begins + rows.times[-1] + half)
        near = ((at - begins, picture) for at, picture in found)
        yield from _nearest(rows, near, half)
    except VideoError as error:
        raise EpisodeError(episode, str(error)) from error


def _nearest(
    rows: Rows, found: Iterable[tuple[float, Picture]], half: float
) -> Iterator[tuple[float, Picture]]:
    """The picture nearest to each row."""
    times: Sequence[float] = rows.times.tolist()
    row = 0
    before: tuple[float, Picture] = (-math.inf, _none)
    for at, picture in _ended(found):
        while row < len(times) and abs(before[0] - times[row]) <= abs(at - times[row]):
            if abs(before[0] - times[row]) > half * (1 + 1e-6):
                raise EpisodeError(
                    rows.episode,
                    f"its picture at {times[row]:.3f} s is missing or damaged in "
                    f"{rows.episode.video}.",
                )
            yield times[row], before[1]
            row += 1
        before = (at, picture)


def _ended(found: Iterable[tuple[float, Picture]]) -> Iterator[tuple[float, Picture]]:
    yield from found
    yield math.inf, _none


def _none() -> np.ndarray:
    raise AssertionError("no picture")


def _video(episode: Episode) -> VideoFile:
    """The episode's video file; that which was opened last is kept."""
    opened, path = episode.dataset.opened, episode.root / episode.video
    if opened.get("video", ("",))[0] != episode.video:
        if not path.is_file():
            raise EpisodeError(episode, f"there is no {episode.video}.")
        opened["video"] = (episode.video, VideoFile(path))
    video: VideoFile = opened["video"][1]
    return video


def _of_images(rows: Rows) -> Iterator[tuple[float, Picture]]:
    for seconds, value in zip(rows.times.tolist(), images(rows.episode)):
        yield seconds, partial(_image, rows.episode, seconds, value)


def _image(episode: Episode, seconds: float, value: Any) -> np.ndarray:
    try:
        return image_to_rgb(_bytes(episode.root, value.as_py()))
    except (OSError, ValueError) as error:
        raise EpisodeError(episode, f"its picture at {seconds:.3f} s: {error}") from error


def _bytes(root: Path, value: Any) -> bytes:
    """The image file that a value is: its bytes, or where it lies."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict) and value.get("bytes"):
        return bytes(value["bytes"])
    if isinstance(value, dict) and value.get("path"):
        return (root / str(value["path"])).read_bytes()
    raise ValueError("it holds no image.")
