"""Footage as a calibrated bundle sees it, drawn: for a person to see whether the changes are right.

Invariant: no truth is needed; what is drawn is what the thresholds make of the footage.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from vljepa_ros.perception.change import ChangeDetector
from vljepa_ros.recordings.calibration import Footage

from .timeline import INK, QUIET, WRONG

ROWS = 6  # cameras that are drawn
KEY_FRAMES = 16  # of a camera
COLUMNS = 8


def draw_footage(
    footages: Sequence[Footage],
    detector: tuple[float, int, int, float],
    known_from: float,
    out: Path,
) -> None:
    """Write a PNG: of each camera the change score with its changes, and their key frames.

    `detector`: threshold, candidate, min_segment, hysteresis. `known_from`: the familiarity below
    which steps are shaded; -1: the bundle cannot tell.
    """
    shown = list(footages)[:ROWS]
    figure, axes = plt.subplots(
        2 * len(shown), 1, figsize=(15, 5.2 * len(shown)), height_ratios=[1.4, 2] * len(shown),
        layout="constrained", squeeze=False,
    )  # fmt: skip
    for footage, score, strip in zip(shown, axes[::2, 0], axes[1::2, 0], strict=True):
        changes = _score(score, footage, detector, known_from)
        _key_frames(strip, footage, changes)
    figure.savefig(out, dpi=90)
    plt.close(figure)


def _score(
    axes: Axes, footage: Footage, parts: tuple[float, int, int, float], known_from: float
) -> list[int]:
    """The change score over time, and the rows of the steps that are changes."""
    detector = ChangeDetector(*parts)
    states = [detector.update(step.stamp_ns, step.embedding) for step in footage.steps]
    scores, seconds = np.array([s.score for s in states]), footage.seconds
    strange = np.array([0 <= step.familiarity < known_from for step in footage.steps])
    axes.fill_between(seconds, 0, 1, where=strange, transform=axes.get_xaxis_transform(),
                      color=QUIET, step="post", lw=0)  # fmt: skip
    axes.plot(seconds, scores, color=INK, lw=1.2)
    axes.axhline(1.0, color=WRONG, lw=0.8, ls="--")
    changes = [row for row, state in enumerate(states) if state.changed]
    for number, row in enumerate(changes):
        axes.axvline(seconds[row], color=WRONG, lw=0.7, alpha=0.6)
        axes.text(seconds[row], 1.01, str(number + 1), transform=axes.get_xaxis_transform(),
                  fontsize=7, color=WRONG, ha="center")  # fmt: skip
    axes.set_xlim(0, seconds[-1])
    axes.set_ylim(0, max(2.0, float(np.percentile(scores, 99)) * 1.1))
    axes.set_ylabel("change score")
    axes.set_xlabel(f"seconds of {footage.name}: {len(changes)} changes; shaded: not familiar")
    axes.spines[["top", "right"]].set_visible(False)
    return changes


def _key_frames(axes: Axes, footage: Footage, changes: Sequence[int]) -> None:
    """The picture at each change, by its number; of many an even choice."""
    kept = np.unique(np.linspace(0, len(changes) - 1, min(len(changes), KEY_FRAMES)).astype(int))
    pictures = [footage.pictures[changes[i]] for i in kept]
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // COLUMNS)
    sheet = np.full((rows * height, COLUMNS * width, 3), 255, np.uint8)
    for place, (number, picture) in enumerate(zip(kept, pictures, strict=True)):
        top, left = place // COLUMNS * height, place % COLUMNS * width
        sheet[top : top + height, left : left + width] = picture
        at = footage.seconds[changes[number]]
        axes.text(left + 3, top + 12, f"{number + 1}: {at:.1f} s", fontsize=8, color="white",
                  backgroundcolor=INK)  # fmt: skip
    axes.imshow(sheet)
    axes.axis("off")
