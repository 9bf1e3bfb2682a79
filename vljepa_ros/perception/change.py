"""The causal change detector: when the meaning of a stream has changed.

VL-JEPA (arXiv 2512.10942, selective decoding) segments a finished stream of embeddings by
agglomerative clustering with Ward distance and temporal connectivity. This is the causal form:
Ward's cost of joining the newest steps with as many before them.

Invariant: what it reports depends on the embeddings and stamps since the last restart alone; no
step costs more than a fixed number of vector operations.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FAR = 4.0  # times a change's cost from what the segment opened with: twice its distance


@dataclass(frozen=True)
class ChangeState:
    """The stream after one step.

    `score`: Ward's cost over the threshold, >= 0; a change needs 1.0. `changed`: this step opened
    `segment_id`, which began at `segment_start_ns`, the stamp of the last step before its own, or
    of its first where nothing is before. The previous segment is 0 with start 0 where there was
    none.
    """

    score: float
    changed: bool
    segment_id: int
    segment_start_ns: int
    previous_segment_id: int
    previous_segment_start_ns: int


def ward(n1: int, mean1: np.ndarray, n2: int, mean2: np.ndarray) -> float:
    """Ward's cost of joining two clusters of n1 and n2 points: n1 n2 / (n1 + n2) |m1 - m2|^2."""
    difference = mean1 - mean2
    return n1 * n2 / (n1 + n2) * float(difference @ difference)


def _mean(steps: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of steps `[E]`; NumPy's, of their stack, takes longer for so few."""
    total = steps[0]
    for step in steps[1:]:
        total = total + step
    return total / len(steps)


class ChangeDetector:
    """Finds the steps at which a stream of embeddings `[E]` opens a new segment.

    The candidate, the last `candidate` steps, is held against as many steps before it, and against
    the step at which the segment opened. The score is the higher of two: Ward's cost of joining it
    with the steps before, over the threshold, and with as many of that step, over `FAR` thresholds.
    A change fires where it is 1.0; the first of the two only if it was below `hysteresis` since
    the change before or all its steps came after that, so that a transition fires once and the next
    is not taken for its rest. The second lets no drift, however slow, leave words standing that no
    longer hold.

    The new segment has the candidate's steps from its best split on, and began at the step before
    them, the last that does not show it. The segment before keeps at least `min_segment` steps. The
    first embedding, also after a restart, opens a segment with score 1.0.

    `threshold`: the Ward cost that makes a score of 1.0, above 0. `candidate` and `min_segment` in
    steps, at least 1; `hysteresis` in 0..1. All four may be changed between steps.
    """

    def __init__(
        self, threshold: float, candidate: int, min_segment: int, hysteresis: float
    ) -> None:
        self.threshold = threshold
        self.candidate = candidate
        self.min_segment = min_segment
        self.hysteresis = hysteresis
        self._recent: deque[tuple[int, np.ndarray]] = deque()  # two candidates, oldest first
        self._opened = np.zeros(0)  # the step that opened the segment
        self._length = 0  # of the segment, in steps
        self._since = 0  # steps since it opened
        self._armed = True
        self._id = self._previous_id = 0
        self._start_ns = self._previous_start_ns = 0

    def restart(self) -> None:
        """Forget every step. The next embedding opens a new segment; ids go on."""
        self._recent.clear()

    def update(self, stamp_ns: int, embedding: np.ndarray) -> ChangeState:
        """Take the next step's embedding, finite, `[E]`."""
        step = np.asarray(embedding, np.float64)
        first = not self._recent
        self._recent.append((stamp_ns, step))
        if first:
            self._open(stamp_ns, step, 1)
            self._armed = True
            return self._state(1.0, True)
        self._length, self._since = self._length + 1, self._since + 1
        while len(self._recent) > 2 * self.candidate:
            self._recent.popleft()
        turn, drift = self._scores()
        anew = self._since >= 2 * self.candidate
        self._armed = self._armed or anew or turn < self.hysteresis
        changed = False
        if (self._armed and turn >= 1.0) or drift >= 1.0:
            split = self._split()
            length = len(self._recent) - split
            changed = self._length - length >= self.min_segment
            if changed:
                self._open(self._recent[split - 1][0], step, length)
                self._armed = turn < self.hysteresis
        return self._state(max(turn, drift), changed)

    def _scores(self) -> tuple[float, float]:
        """The candidate against the steps before it, and against what opened the segment.

        Both are 0 until there is a step before the candidate.
        """
        before = len(self._recent) - self.candidate
        if before < 1:
            return 0.0, 0.0
        steps = [step for _, step in self._recent]
        reference, candidate = _mean(steps[:before]), _mean(steps[before:])
        turn = ward(before, reference, self.candidate, candidate)
        drift = ward(self.candidate, self._opened, self.candidate, candidate)
        return turn / self.threshold, drift / (FAR * self.threshold)

    def _split(self) -> int:
        """Where in the candidate the recent steps are best split: Ward's cost is highest."""
        sums = np.cumsum([step for _, step in self._recent], axis=0)
        n, begin = len(sums), len(sums) - self.candidate
        costs = [
            ward(i, sums[i - 1] / i, n - i, (sums[-1] - sums[i - 1]) / (n - i))
            for i in range(begin, n)
        ]
        return begin + int(np.argmax(costs))

    def _open(self, start_ns: int, step: np.ndarray, length: int) -> None:
        self._previous_id, self._previous_start_ns = self._id, self._start_ns
        self._id, self._start_ns = self._id + 1, start_ns
        self._opened, self._length, self._since = step, length, 0

    def _state(self, score: float, changed: bool) -> ChangeState:
        return ChangeState(
            score, changed, self._id, self._start_ns, self._previous_id, self._previous_start_ns
        )
