"""A camera picture into the square picture that the X-encoder takes.

Invariant: what comes out is "shorter side to the size, centre crop", whichever filter resizes.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np


def prepare(image: np.ndarray, size: int, resample: str = "area") -> np.ndarray:
    """Resize an RGB picture so that its shorter side has `size` pixels, and crop its centre.

    `image`: uint8 `[H, W, 3]`, any H and W above 0. Returns uint8 `[size, size, 3]`, always a
    fresh array. `resample`: `area` is the fast one, which crops first and touches fewer pixels;
    `bilinear` is torchvision's `Resize` (with antialiasing) and `CenterCrop`, which public
    checkpoints were trained with, to half a grey level.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    if resample == "bilinear":
        return _bilinear(image, size)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    if side == size:
        return np.array(square, order="C")
    return np.asarray(cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA))


def _bilinear(image: np.ndarray, size: int) -> np.ndarray:
    height, width = image.shape[:2]
    side = min(height, width)
    down, across = (_weights(length, size * length // side, size) for length in (height, width))
    rows = (down @ image.reshape(height, -1).astype(np.float32)).reshape(size, width, -1)
    square = np.matmul(across, rows)
    return np.asarray(np.rint(square).clip(0, 255), np.uint8)


@lru_cache(maxsize=16)
def _weights(length: int, resized: int, size: int) -> np.ndarray:
    """What each of the `size` middle pixels of `resized` takes of `length`: float32, rows sum to 1.

    A triangle over the pixels that fall into it, as wide as a pixel of the smaller picture.
    """
    scale = length / resized
    reach = max(scale, 1.0)
    first = round((resized - size) / 2)
    centres = (np.arange(first, first + size) + 0.5) * scale
    distance = np.abs(np.arange(length) + 0.5 - centres[:, None])
    weights = np.maximum(1 - distance / reach, 0)
    return np.asarray(weights / weights.sum(1, keepdims=True), np.float32)
