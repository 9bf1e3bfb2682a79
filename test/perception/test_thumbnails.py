"""Thumbnails: small, never enlarged, in the right colours."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from vljepa_ros.perception.thumbnails import thumbnail


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((640, 480), (320, 240)),
        ((480, 640), (240, 320)),
        ((320, 240), (320, 240)),
        ((64, 48), (64, 48)),
        ((4000, 2), (320, 1)),
        ((1, 1), (1, 1)),
    ],
)
def test_the_longer_side_is_320_pixels_at_most(
    size: tuple[int, int], wanted: tuple[int, int]
) -> None:
    picture = np.full((size[1], size[0], 3), (200, 30, 60), np.uint8)
    small = cv2.imdecode(np.frombuffer(thumbnail(picture), np.uint8), cv2.IMREAD_COLOR)
    assert (small.shape[1], small.shape[0]) == wanted
    blue, green, red = small.reshape(-1, 3).mean(0)
    assert (red, green, blue) == pytest.approx((200, 30, 60), abs=6)
