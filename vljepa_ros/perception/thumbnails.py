"""Small JPEG pictures of what a camera saw: the same for a live stream and for a recording."""

from __future__ import annotations

import cv2
import numpy as np

LONGEST = 320  # pixels
QUALITY = 80


def thumbnail(picture: np.ndarray, longest: int = LONGEST) -> bytes:
    """RGB uint8 `[H, W, 3]` as a JPEG whose longer side is at most `longest`, never enlarged."""
    height, width = picture.shape[:2]
    scale = longest / max(height, width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(
        ".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
    )
    return data.tobytes()
