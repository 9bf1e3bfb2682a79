"""The change-score timeline of a stream, drawn: what was said, when, and what was true."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from vljepa_ros.bundle.locate import find_bundle
from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.errors import VLJepaError
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.perception.settings import Settings
from vljepa_ros.recordings import offline
from vljepa_ros.recordings.video import VideoSource
from vljepa_ros.words.banks import own_speaker

from .tasks.shipped import judge, speak

log = logging.getLogger(__name__)
INK, QUIET, RIGHT, HALF, WRONG = "#1f3a5f", "#e8ecf1", "#1b7f4d", "#a8740a", "#b3402a"
LETTER = 0.36  # seconds that a letter takes up, at 8 points on 90 s
SHOWN = 8  # frames in the strip above


def draw(bundle: str, video: Path, out: Path) -> None:
    """Write a PNG with frames, change score and sentences of `video` as a bundle sees it.

    `video` has its ground truth beside it in a JSON file of the same name.
    """
    loaded = load_bundle(find_bundle(bundle))
    model = Runtime(loaded, parts=list(loaded.graphs))
    speaker = own_speaker(model, log.info)
    if speaker is None:
        raise VLJepaError(f"{loaded.path} has neither a Y-decoder nor phrases: it says nothing.")
    truth = video.parent / f"{video.stem}.json"
    if not truth.is_file():
        raise VLJepaError(f"{truth} is missing: the timeline needs the ground truth of {video}.")
    try:
        events = json.loads(truth.read_text())["events"]
    except (ValueError, KeyError, TypeError) as error:
        raise VLJepaError(f"{truth} is not the ground truth of a video ({error!r}).") from None
    steps, said = speak(model, video, Settings(), speaker)
    figure, (strip, score, words) = plt.subplots(
        3, 1, figsize=(15, 7.6), height_ratios=(1.5, 1.5, 2.4), layout="constrained"
    )
    _frames(strip, video, steps[-1].stamp_ns)
    times = np.array([offline.seconds(s.stamp_ns) for s in steps])
    _score(score, times, np.array([s.change_score for s in steps]), events)
    spoken = [
        (offline.seconds(step.change.segment_start_ns), offline.seconds(step.stamp_ns), text)
        for step, text in said
        if step.change is not None
    ]
    _words(words, spoken, events)
    for axes in (score, words):
        axes.set_xlim(0, times[-1])
        axes.spines[["top", "right", "left"]].set_visible(False)
    words.set_xlabel("seconds of the stream")
    changes = [step for step in steps if step.change is not None]
    skipped = np.mean([s.encoded == 0 for s in steps])
    figure.suptitle(
        f"{model.bundle.model_id} on {video.name}: {len(changes)} decodes, by a Y-decoder or a VLM "
        f"(one a second: {round(times[-1])}, {1 - len(changes) / times[-1]:.0%} saved), "
        f"{skipped:.0%} of encodes skipped",
        color=INK,
    )
    figure.savefig(out, dpi=110)
    plt.close(figure)


def _frames(axes: Axes, video: Path, end_ns: int) -> None:
    pictures = [picture for _, picture in VideoSource(str(video)).frames()]
    chosen = np.linspace(0, len(pictures) - 1, 2 * SHOWN + 1).astype(int)[1::2]
    axes.imshow(np.concatenate([pictures[i][::2, ::2] for i in chosen], axis=1), aspect="auto")
    axes.axis("off")


def _score(axes: Axes, times: np.ndarray, scores: np.ndarray, events: list[dict]) -> None:
    for event in events:
        if event["kind"] != "still":
            axes.axvspan(event["start"], event["end"], color=QUIET, lw=0)
    axes.plot(times, scores, color=INK, lw=1.2)
    axes.axhline(1.0, color=WRONG, lw=0.8, ls="--")
    axes.set_ylabel("change score")
    axes.set_ylim(0, max(2.0, float(np.percentile(scores[1:], 99)) * 1.1))


def _words(axes: Axes, spoken: list[tuple[float, float, str]], events: list[dict]) -> None:
    for event in events:
        if event["kind"] != "still":
            axes.axvspan(event["start"], event["end"], color=QUIET, lw=0)
    free: list[float] = []  # for each row, from when on it is empty
    for start, at, text in spoken:
        left = min(at, events[-1]["end"] - LETTER * len(text))
        row = next((i for i, end in enumerate(free) if end <= left), len(free))
        free[row : row + 1] = [left + LETTER * (len(text) + 2)]
        _, kind_right, right = judge(text, start, at, events)
        colour = RIGHT if right else HALF if kind_right else WRONG
        axes.plot([at, at], [-row, 0.7], color=colour, lw=0.6, alpha=0.6, zorder=2)
        axes.text(left, -row, text, fontsize=8, color=colour, va="center")
    axes.set_ylim(-len(free) + 0.3, 0.7)
    axes.set_yticks([])
    axes.set_ylabel("what was said")
