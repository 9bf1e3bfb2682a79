"""The causal change detector: when the meaning of a stream has changed.

VL-JEPA (arXiv 2512.10942, selective decoding) segments a finished stream of embeddings by
agglomerative clustering with Ward distance and temporal connectivity. This is the causal form:
Ward's cost of joining the running segment with the most recent steps.

Invariant: what it reports depends on the embeddings and stamps since the last restart alone; no
step costs more than a fixed number of vector operations.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

REARM = 3  # after two, a transition of eight steps still fires twice


@dataclass(frozen=True)
class ChangeState:
    """The stream after one step.

    `score`: Ward's cost over the threshold, >= 0; a change needs 1.0. `changed`: this step opened
    `segment_id`, whose first step has the stamp `segment_start_ns`, at or before this step's.
    The previous segment is 0 with start 0 where there was none.
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


class ChangeDetector:
    """Finds the steps at which a stream of embeddings `[E]` opens a new segment.

    The last `candidate` steps are held against the running segment before them. A change fires
    when the score reaches 1.0, the running segment has at least `min_segment` steps, and the score
    of a full candidate has been below `hysteresis` since the change before, or the segment has
    outlasted `REARM` candidates: a transition that is still under way fires once, and a segment
    that was never calm cannot silence the stream. The new segment begins where the candidate is
    best split in two.
    The first embedding, also after a restart, opens a segment with score 1.0.

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
        self._recent: deque[tuple[int, np.ndarray]] = deque()  # the candidate, oldest first
        self._sum = np.zeros(0)  # of the segment's steps before the candidate
        self._count = 0
        self._armed = False
        self._id = self._previous_id = 0
        self._start_ns = self._previous_start_ns = 0

    def restart(self) -> None:
        """Forget every step. The next embedding opens a new segment; ids go on."""
        self._recent.clear()
        self._sum = np.zeros(0)
        self._count = 0

    def update(self, stamp_ns: int, embedding: np.ndarray) -> ChangeState:
        """Take the next step's embedding, finite, `[E]`."""
        step = np.asarray(embedding, np.float64)
        if self._count == 0:
            self._open(stamp_ns)
            self._sum = step.copy()
            self._count = 1
            return self._state(1.0, True)
        self._recent.append((stamp_ns, step))
        while len(self._recent) > self.candidate:
            self._join()
        score = self._score()
        changed = score >= 1.0 and self._armed and self._count >= self.min_segment
        if changed:
            self._split()
        elif len(self._recent) == self.candidate:
            calm = score < self.hysteresis
            self._armed = self._armed or calm or self._count >= REARM * self.candidate
        return self._state(score, changed)

    def _score(self) -> float:
        """Ward's cost of a full candidate over the threshold; 0 until it is full."""
        if len(self._recent) < self.candidate:
            return 0.0
        mean = np.mean([step for _, step in self._recent], axis=0)
        cost = ward(self._count, self._sum / self._count, self.candidate, mean)
        return cost / self.threshold

    def _join(self) -> None:
        """Move the candidate's oldest step into the running segment."""
        _, step = self._recent.popleft()
        self._sum = self._sum + step
        self._count += 1

    def _split(self) -> None:
        """Close the running segment at the candidate's best split and open a new one there."""
        steps = list(self._recent)
        best, best_cost = 0, -1.0
        count, total = self._count, self._sum
        for i in range(len(steps)):
            tail = np.mean([step for _, step in steps[i:]], axis=0)
            cost = ward(count, total / count, len(steps) - i, tail)
            if cost > best_cost:
                best, best_cost = i, cost
            count, total = count + 1, total + steps[i][1]
        self._open(steps[best][0])
        self._sum = np.sum([step for _, step in steps[best:]], axis=0)
        self._count = len(steps) - best
        self._recent.clear()

    def _open(self, start_ns: int) -> None:
        self._previous_id, self._previous_start_ns = self._id, self._start_ns
        self._id, self._start_ns = self._id + 1, start_ns
        self._armed = False

    def _state(self, score: float, changed: bool) -> ChangeState:
        return ChangeState(
            score, changed, self._id, self._start_ns, self._previous_id, self._previous_start_ns
        )
