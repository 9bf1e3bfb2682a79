"""Boundaries of segments against the true beginnings of events.

Invariant: a true boundary is found at most once, and a segment finds at most one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TOLERANCE = 1.0  # seconds between a true boundary and the start of a segment


@dataclass(frozen=True)
class Matched:
    """Of one stream: segments that opened, true boundaries, and the delay in s of each hit."""

    fired: int
    true: int
    delays: tuple[float, ...]

    @property
    def hits(self) -> int:
        """True boundaries that were found."""
        return len(self.delays)


def match(opened: Sequence[tuple[float, float]], bounds: Sequence[float]) -> Matched:
    """Match segments to true boundaries `bounds` (s), each to the nearest within 1 s that is free.

    `opened`: (`at`, `start`) in s of each segment but the first: when it was detected, and where
    it begins. A delay is the time from the true boundary to the detection.
    """
    left, delays = set(bounds), []
    for at, start in opened:
        near = [bound for bound in left if abs(bound - start) <= TOLERANCE]
        if near:
            bound = min(near, key=lambda true_start: abs(true_start - start))
            left.remove(bound)
            delays.append(at - bound)
    return Matched(len(opened), len(set(bounds)), tuple(delays))


def f1(found: Sequence[Matched]) -> float:
    """Harmonic mean of precision and recall over several streams."""
    parts = sum(one.fired + one.true for one in found)
    return 2 * sum(one.hits for one in found) / parts if parts else 0.0
