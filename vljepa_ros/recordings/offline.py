"""The semantic stream of a recording without ROS: the same steps as live.

Invariant: frame by frame, it makes the same calls as the perception node, so equal stamps and
pictures give equal steps. Nothing is dropped, however slow the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from vljepa_ros.perception.images import FULL_RANGE, Levels, Note, ignore
from vljepa_ros.perception.perceiver import Perceiver, Step
from vljepa_ros.stamps import SECOND_NS

from .bags import bag_images
from .left_out import LeftOut
from .video import VideoSource


@dataclass(frozen=True)
class RecordedFrame:
    """A frame of a recording. `log_ns`: when it was recorded.

    `picture()`: RGB uint8 `[H, W, 3]`; ValueError, a sentence, where it cannot be decoded.
    """

    camera: str
    stamp_ns: int
    frame_id: str
    log_ns: int
    picture: Callable[[], np.ndarray]


def video_frames(
    source: VideoSource, camera: str, start_ns: int = SECOND_NS
) -> Iterator[RecordedFrame]:
    """The frames of a video, with stamps `start_ns + offset`, as the camera node stamps them.

    `start_ns`: the stamp of the first frame, above 0. At whole rates in Hz any whole second
    selects the same frames.
    """
    for offset_ns, picture in source.frames():
        stamp_ns = start_ns + offset_ns
        yield RecordedFrame(camera, stamp_ns, "", stamp_ns, partial(np.asarray, picture))


def bag_frames(
    path: Path,
    cameras: dict[str, str],
    left_out: LeftOut,
    levels: Levels = FULL_RANGE,
    note: Note = ignore,
) -> Iterator[RecordedFrame]:
    """The frames of a bag in the order they were recorded. BagError.

    `cameras`: names by topic. `levels`, `note`: as for `to_rgb`.
    """
    for image in bag_images(path, list(cameras), left_out):
        picture = partial(image.picture, levels, note)
        yield RecordedFrame(
            cameras[image.topic], image.stamp_ns, image.frame_id, image.log_ns, picture
        )


def perceive(
    frames: Iterable[RecordedFrame],
    perceiver: Perceiver,
    reject: Callable[[RecordedFrame, str], None],
) -> Iterator[tuple[RecordedFrame, np.ndarray, list[Step]]]:
    """(frame, its picture, its steps) of the frames that have steps.

    `reject(frame, reason)` is called for a frame that is due and cannot be decoded; it is left out.
    """
    for frame in frames:
        if not perceiver.due(frame.camera, frame.stamp_ns).due:
            continue
        try:
            picture = frame.picture()
        except ValueError as error:
            perceiver.refuse(frame.camera, frame.stamp_ns)
            reject(frame, str(error))
            continue
        if perceiver.take(frame.camera, frame.stamp_ns, frame.frame_id, picture):
            yield frame, picture, perceiver.step([frame.camera])


def seconds(stamp_ns: int) -> float:
    """Since the first frame of a stream that begins at `SECOND_NS`, as `run` has it."""
    return (stamp_ns - SECOND_NS) / SECOND_NS


def run(source: VideoSource, perceiver: Perceiver, start_ns: int = SECOND_NS) -> Iterator[Step]:
    """The steps of every frame of `source`, as the perceiver's first camera."""
    frames = video_frames(source, perceiver.cameras[0], start_ns)
    for _, _, steps in perceive(frames, perceiver, lambda frame, reason: None):
        yield from steps
