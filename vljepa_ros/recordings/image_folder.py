"""The pictures of a folder of images.

Invariant: an image that is damaged costs its place, which stays empty, and is told; the others keep
theirs.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from vljepa_ros.errors import counted
from vljepa_ros.perception.compressed import image_to_rgb
from vljepa_ros.perception.images import Levels, Note

log = logging.getLogger(__name__)

IMAGES = {".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def image_paths(folder: Path) -> list[Path]:
    """The images of a folder in their natural order: frame2 before frame10."""
    found = (p for p in folder.iterdir() if p.suffix.lower() in IMAGES and p.is_file())
    return sorted(found, key=_natural)


def folder_pictures(
    paths: Sequence[Path], levels: Levels, note: Note, tell: Callable[[str], None] = log.warning
) -> Iterator[tuple[int, np.ndarray]]:
    """(place, RGB uint8 `[H, W, 3]`) of every image that can be decoded; the others are told.

    `levels`, `note`: as for `to_rgb`.
    """
    bad = []
    for place, path in enumerate(paths):
        try:
            yield place, image_to_rgb(path.read_bytes(), levels, note)
        except (OSError, ValueError) as error:
            bad.append(f"{path.name}: {error}")
    if bad:
        tell(
            f"{len(bad)} of {counted(len(paths), 'image')} of {paths[0].parent} "
            f"{'is' if len(bad) == 1 else 'are'} left out; take away or replace what is damaged. "
            f"The first is {bad[0]}"
        )


def _natural(path: Path) -> list[tuple[int, int, str]]:
    parts = re.findall(r"\d+|\D+", path.name)
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts]
