"""Pictures from a rosbag2 recording (sqlite3 or MCAP) with their times; needs no ROS.

Invariant: the time of a picture is that of its message's header.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vljepa_ros.errors import VLJepaError
from vljepa_ros.perception.compressed import compressed_to_rgb
from vljepa_ros.perception.images import FULL_RANGE, Levels, Note, ignore, to_rgb
from vljepa_ros.stamps import to_ns

RAW, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"


class BagError(VLJepaError):
    """A bag cannot be read, or has no such pictures."""


@dataclass(frozen=True)
class BagInfo:
    """The topics that hold images, sorted, and the times of the first and last message."""

    image_topics: list[str]
    start_ns: int
    end_ns: int


@dataclass(frozen=True)
class BagImage:
    """An image message. `stamp_ns` is its header's, `log_ns` when it was recorded."""

    topic: str
    stamp_ns: int
    frame_id: str
    log_ns: int
    message: Any

    def picture(self, levels: Levels = FULL_RANGE, note: Note = ignore) -> np.ndarray:
        """RGB uint8 `[H, W, 3]`; ValueError, a sentence, where it cannot be decoded.

        `levels`, `note`: as for `to_rgb`.
        """
        message = self.message
        if message.__msgtype__ == COMPRESSED:
            return compressed_to_rgb(message.format, message.data, levels, note)
        return to_rgb(
            message.encoding, message.width, message.height, message.step,
            bool(message.is_bigendian), message.data, levels, note,
        )  # fmt: skip


def bag_info(path: Path) -> BagInfo:
    """What there is in the bag: a folder, or its one .db3 or .mcap file. Raises BagError."""
    with _opened(path) as bag:
        topics = {c.topic for c in bag.connections if c.msgtype in (RAW, COMPRESSED)}
        return BagInfo(sorted(topics), bag.start_time, bag.end_time)


def bag_images(path: Path, topics: Sequence[str]) -> Iterator[BagImage]:
    """Every image of these topics, in the order they were recorded. Raises BagError."""
    with _opened(path) as bag:
        found = [c for c in bag.connections if c.topic in topics and c.msgtype in (RAW, COMPRESSED)]
        if not found:  # rosbags takes none to mean all
            return
        for connection, log_ns, data in bag.messages(connections=found):
            message = bag.deserialize(data, connection.msgtype)
            header = message.header
            stamp_ns = to_ns(header.stamp)
            if stamp_ns == 0:
                raise BagError(
                    f"The images on {connection.topic} in {path} have no time in their headers; "
                    "record them from a driver that stamps them."
                )
            yield BagImage(connection.topic, stamp_ns, header.frame_id, log_ns, message)


def bag_pictures(path: Path, topic: str) -> Iterator[tuple[float, np.ndarray]]:
    """(seconds from the topic's first picture, RGB uint8 `[H, W, 3]`) of every picture of `topic`.

    Times rise strictly; a picture that comes late is left out. Raises BagError.
    """
    first = newest = 0
    for image in bag_images(path, [topic]):
        if image.stamp_ns <= newest:
            continue
        first, newest = first or image.stamp_ns, image.stamp_ns
        seconds = (image.stamp_ns - first) / 1e9
        try:
            picture = image.picture()
        except ValueError as error:
            raise BagError(f"The image at {seconds:.2f} s of {topic} in {path}: {error}") from error
        yield seconds, picture


class _opened:  # noqa: N801 - called like open()
    """The open bag; what its reader raises becomes a BagError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Any:
        try:
            from rosbags.highlevel import AnyReader
            from rosbags.typesys import Stores, get_typestore
        except ImportError as error:
            raise BagError(f"Reading {self.path} needs rosbags: pip install rosbags.") from error
        try:  # bags of before Iron do not hold their messages' definitions
            self.bag = AnyReader([self.path], default_typestore=get_typestore(Stores.ROS2_HUMBLE))
            self.bag.open()
        except Exception as error:  # its readers let errors of SQLite and of the OS through
            raise self._unreadable(error) from error
        return self.bag

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self.bag.close()
        if isinstance(error, Exception) and not isinstance(error, VLJepaError):
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> BagError:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return BagError(
            f"{self.path} is not a rosbag2 recording that can be read ({reason}); `ros2 bag "
            "reindex` repairs one that was cut short."
        )
