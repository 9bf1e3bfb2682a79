"""Footage as a calibrated bundle sees it, drawn: for a person to see whether the changes are right.

Invariant: no truth is needed; what is drawn is what the thresholds make of the footage.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vljepa_ros.perception.change import ChangeDetector
from vljepa_ros.recordings.calibration import Footage

from .timeline import draw
from .tracks import Mark, Spans, Track


def draw_footage(
    title: str,
    footages: Sequence[Footage],
    detector: tuple[float, int, int, float],
    known_from: float,
    out: Path,
) -> str:
    """Write a picture: of each camera the change score with its changes, and their key frames.

    `detector`: threshold, candidate, min_segment, hysteresis. `known_from`: the familiarity below
    which steps are shaded; -1: the bundle cannot tell. Returns what found no room, in words.
    """
    tracks = [_track(footage, detector, known_from) for footage in footages]
    return draw(title, tracks, out, "grey: not familiar" if known_from >= 0 else "")


def _track(footage: Footage, parts: tuple[float, int, int, float], known_from: float) -> Track:
    detector = ChangeDetector(*parts)
    states = [detector.update(step.stamp_ns, step.embedding) for step in footage.steps]
    times = footage.positions.tolist()
    return Track(
        footage.name, max(times[-1], 1e-3), times, [state.score for state in states],
        [
            Mark(at, at, "", picture)
            for at, state, picture in zip(times, states, footage.pictures, strict=True)
            if state.changed
        ],
        shaded=_strange(footage, times, known_from),
        speaks=False,
    )  # fmt: skip


def _strange(footage: Footage, times: Sequence[float], known_from: float) -> Spans:
    """From when to when it is not familiar."""
    spans: list[tuple[float, float]] = []
    following = [*times[1:], times[-1]]
    for step, begin, end in zip(footage.steps, times, following, strict=True):
        if not 0 <= step.familiarity < known_from:
            continue
        if spans and spans[-1][1] == begin:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((begin, end))
    return tuple(spans)
