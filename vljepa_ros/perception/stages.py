"""Where a step's time goes: the last durations of each stage, at about a microsecond a record."""

from __future__ import annotations

import time
from collections import deque

import numpy as np

KEPT = 2000  # records per stage


class Stages:
    """Durations by stage name, from time.monotonic(). One thread records, any may read."""

    def __init__(self) -> None:
        self._durations: dict[str, deque[float]] = {}

    def lap(self, stage: str, since: float) -> float:
        """Record the time from `since` (a time.monotonic()) until now; returns now."""
        now = time.monotonic()
        self.add(stage, now - since)
        return now

    def add(self, stage: str, seconds: float) -> None:
        """Record a duration."""
        durations = self._durations.get(stage)
        if durations is None:
            durations = self._durations.setdefault(stage, deque(maxlen=KEPT))
        durations.append(seconds)

    def percentiles(self) -> dict[str, tuple[float, float, int]]:
        """(p50, p99, records) of each stage, in seconds, in the order of first use."""
        result = {}
        for stage, durations in list(self._durations.items()):
            values = list(durations)
            p50, p99 = np.percentile(values, (50, 99)) if values else (0.0, 0.0)
            result[stage] = (float(p50), float(p99), len(values))
        return result
