"""Stamps, numbers and pictures as ROS messages hold them."""

from __future__ import annotations

from array import array

import numpy as np
from builtin_interfaces.msg import Time
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from vljepa_ros.stamps import SECOND_NS


def to_time(stamp_ns: int) -> Time:
    """Nanoseconds as a stamp."""
    return Time(sec=stamp_ns // SECOND_NS, nanosec=stamp_ns % SECOND_NS)


def floats(values: np.ndarray) -> array:
    """A float32 array as the type that rclpy takes without looking at every element."""
    result = array("f")
    result.frombytes(np.ascontiguousarray(values, np.float32).tobytes())
    return result


def rgb_message(picture: np.ndarray, header: Header) -> Image:
    """RGB uint8 `[H, W, 3]` as an rgb8 Image."""
    height, width = picture.shape[:2]
    data = array("B")
    data.frombytes(np.ascontiguousarray(picture).tobytes())
    return Image(
        header=header, height=height, width=width, encoding="rgb8", step=3 * width, data=data
    )


def jpeg_message(data: bytes, header: Header) -> CompressedImage:
    """A JPEG as a CompressedImage."""
    return CompressedImage(header=header, format="jpeg", data=array("B", data))
