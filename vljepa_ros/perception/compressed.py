"""Compressed pictures into RGB arrays: CompressedImage messages and image files, ROS-free.

Invariant: a picture that is not whole, as far as its format lets anybody tell, is a ValueError of
one sentence, never a picture that is partly wrong, and nothing is printed.
"""

from __future__ import annotations

import re
from typing import Any

import cv2
import numpy as np

from .formats import jpeg, png
from .images import FULL_RANGE, Levels, Note, bayer_to_rgb, grey16_to_grey, ignore

# OpenCV's own lines, frame by frame, say what our sentences say. (4 and 5 have it in two places.)
(getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel)(0)

_VIDEO = re.compile(r"h\.?26[45]|hevc|\bavc")
_VIDEO_BEGINS = (b"\0\0\1", b"\0\0\0\1")


def compressed_to_rgb(
    format: str, data: Any, levels: Levels = FULL_RANGE, note: Note = ignore
) -> np.ndarray:
    """The picture of a CompressedImage, JPEG or PNG, as RGB uint8 `[H, W, 3]`, C-contiguous.

    What it is is read from the data, as drivers fill `format` in many ways. But where that names a
    raw Bayer encoding, and no other that the data were converted to, they are taken for its mosaic.
    `levels`, `note`: as for `to_rgb`. Raises ValueError.
    """
    data = np.frombuffer(data, np.uint8).tobytes()
    if data.startswith(jpeg.MAGIC):
        picture = jpeg.jpeg_to_rgb(data)
    elif data.startswith(png.MAGIC):
        picture = _decoded("PNG image", png.whole_png(data), len(data), levels, note)
    else:
        raise ValueError(_what_it_is(format, data))
    encoding, _, converted = format.strip().lower().partition(";")
    if encoding.startswith("bayer") and not re.search("(bgr|rgb)a?8", converted):
        return bayer_to_rgb(encoding, picture[..., 0], note)
    return picture


def image_to_rgb(content: bytes, levels: Levels = FULL_RANGE, note: Note = ignore) -> np.ndarray:
    """The picture of an image file, upright, as RGB uint8 `[H, W, 3]`, C-contiguous.

    JPEG, PNG and what else OpenCV knows. BMP, PPM, TIFF and WebP have no checksums: of those only
    what is cut short is told. `levels`, `note`: as for `to_rgb`. Raises ValueError.
    """
    if content.startswith(jpeg.MAGIC):
        picture = jpeg.jpeg_to_rgb(content)
        if b"Exif\0\0" not in content:
            return picture
    elif content.startswith(png.MAGIC):
        return _decoded("PNG image", png.whole_png(content), len(content), levels, note)
    return _decoded("image file", content, len(content), levels, note)


def _decoded(kind: str, content: bytes, size: int, levels: Levels, note: Note) -> np.ndarray:
    """What OpenCV makes of `content`, of `size` bytes when it came."""
    try:
        picture = cv2.imdecode(
            np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
        )
    except cv2.error:
        picture = None
    if picture is None:
        raise ValueError(f"The {kind} of {size} bytes cannot be decoded; it is damaged.")
    if picture.dtype == np.uint16:
        picture = grey16_to_grey(picture, levels, note)
    if picture.dtype != np.uint8:
        raise ValueError(f"The {kind} holds {picture.dtype} values; it must hold 8 or 16 bits.")
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))


def _what_it_is(format: str, data: bytes) -> str:
    """A sentence on data that are neither JPEG nor PNG."""
    said = f"(format {format!r}, {len(data)} bytes)"
    if _VIDEO.search(format.lower()) or data.startswith(_VIDEO_BEGINS):
        return (
            f"The compressed image {said} is a piece of H.264 or H.265 video, which is no picture "
            "by itself; have the driver send JPEG, or have its decoder (ffmpeg_image_transport, "
            "isaac_ros_h264_decoder) send raw images, and set 'transport' to raw."
        )
    if "compresseddepth" in format.lower():
        return (
            f"The compressed image {said} holds depths; take the camera's picture, on the topic "
            "that ends with /compressed."
        )
    return f"The compressed image {said} is neither JPEG nor PNG."
