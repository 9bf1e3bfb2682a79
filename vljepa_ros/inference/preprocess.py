"""A camera picture into the square picture that the X-encoder takes.

Invariant: what comes out is the whole picture, "squashed" to a square, or "shorter side to the
size, centre crop", whichever filter resizes.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

BLOCK = 32  # pixels of the result that are made from one piece of the picture
Weights = list[tuple[int, int, np.ndarray]]


def prepare(
    image: np.ndarray, size: int, resample: str = "area", resize: str = "shorter_side"
) -> np.ndarray:
    """Resize an RGB picture to a square of `size` pixels.

    `image`: uint8 `[H, W, 3]`, any H and W above 0. Returns uint8 `[size, size, 3]`, always a
    fresh array. `resize`: `shorter_side` gives the shorter side `size` pixels and crops the centre;
    `squash` gives both sides `size` pixels. `resample`: `area` is the fast one, which crops first
    and touches fewer pixels; `bilinear` is torchvision's (with antialiasing), to half a grey level;
    `bicubic` and `pil_bilinear` are Pillow's, to the bit where that goes across before it goes
    down (Pillow 13 turns the two about for some tall pictures). Public checkpoints were trained
    with those.
    """
    if resample != "area":
        return _filtered(image, size, resample, resize)
    if resize == "shorter_side":
        height, width = image.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image = image[top : top + side, left : left + side]
    if image.shape[:2] == (size, size):
        return np.array(image, order="C")
    return np.asarray(cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA))


def _filtered(image: np.ndarray, size: int, resample: str, resize: str) -> np.ndarray:
    """First across, then down; Pillow rounds to whole grey levels between the two."""
    height, width = image.shape[:2]
    side = min(height, width)
    tall, wide = (
        (size, size) if resize == "squash" else (size * height // side, size * width // side)
    )
    down, across = _weights(height, tall, size, resample), _weights(width, wide, size, resample)
    top, bottom = down[0][0], down[-1][1]  # rows that nothing is taken of are left
    columns = cv2.transpose(np.ascontiguousarray(image[top:bottom]))
    between = _mixed(columns.reshape(width, -1), across, 0).reshape(size, bottom - top, 3)
    if resample != "bilinear":
        between = _rounded(between)
    rows = cv2.transpose(between).reshape(bottom - top, -1)
    return np.asarray(_rounded(_mixed(rows, down, top)).reshape(size, size, 3), np.uint8)


def _mixed(lines: np.ndarray, weights: Weights, offset: int) -> np.ndarray:
    """Lines `[n, any]`, the first of which is number `offset`, mixed into new ones, float64."""
    return np.concatenate(
        [
            mix @ lines[first - offset : last - offset].astype(np.float64)
            for first, last, mix in weights
        ]
    )


def _rounded(values: np.ndarray) -> np.ndarray:
    """Whole grey levels; halves go up, as in Pillow."""
    return np.floor(values + 0.5).clip(0, 255)


@lru_cache(maxsize=32)
def _weights(length: int, resized: int, size: int, resample: str) -> Weights:
    """What each of the `size` middle pixels of `resized` takes of `length`; rows sum to 1.

    In blocks of pixels: (first line that they take of, last and one, float64 `[pixels, lines]`).
    The filter is as wide as a pixel of the smaller picture.
    """
    scale = length / resized
    reach = max(scale, 1.0)
    pillow = resample != "bilinear"
    first = (resized - size) // 2 if pillow else round((resized - size) / 2)
    centres = (np.arange(first, first + size) + 0.5) * scale
    distance = np.abs(np.arange(length) + 0.5 - centres[:, None]) / reach
    shape, support = (_cubic, 2.0) if resample == "bicubic" else (_triangle, 1.0)
    weights = shape(distance)
    if pillow:
        # Its window of lines is whole, and what it takes of them a multiple of 2^-22.
        lines = np.arange(length)
        begin = np.floor(np.maximum(centres - support * reach + 0.5, 0)).astype(int)
        end = np.floor(np.minimum(centres + support * reach + 0.5, length)).astype(int)
        weights[(lines < begin[:, None]) | (lines >= end[:, None])] = 0
        weights /= weights.sum(1, keepdims=True)
        fixed = weights * (1 << 22)
        weights = np.trunc(fixed + np.copysign(0.5, fixed)) / (1 << 22)
    else:
        weights /= weights.sum(1, keepdims=True)
    blocks = []
    for start in range(0, size, BLOCK):
        block = weights[start : start + BLOCK]
        taken = np.flatnonzero(block.any(0))
        one, end = int(taken[0]), int(taken[-1]) + 1
        blocks.append((one, end, np.ascontiguousarray(block[:, one:end])))
    return blocks


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.maximum(1 - x, 0))


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic with a = -0.5."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
