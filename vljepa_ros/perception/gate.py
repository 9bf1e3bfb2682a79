"""The novelty gate: whether a clip shows anything that the encoder has not seen.

Invariant: a clip is passed over only if every block of every frame is within the threshold of the
same block of the clip that was encoded last, and that clip is younger than the maximum age.
"""

from __future__ import annotations

import cv2
import numpy as np

from .window import Clip

BLOCK = 8  # pixels; smaller blocks would let sensor noise through
MAX_BLOCKS = 12  # along each side


def block_means(picture: np.ndarray) -> np.ndarray:
    """Means of the blocks of a picture, uint8 `[S, S, 3]` to float32 `[G, G, 3]` in 0..255.

    G is 12, or fewer where blocks would be smaller than 8 pixels.
    """
    blocks = min(MAX_BLOCKS, max(1, picture.shape[0] // BLOCK))
    means = cv2.resize(picture.astype(np.float32), (blocks, blocks), interpolation=cv2.INTER_AREA)
    return np.asarray(means)


class NoveltyGate:
    """Compares each clip with the one encoded last.

    All frames count, not only the newest: a scene that has just frozen stays new until the whole
    clip is still. `threshold`: grey levels 0..255 of a block mean; 0 makes every clip new.
    `max_age_ns`: a clip this much younger than the one encoded last is always new.
    """

    def __init__(self, threshold: float, max_age_ns: int) -> None:
        self.threshold = threshold
        self.max_age_ns = max_age_ns
        self._means: np.ndarray | None = None
        self._end_ns = 0

    def novelty(self, clip: Clip) -> float:
        """The largest change of a block mean since the clip encoded last, in grey levels.

        Infinite where there is none.
        """
        if self._means is None:
            return float("inf")
        return float(np.abs(np.stack(clip.means) - self._means).max())

    def is_new(self, clip: Clip) -> bool:
        """Whether the clip must be encoded."""
        if self._means is None or clip.end_ns - self._end_ns >= self.max_age_ns:
            return True
        return self.novelty(clip) >= self.threshold

    def accept(self, clip: Clip) -> None:
        """Remember the clip that was encoded."""
        self._means = np.stack(clip.means)
        self._end_ns = clip.end_ns

    def restart(self) -> None:
        """Forget the clip encoded last: the next one is new."""
        self._means = None
