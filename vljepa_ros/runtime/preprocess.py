"""A camera picture into the square picture that the X-encoder takes."""

from __future__ import annotations

import cv2
import numpy as np


def prepare(image: np.ndarray, size: int) -> np.ndarray:
    """Crop the centre square of an RGB picture and resize it by area to `size` pixels.

    `image`: uint8 `[H, W, 3]`, any H and W above 0. Returns uint8 `[size, size, 3]`, always a
    fresh array. This is "shorter side to `size`, centre crop" with the crop done first, which
    touches fewer pixels.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    if side == size:
        return np.array(square, order="C")
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA)
