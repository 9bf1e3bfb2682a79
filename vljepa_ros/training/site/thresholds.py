"""The thresholds of a site's bundle, from the lines that it was made of.

Invariant: they follow from embeddings, the lines' times and the held-out cosines; nothing is drawn.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from vljepa_ros.evaluation.figures.boundaries import f1, match
from vljepa_ros.perception.change import ChangeDetector

from ..lines import Line, Source
from ..recordings import meaning
from .predictor import SitePredictor
from .tokens import KeptTokens

COSTS = np.geomspace(2.0, 0.02, 60)  # Ward costs
CANDIDATES, MIN_SEGMENT, HYSTERESIS = (2, 3), 1, 0.8
SAID = 0.9  # of the cosine that 95 % of what is right reaches: what is less is not said
LEAD = 0.02  # between cosines of what is said and of the next answer
SAME = 0.9999  # answers that differ in words mean something else


def thresholds(
    predictor: SitePredictor, kept: KeptTokens, lines: Sequence[Line], judged: dict[str, Any]
) -> dict[str, Any]:
    """The sections `thresholds` (without `gate`), `change` and `phrases` of the manifest.

    The change threshold is the one whose changes fall best, by their F1 within a second, on where
    one answer follows another; of several, the middle one.
    """
    streams = [
        (seconds, predictor.predict(tokens), _bounds(lines, source))
        for source, seconds, tokens in kept.streams()
    ]
    tried = {
        (candidate, cost): f1([
            match(_opened(seconds, steps, cost, candidate), bounds)
            for seconds, steps, bounds in streams
        ])
        for candidate, cost in itertools.product(CANDIDATES, COSTS)
    }  # fmt: skip
    best = max(tried.values())
    candidate = next(key[0] for key, found in tried.items() if found == best)
    costs = [cost for (steps, cost), found in tried.items() if (steps, found) == (candidate, best)]
    return {
        "thresholds": {
            "change": round(float(np.median(costs)), 4),
            "watch": round(max(0.05, (judged["sure"] + judged["wrong"]) / 2), 3),
        },
        "change": {
            "candidate": candidate, "min_segment": MIN_SEGMENT, "hysteresis": HYSTERESIS
        },
        "changes_f1": round(best, 3),
        "phrases": {
            "file": "phrases.txt", "cosine": round(max(0.0, SAID * judged["sure"]), 3),
            "margin": LEAD, "same": SAME,
        },
    }  # fmt: skip


def _bounds(lines: Sequence[Line], source: Source) -> list[float]:
    """When, in seconds, one answer follows another in a recording."""
    own = sorted((line for line in lines if line.source == source), key=lambda line: line.start)
    return [
        following.start
        for line, following in itertools.pairwise(own)
        if meaning(line.answer) != meaning(following.answer)
    ]


def _opened(
    seconds: np.ndarray, steps: np.ndarray, cost: float, candidate: int
) -> list[tuple[float, float]]:
    """When each segment but the first was detected, and where it begins, in seconds."""
    detector = ChangeDetector(float(cost), candidate, MIN_SEGMENT, HYSTERESIS)
    found = [
        (at, detector.update(round(at * 1e9), step))
        for at, step in zip(seconds.tolist(), steps, strict=True)
    ]
    return [(at, one.segment_start_ns / 1e9) for at, one in found[1:] if one.changed]
