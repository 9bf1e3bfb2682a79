"""Raw pictures into RGB arrays, ROS-free: functions of a message's fields.

Invariant: a picture that cannot be decoded whole and as declared is a ValueError of one sentence,
never a picture that is partly wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
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
_YUV420 = {"nv12": cv2.COLOR_YUV2RGB_NV12, "nv21": cv2.COLOR_YUV2RGB_NV21}
_GREY16 = ("mono16", "16uc1")
ENCODINGS = (*_PACKED, *_GREY16, *_YUV420)

Note = Callable[[str], object]  # takes a sentence on a picture that is right, but could be better
Levels = tuple[int, int]  # black and white of 16-bit pictures
FULL_RANGE = (0, 65535)
FEW_GREYS = 16  # of 256, below which little can be seen
LARGEST = 2**28  # pixels; beyond it a header is rather damaged than true
LONGEST = 2**16  # pixels of a side


class UnknownEncodingError(ValueError):
    """The encoding is none of ENCODINGS."""


def ignore(_: str) -> None:
    """A `Note` that nobody reads."""


def to_rgb(
    encoding: str,
    width: int,
    height: int,
    step: int,
    is_bigendian: bool,
    data: Any,
    levels: Levels = FULL_RANGE,
    note: Note = ignore,
) -> np.ndarray:
    """The picture of a sensor_msgs Image as RGB uint8 `[height, width, 3]`, C-contiguous.

    `step`: bytes from the start of one row to the next. `data`: anything with a buffer of
    `step * height` bytes (nv12, nv21: half as many rows again), or of whole rows more, which
    are left out (but for nv12, nv21, where nobody can tell where the colours begin). An rgb8
    picture without padding is a view of `data`, so `data` must not be written to afterwards.
    16 bits become 8 by `levels`, see `grey16_to_grey`; YUV is BT.601 of limited range, as camera
    drivers send it. Raises ValueError.
    """
    encoding = encoding.strip().lower()
    if encoding not in ENCODINGS:
        raise UnknownEncodingError(
            f"The encoding {encoding!r} is not known; known are {', '.join(sorted(ENCODINGS))}."
        )
    check_size(width, height)
    buffer = np.frombuffer(data, np.uint8)
    if encoding in _YUV420:
        return _yuv420(encoding, width, height, step, buffer)
    if encoding in _GREY16:
        rows = np.ascontiguousarray(_rows(encoding, width, height, step, 2, buffer))
        values = rows.view(">u2" if is_bigendian else "<u2")
        return _grey_to_rgb(grey16_to_grey(values, levels, note))
    if encoding in _YUV422 and width % 2:
        raise ValueError(f"A {encoding} image must have an even width, not {width}.")
    if encoding.startswith("bayer") and min(width, height) < 2:
        raise ValueError(f"A {encoding} image must be at least 2 x 2, not {width} x {height}.")
    depth, conversion = _PACKED[encoding]
    rows = _rows(encoding, width, height, step, depth, buffer)
    pixels = rows if depth == 1 else _pixels(rows, width, depth)
    return np.ascontiguousarray(pixels) if conversion is None else cv2.cvtColor(pixels, conversion)


def check_size(width: int, height: int) -> None:
    """ValueError, a sentence, where no picture has such sides."""
    if width <= 0 or height <= 0:
        raise ValueError(f"The image is {width} x {height} pixels; it must not be empty.")
    if max(width, height) > LONGEST or width * height > LARGEST:
        raise ValueError(
            f"The image is said to be {width} x {height} pixels; no more than {LARGEST // 2**20} "
            "megapixels are decoded, and its header is rather damaged than true."
        )


def grey16_to_grey(values: np.ndarray, levels: Levels, note: Note) -> np.ndarray:
    """Values of 16 bits, of any shape, as uint8: 256 equal parts of `levels`.

    `levels`: (black, white), the lowest and the highest value that matter; what lies outside is
    black or white. The full range leaves the upper 8 bits. The scale is the same for every
    picture, so that what does not change looks the same. `note` hears where hardly anything is
    left to be seen.
    """
    grey: np.ndarray = _greys(*levels)[values]
    if grey.size and int(grey.max()) - int(grey.min()) < FEW_GREYS:
        note(
            f"the 16-bit pictures, with values from {values.min()} to {values.max()}, have less "
            f"than {FEW_GREYS} of 256 grey levels; set 'black' and 'white' to the lowest and the "
            "highest value that the scenes have."
        )
    return grey


@lru_cache(maxsize=8)
def _greys(black: int, white: int) -> np.ndarray:
    """The grey of every value of 16 bits, uint8 `[65536]`."""
    greys = (np.arange(65536, dtype=np.int64) - black) * 256 // (white + 1 - black)
    return np.clip(greys, 0, 255).astype(np.uint8)


def bayer_to_rgb(encoding: str, mosaic: np.ndarray, note: Note) -> np.ndarray:
    """A mosaic, uint8 `[H, W]`, as RGB; grey, with a note, where `encoding` names no pattern."""
    pattern = re.fullmatch(r"bayer_(rggb|bggr|gbrg|grbg)(8|16)", encoding)
    if pattern is None or min(mosaic.shape) < 2:
        note(
            f"the images are a raw Bayer mosaic of {encoding!r}, whose colours cannot be had; send "
            "colour images, or bayer_rggb8, bayer_bggr8, bayer_gbrg8, bayer_grbg8."
        )
        return _grey_to_rgb(mosaic)
    height, width = mosaic.shape
    return to_rgb(f"bayer_{pattern[1]}8", width, height, width, False, mosaic.ravel())


def _grey_to_rgb(grey: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB))


def _rows(
    encoding: str, width: int, height: int, step: int, depth: int, buffer: np.ndarray
) -> np.ndarray:
    """The rows without their padding, `[height, width * depth]`, a view."""
    if step < width * depth:
        raise ValueError(
            f"A step of {step} bytes is too short for {width} pixels of {encoding}, which take "
            f"{width * depth}."
        )
    surplus = buffer.size - step * height
    if surplus < 0 or surplus % step or (surplus and encoding in _YUV420):
        raise ValueError(
            f"The data hold {buffer.size} bytes, but step * height is {step} * {height} = "
            f"{step * height}."
        )
    return buffer[: step * height].reshape(height, step)[:, : width * depth]


def _pixels(rows: np.ndarray, width: int, depth: int) -> np.ndarray:
    """`[height, width * depth]` as `[height, width, depth]`, a view even where rows are padded."""
    if rows.flags.c_contiguous:
        return rows.reshape(rows.shape[0], width, depth)
    return np.lib.stride_tricks.as_strided(
        rows, (rows.shape[0], width, depth), (rows.strides[0], depth, 1)
    )


def _yuv420(encoding: str, width: int, height: int, step: int, buffer: np.ndarray) -> np.ndarray:
    if width % 2 or height % 2:
        raise ValueError(f"An {encoding} image must have even sides, not {width} x {height}.")
    planes = _rows(encoding, width, height * 3 // 2, step, 1, buffer)
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(planes), _YUV420[encoding]))
