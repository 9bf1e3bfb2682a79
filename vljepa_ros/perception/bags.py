"""Pictures from a rosbag2 recording (sqlite3 or MCAP) with their times; needs no ROS.

Invariant: times are those of the message headers, in seconds from the topic's first picture, and
rise strictly; a picture that comes late is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vljepa_ros.perception.images import compressed_to_rgb, to_rgb
from vljepa_ros.runtime.errors import VLJepaError

RAW, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"


class BagError(VLJepaError):
    """A bag cannot be read, or has no such pictures."""


def image_topics(path: Path) -> list[str]:
    """The topics of the bag that hold images, sorted. Raises BagError."""
    with _opened(path) as bag:
        return sorted({c.topic for c in bag.connections if c.msgtype in (RAW, COMPRESSED)})


def bag_pictures(path: Path, topic: str) -> Iterator[tuple[float, np.ndarray]]:
    """(seconds from the topic's first picture, RGB uint8 `[H, W, 3]`) of every picture of `topic`.

    `path` is a bag's folder, or its one .db3 or .mcap file. Raises BagError.
    """
    with _opened(path) as bag:
        found = [c for c in bag.connections if c.topic == topic]
        first = newest = 0
        for connection, _, data in bag.messages(connections=found):
            message = bag.deserialize(data, connection.msgtype)
            stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
            if stamp == 0:
                raise BagError(
                    f"The images on {topic} in {path} have no time in their headers; record them "
                    "from a driver that stamps them."
                )
            if stamp <= newest:
                continue
            first, newest = first or stamp, stamp
            seconds = (stamp - first) / 1e9
            try:
                yield seconds, _decoded(message, connection.msgtype)
            except ValueError as error:
                raise BagError(
                    f"The image at {seconds:.2f} s of {topic} in {path}: {error}"
                ) from error


def _decoded(message: Any, kind: str) -> np.ndarray:
    if kind == COMPRESSED:
        return compressed_to_rgb(message.format, message.data)
    return to_rgb(
        message.encoding, message.width, message.height, message.step,
        bool(message.is_bigendian), message.data,
    )  # fmt: skip


class _opened:
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
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise BagError(
                f"{self.path} is not a rosbag2 recording that can be read ({reason}); `ros2 bag "
                "reindex` repairs one that was cut short."
            ) from error
        return self.bag

    def __exit__(self, *_: object) -> None:
        self.bag.close()
