"""The rolling clip: which frames are used, by their stamps alone.

Invariant: verdicts and clips are functions of the stamps offered so far, never of arrival times,
so that a bag, a file and a live camera with the same stamps give the same clips.

Time is cut into slots by an absolute grid: slot = stamp * rate, rounded down, in integers. The
first frame of a slot stands for the slot.
"""

from __future__ import annotations

import enum
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass

import numpy as np

from vljepa_ros.bundle.spec import ClipSpec


def millihertz(rate: float) -> int:
    """A rate in Hz as an integer in mHz; at least 1."""
    return max(1, round(rate * 1000))


def slot(stamp_ns: int, rate_mhz: int) -> int:
    """The slot of a stamp on the absolute grid of a rate."""
    return stamp_ns * rate_mhz // 10**12


class Verdict(enum.Enum):
    """What a stamp means for its stream."""

    DUE = "due"  # the first frame of its slot
    EARLY = "early"  # the slot has its frame already
    DUPLICATE = "duplicate"  # the stamp of the frame before
    LATE = "late"  # older than a frame seen before
    RESTARTED = "restarted"  # due, and the stream begins anew: time jumped back, or a gap
    INVALID = "invalid"  # a stamp of zero, or below

    @property
    def due(self) -> bool:
        """Whether the frame is to be used."""
        return self in (Verdict.DUE, Verdict.RESTARTED)


class Sampler:
    """Picks the frames of one stream that are due at a rate.

    `back_ns`: a stamp older than the newest by more than this is a jump back in time, not a late
    frame; `max_gap_ns`: a longer silence begins the stream anew. `rate_mhz` may change.
    """

    def __init__(self, rate_mhz: int, back_ns: int, max_gap_ns: int) -> None:
        self.rate_mhz = rate_mhz
        self.back_ns = back_ns
        self.max_gap_ns = max_gap_ns
        self._newest: int | None = None
        self._taken = self._before = 0  # stamps of the last frame that was due, and the one before
        self._refused = -1

    def refuse(self, stamp_ns: int) -> None:
        """The frame that was due with this stamp is bad: the next good one takes its slot.

        From any thread.
        """
        self._refused = stamp_ns

    def offer(self, stamp_ns: int) -> Verdict:
        """Judge the next frame's stamp, in nanoseconds."""
        verdict = self._judge(stamp_ns)
        if verdict in (Verdict.DUE, Verdict.EARLY, Verdict.RESTARTED):
            self._newest = stamp_ns
        if verdict.due:
            self._before = 0 if verdict is Verdict.RESTARTED else self._filled()
            self._taken, self._refused = stamp_ns, -1
        return verdict

    def _filled(self) -> int:
        """The stamp of the last frame that took a slot."""
        return self._before if self._taken == self._refused else self._taken

    def _judge(self, stamp_ns: int) -> Verdict:
        if stamp_ns <= 0:
            return Verdict.INVALID
        if self._newest is None:
            return Verdict.DUE
        ahead = stamp_ns - self._newest
        if ahead == 0:
            return Verdict.DUPLICATE
        if ahead > self.max_gap_ns or -ahead > self.back_ns:
            return Verdict.RESTARTED
        if ahead < 0:
            return Verdict.LATE
        new_slot = slot(stamp_ns, self.rate_mhz) > slot(self._filled(), self.rate_mhz)
        return Verdict.DUE if new_slot else Verdict.EARLY


@dataclass(frozen=True)
class Clip:
    """T pictures, oldest first, with their stamps and block means (`gate.block_means`).

    Where the camera is slower than the clip, a picture stands more than once.
    """

    pictures: tuple[np.ndarray, ...]  # T of uint8 [S, S, 3] RGB
    stamps_ns: tuple[int, ...]  # T, rising, not strictly
    means: tuple[np.ndarray, ...]  # T of float32 [G, G, 3]

    def chunks(self, size: int) -> list[Clip]:
        """The clip in pieces of `size` frames, oldest first."""
        pieces = [slice(k, k + size) for k in range(0, len(self.pictures), size)]
        return [Clip(self.pictures[p], self.stamps_ns[p], self.means[p]) for p in pieces]

    @property
    def frames(self) -> np.ndarray:
        """The pictures as one array, uint8 `[T, S, S, 3]`."""
        return np.stack(self.pictures)

    @property
    def start_ns(self) -> int:
        """Stamp of the oldest frame."""
        return self.stamps_ns[0]

    @property
    def end_ns(self) -> int:
        """Stamp of the newest frame."""
        return self.stamps_ns[-1]


@dataclass(frozen=True)
class _Frame:
    stamp_ns: int
    picture: np.ndarray
    means: np.ndarray


class Window:
    """The frames from which the newest clip is made.

    A `Sampler` stands before it and keeps late frames out; some of the frames that were due may
    be missing. So a frame older than the newest means here that time jumped back.

    Frames come at the intake rate, which is at least the clip's own. The clip's frame k before
    the newest is that of the slot k * intake / sample_rate slots earlier (to the nearest slot);
    an empty slot holds the frame before it (sample and hold).

    Where the clip is encoded in chunks, that is so within each chunk, and the newest frames of its
    chunks are that many slots apart: whatever chunk a clip takes was the newest one of an earlier
    clip, unless a sample period went without a frame. So a chunk that would end at a slot that a
    faster intake left empty is the one that ended at the frame that it holds.
    """

    def __init__(self, clip: ClipSpec, max_gap_ns: int, rate_mhz: int | None = None) -> None:
        self._clip = clip
        self._sample_mhz = millihertz(clip.sample_rate)
        self._intake = Sampler(self._sample_mhz, 0, max_gap_ns)
        self._frames: deque[_Frame] = deque()
        self.configure(rate_mhz or self._sample_mhz, max_gap_ns)

    def configure(self, rate_mhz: int, max_gap_ns: int) -> None:
        """Change the intake rate and the gap that restarts; the frames in the window stay."""
        self._intake.rate_mhz = rate_mhz
        self._intake.max_gap_ns = max_gap_ns

    def push(self, stamp_ns: int, picture: np.ndarray, means: np.ndarray) -> Verdict:
        """Put in a frame; one that is not due is not taken, as the verdict says.

        `picture` uint8 `[S, S, 3]`; the window keeps it, so its owner must not write to it again.
        """
        verdict = self._intake.offer(stamp_ns)
        if verdict is Verdict.RESTARTED:
            self._frames.clear()
        if verdict.due:
            self._frames.append(_Frame(stamp_ns, picture, means))
            oldest = self._slots()[0]
            while len(self._frames) > 1 and self._slot(self._frames[1]) <= oldest:
                self._frames.popleft()
        return verdict

    @property
    def full(self) -> bool:
        """Whether the frames reach back over a whole clip."""
        return bool(self._frames) and self._slot(self._frames[0]) <= self._slots()[0]

    def clip(self) -> Clip:
        """The newest clip; only where `full`."""
        chosen = [self._held(slot) for slot in self._slots()]
        return Clip(
            tuple(f.picture for f in chosen),
            tuple(f.stamp_ns for f in chosen),
            tuple(f.means for f in chosen),
        )

    def _slot(self, frame: _Frame) -> int:
        return slot(frame.stamp_ns, self._intake.rate_mhz)

    def _slots(self) -> list[int]:
        """The slots of the newest clip's frames, oldest first."""
        newest, chunk = self._slot(self._frames[-1]), self._clip.chunk
        slots: list[int] = []
        for first in range(self._clip.frames - chunk, -1, -chunk):
            end = newest - self._ago(first)
            empty = end - self._slot(self._held(end))  # slots that the frame stands for beside its
            if 0 <= empty * self._sample_mhz < self._intake.rate_mhz:  # less than a sample period
                end -= empty
            slots += [end - self._ago(k) for k in range(chunk - 1, -1, -1)]
        return slots

    def _ago(self, frames: int) -> int:
        """The slots, to the nearest, that so many frames of the clip take."""
        sample = self._sample_mhz
        return (2 * frames * self._intake.rate_mhz + sample - 1) // (2 * sample)

    def _held(self, wanted: int) -> _Frame:
        """The frame that stands for a slot; the oldest where there is none."""
        return self._frames[max(0, bisect_right(self._frames, wanted, key=self._slot) - 1)]
