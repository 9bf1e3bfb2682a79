"""Image messages into RGB arrays, ROS-free: functions of a message's fields.

Invariant: a picture that cannot be decoded whole and as declared is a ValueError of one sentence,
never a picture that is partly wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

# (bytes per pixel, conversion of the packed array to RGB). `None`: it is RGB already.
_PACKED: dict[str, tuple[int, int | None]] = {
    "rgb8": (3, None),
    "bgr8": (3, cv2.COLOR_BGR2RGB),
    "rgba8": (4, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, cv2.COLOR_BGRA2RGB),
    "mono8": (1, cv2.COLOR_GRAY2RGB),
    "yuv422": (2, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": (2, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": (2, cv2.COLOR_YUV2RGB_YUY2),
    "yuyv": (2, cv2.COLOR_YUV2RGB_YUY2),
    # ROS names the pattern by its first row, OpenCV by the second row from the second column.
    "bayer_rggb8": (1, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr8": (1, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg8": (1, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg8": (1, cv2.COLOR_BayerGB2RGB),
}
_YUV422 = ("yuv422", "uyvy", "yuv422_yuy2", "yuyv")
ENCODINGS = (*_PACKED, "mono16", "nv12")


class UnknownEncodingError(ValueError):
    """The encoding is none of ENCODINGS."""


def to_rgb(
    encoding: str, width: int, height: int, step: int, is_bigendian: bool, data: Any
) -> np.ndarray:
    """The picture of a sensor_msgs Image as RGB uint8 `[height, width, 3]`, C-contiguous.

    `step`: bytes from the start of one row to the next. `data`: anything with a buffer of
    `step * height` bytes (nv12: half as many rows again). An rgb8 picture without padding is a
    view of `data`, so `data` must not be written to afterwards. mono16 keeps the upper 8 bits;
    YUV is BT.601 of limited range, as camera drivers send it. Raises ValueError.
    """
    encoding = encoding.strip().lower()
    if encoding not in ENCODINGS:
        raise UnknownEncodingError(
            f"The encoding '{encoding}' is not known; known are {', '.join(sorted(ENCODINGS))}."
        )
    if width <= 0 or height <= 0:
        raise ValueError(f"The image is {width} x {height} pixels; it must not be empty.")
    buffer = np.frombuffer(data, np.uint8)
    if encoding == "nv12":
        return _nv12(width, height, step, buffer)
    if encoding == "mono16":
        rows = _rows(encoding, width, height, step, 2, buffer)
        return cv2.cvtColor(rows[:, (0 if is_bigendian else 1) :: 2].copy(), cv2.COLOR_GRAY2RGB)
    if encoding in _YUV422 and width % 2:
        raise ValueError(f"A {encoding} image must have an even width, not {width}.")
    if encoding.startswith("bayer") and min(width, height) < 2:
        raise ValueError(f"A {encoding} image must be at least 2 x 2, not {width} x {height}.")
    depth, conversion = _PACKED[encoding]
    rows = _rows(encoding, width, height, step, depth, buffer)
    pixels = rows if depth == 1 else _pixels(rows, width, depth)
    return np.ascontiguousarray(pixels) if conversion is None else cv2.cvtColor(pixels, conversion)


def _rows(
    encoding: str, width: int, height: int, step: int, depth: int, buffer: np.ndarray
) -> np.ndarray:
    """The rows without their padding, `[height, width * depth]`, a view."""
    if step < width * depth:
        raise ValueError(
            f"A step of {step} bytes is too short for {width} pixels of {encoding}, which take "
            f"{width * depth}."
        )
    if buffer.size != step * height:
        raise ValueError(
            f"The data hold {buffer.size} bytes, but step * height is {step} * {height} = "
            f"{step * height}."
        )
    return buffer.reshape(height, step)[:, : width * depth]


def _pixels(rows: np.ndarray, width: int, depth: int) -> np.ndarray:
    """`[height, width * depth]` as `[height, width, depth]`, a view even where rows are padded."""
    if rows.flags.c_contiguous:
        return rows.reshape(rows.shape[0], width, depth)
    return np.lib.stride_tricks.as_strided(
        rows, (rows.shape[0], width, depth), (rows.strides[0], depth, 1)
    )


def _nv12(width: int, height: int, step: int, buffer: np.ndarray) -> np.ndarray:
    if width % 2 or height % 2:
        raise ValueError(f"An nv12 image must have even sides, not {width} x {height}.")
    planes = _rows("nv12", width, height * 3 // 2, step, 1, buffer)
    return cv2.cvtColor(np.ascontiguousarray(planes), cv2.COLOR_YUV2RGB_NV12)


def compressed_to_rgb(format: str, data: Any) -> np.ndarray:
    """The picture of a CompressedImage, JPEG or PNG, as RGB uint8 `[H, W, 3]`, C-contiguous.

    What it is is read from the data, as drivers fill `format` in many ways. Raises ValueError.
    """
    buffer = np.frombuffer(data, np.uint8)
    kind, is_whole = _kind_of(format, buffer)
    if not is_whole(buffer[-64:].tobytes()):
        raise ValueError(f"The {kind} image is cut short after {buffer.size} bytes.")
    try:
        picture = cv2.imdecode(buffer, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        picture = None
    if picture is None:
        raise ValueError(f"The {kind} image of {buffer.size} bytes is damaged.")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def _kind_of(format: str, buffer: np.ndarray) -> tuple[str, Callable[[bytes], bool]]:
    """The name of what the data are, and whether a tail of them is the end of a whole one."""
    for kind, magic, is_whole in _COMPRESSED:
        if buffer[: len(magic)].tobytes() == magic:
            return kind, is_whole
    raise ValueError(
        f"The compressed image (format '{format}', {buffer.size} bytes) is neither JPEG nor PNG."
    )


# OpenCV decodes the rest of a JPEG that is cut short as grey, so its end is looked for. Some
# cameras pad the data with zeros.
_COMPRESSED: tuple[tuple[str, bytes, Callable[[bytes], bool]], ...] = (
    ("JPEG", b"\xff\xd8", lambda tail: tail.rstrip(b"\0").endswith(b"\xff\xd9")),
    ("PNG", b"\x89PNG\r\n\x1a\n", lambda tail: b"IEND\xaeB\x60\x82" in tail),
)
