"""Small rosbag2 recordings for tests, written through rosbags."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

TYPES = get_typestore(Stores.ROS2_HUMBLE)
RAW, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
LATE = 30_000_000  # nanoseconds from an image's stamp to when it was recorded


def write_bag(
    path: Path,
    images: Iterable[tuple[str, int, Any]],
    plugin: StoragePlugin = StoragePlugin.MCAP,
    logs: Iterable[int] | None = None,
    packed: CompressionMode | None = None,
) -> Path:
    """A bag of (topic, stamp_ns, picture): RGB uint8 `[H, W, 3]`, or float32 or uint16 `[H, W]`.

    A topic that ends with /compressed gets PNGs. `logs`: when they were recorded, in nanoseconds.
    `packed`: what is compressed with zstd.
    """
    connections: dict[str, Any] = {}
    writer = Writer(path, version=8, storage_plugin=plugin)
    if packed is not None:
        writer.set_compression(packed, CompressionFormat.ZSTD)
    recorded = None if logs is None else iter(logs)
    with writer as bag:
        for topic, stamp_ns, picture in images:
            kind = COMPRESSED if topic.endswith("/compressed") else RAW
            if topic not in connections:
                connections[topic] = bag.add_connection(topic, kind, typestore=TYPES)
            data = TYPES.serialize_cdr(image_message(kind, stamp_ns, picture), kind)
            log_ns = stamp_ns + LATE if recorded is None else next(recorded)
            bag.write(connections[topic], log_ns, data)
    return path


def image_message(kind: str, stamp_ns: int, picture: np.ndarray) -> Any:
    """An Image, or a PNG in a CompressedImage."""
    types = TYPES.types
    stamp = types["builtin_interfaces/msg/Time"](stamp_ns // 10**9, stamp_ns % 10**9)
    header = types["std_msgs/msg/Header"](stamp, "optical")
    if kind == COMPRESSED:
        png = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].ravel()
        return types[kind](header, "png", png)
    height, width = picture.shape[:2]
    encoding = {"uint8": "rgb8", "float32": "32FC1", "uint16": "mono16"}[picture.dtype.name]
    data = np.ascontiguousarray(picture).view(np.uint8).ravel()
    return types[kind](header, height, width, encoding, 0, data.size // height, data)
