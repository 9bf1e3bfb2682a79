"""The novelty gate: whether a clip shows anything that the encoder has not seen.

Invariant: a clip is passed over only if every block is within its threshold of the same block of
the clip that was encoded last, and that clip is younger than the maximum age. A threshold that is
learnt from the camera's noise lies between the one given and `MOST`. Verdicts follow from stamps
and pictures alone.
"""

from __future__ import annotations

from collections import deque

import cv2
import numpy as np

from .window import Clip, slot

BLOCK = 8  # pixels; smaller blocks would let sensor noise through
MAX_BLOCKS = 12  # along each side

RATE_MHZ = 4000  # of the frames that noise is learnt from
SPAN = 8  # of them in a range: 2 s
KEPT = 80  # ranges: 20 s
FIRST = 8  # ranges until something is known
EVERY = 4  # ranges, from one time that the level is taken from them to the next
QUIET = 0.35  # of the ranges are of a still scene, however busy it is
FACTOR = 4.0  # thresholds are that many ranges
MOST = 12.0  # grey levels; more is never noise
JUMP = 0.5  # of the blocks by more than that at once: another light, or another view
SWING = 5.0  # thresholds in which a noisy block is still; then what it did may come in any order
REST = 0.8  # thresholds by which the mean of such a block may differ


def block_means(picture: np.ndarray) -> np.ndarray:
    """Means of the blocks of a picture, uint8 `[S, S, 3]` to float32 `[G, G, 3]` in 0..255.

    G is 12, or fewer where blocks would be smaller than 8 pixels.
    """
    blocks = min(MAX_BLOCKS, max(1, picture.shape[0] // BLOCK))
    means = cv2.resize(picture.astype(np.float32), (blocks, blocks), interpolation=cv2.INTER_AREA)
    return np.asarray(means)


class CameraNoise:
    """What the blocks of a camera's picture do while nothing happens before it.

    That is sensor and codec noise, an exposure that hunts, lamps that flicker, leaves in the wind,
    people who stand. It is learnt from each block's range over two seconds: a low quantile of the
    last 20 s, in which nothing is that passes by, nor a busy start; and the highest of a block and
    its neighbours, as what sways comes over. Where most blocks jump at once, the light or the view
    is another, and it is learnt anew.

    `level`: grey levels, float32 `[G, G]`; None until something is learnt.
    """

    def __init__(self) -> None:
        self.level: np.ndarray | None = None
        self._ranges = np.zeros((0, KEPT), np.float32)  # of G * G blocks, in a ring
        self._count = 0  # of the ranges so far
        self._frames: deque[np.ndarray] = deque(maxlen=SPAN)
        self._slot = -1

    def feed(self, stamp_ns: int, means: np.ndarray) -> None:
        """Take the block means, float32 `[G, G, 3]`, of the camera's next frame."""
        now = slot(stamp_ns, RATE_MHZ)
        if now == self._slot:
            return
        self._slot = now
        if self._frames and np.mean(np.abs(means - self._frames[-1]).max(-1) > MOST) > JUMP:
            self.forget()
        self._frames.append(means)
        if len(self._frames) < SPAN:
            return
        span = np.stack(self._frames)
        ranges = (span.max(0) - span.min(0)).max(-1)
        if self._ranges.shape[0] != ranges.size:
            self._ranges = np.zeros((ranges.size, KEPT), np.float32)
        self._ranges[:, self._count % KEPT] = ranges.ravel()
        self._count += 1
        if self._count >= FIRST and self._count % EVERY == 0:
            known = min(self._count, KEPT)
            still = np.sort(self._ranges[:, :known])[:, int(QUIET * known)]
            self.level = cv2.dilate(still.reshape(ranges.shape), np.ones((3, 3), np.uint8))

    def restart(self) -> None:
        """The stream begins anew: no range reaches over the gap; what was learnt stays."""
        self._frames.clear()

    def forget(self) -> None:
        """Another camera, light or view: nothing that was learnt holds."""
        self.level, self._count = None, 0
        self.restart()

    def thresholds(self, least: float) -> np.ndarray:
        """Grey levels from which each block is new, float32 `[G, G]`, or `[]` before it has learnt.

        `least`: the lowest.
        """
        if self.level is None:
            return np.array(least, np.float32)
        return np.clip(FACTOR * self.level, least, max(least, MOST))

    def novelty(self, frames: np.ndarray, reference: np.ndarray, least: float) -> float:
        """The largest change of a block from `reference` to `frames`, in thresholds.

        Both are block means, float32 `[T, G, G, 3]`; `least`: the lowest threshold, grey levels
        above 0. Blocks are compared frame by frame; one that is noisy, and moves little in both, by
        what it ranges over and by its mean, so that noise need not come in the same order.
        """
        changes = np.abs(frames - reference).max(0)
        if self.level is None:
            return float(changes.max()) / least
        learnt = FACTOR * self.level[..., None]
        thresholds = self.thresholds(least)[..., None]
        low, high = frames.min(0), frames.max(0)
        low_before, high_before = reference.min(0), reference.max(0)
        beyond = np.maximum(low_before - low, high - high_before)
        shift = np.abs(frames.mean(0) - reference.mean(0)) / REST
        little = np.maximum(high - low, high_before - low_before) <= SWING * thresholds
        loose = np.minimum(changes, np.maximum(beyond, shift))
        noisy = learnt > least
        return float((np.where(noisy & little, loose, changes) / thresholds).max())


class NoveltyGate:
    """Compares each clip, or chunk of one, with the one encoded last.

    All frames count, not only the newest: a scene that has just frozen stays new until the whole
    clip is still. `threshold`: grey levels 0..255 of a block mean; 0 makes every clip new. With
    `learns` it is the lowest, and each block's own follows from `noise`, which is fed with every
    frame. `max_age_ns`: a clip this much younger than the one encoded last is always new.
    """

    def __init__(self, threshold: float, max_age_ns: int, learns: bool = False) -> None:
        self.threshold = threshold
        self.max_age_ns = max_age_ns
        self.learns = learns
        self.noise = CameraNoise()
        self._means: np.ndarray | None = None
        self._end_ns = 0

    @property
    def median_threshold(self) -> float:
        """Grey levels from which the median block is new now; 0: everything is."""
        if not self.learns:
            return self.threshold
        return float(np.median(self.noise.thresholds(self.threshold)))

    def novelty(self, clip: Clip) -> float:
        """The largest change of a block mean since the clip encoded last, in grey levels.

        What is learnt scales it: `threshold` is where a clip is new. Infinite where there is none.
        """
        if self._means is None:
            return float("inf")
        means = np.stack(clip.means)
        if self.learns and self.threshold > 0:
            return self.threshold * self.noise.novelty(means, self._means, self.threshold)
        return float(np.abs(means - self._means).max())

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
