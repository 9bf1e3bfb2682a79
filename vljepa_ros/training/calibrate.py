"""Thresholds of the change detector, found on held-out episodes.

Invariant: nothing of the shipped stream or of the episodes that a bundle is judged on is used.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vljepa_ros.perception.change import ChangeDetector
from vljepa_ros.runtime.model import VLJepa
from vljepa_ros.training.evaluation.clips import Name, embed_episode, stream_rows
from vljepa_ros.training.tabletop import language, store
from vljepa_ros.training.tabletop.episode import Episode

TOLERANCE = 1.0  # seconds between a true boundary and the start of a segment
THRESHOLDS = np.geomspace(0.1, 4.0, 16)
CANDIDATES = (1, 2, 3, 4)
MIN_SEGMENTS = (1, 2, 3)
HYSTERESIS = (0.5, 0.8, 1.0)
MOST_DECODES = 60 / 2.85  # a minute: the paper's saving against uniform decoding at 1 Hz
LONGEST_DELAY = 0.7  # s
FALSE_ALARM = 0.02  # that each false alarm a minute beyond the first takes from the score


@dataclass(frozen=True)
class Stream:
    """One episode's embeddings `[S, E]` with stamps `[S]` in s, and the truth."""

    episode: Episode
    stamps: np.ndarray
    embeddings: np.ndarray


def calibrate(model: VLJepa, episodes: Sequence[Path]) -> dict[str, Any]:
    """The detector's parameters that serve words best, and what they earned.

    Best is the largest harmonic mean of the F1 of boundaries and of the share of sentences that
    would be true, less a little for false alarms, with at most `MOST_DECODES` a minute and, where
    that can be had, a median delay of at most `LONGEST_DELAY`.

    Returns `threshold`, `candidate`, `min_segment`, `hysteresis` and the figures of `measure`.
    """
    streams = []
    for path in episodes:
        episode = store.load_episode(path)
        rows = stream_rows(model, episode)
        embeddings, _ = embed_episode(model, episode, rows)
        streams.append(Stream(episode, episode.stamps[rows], embeddings))
    named = language.canonical()
    texts = (model.embed_text(list(named)), list(named.values()))
    names = ("threshold", "candidate", "min_segment", "hysteresis")
    tried = []
    for parts in itertools.product(THRESHOLDS, CANDIDATES, MIN_SEGMENTS, HYSTERESIS):
        earned = measure(streams, ChangeDetector(*parts), texts)
        tried.append({**dict(zip(names, parts, strict=True)), **earned})
    sparing = [one for one in tried if one["decodes_per_minute"] <= MOST_DECODES] or tried
    return max(sparing, key=lambda one: (one["delay"] <= LONGEST_DELAY, one["score"]))


def measure(
    streams: Sequence[Stream], detector: ChangeDetector, texts: tuple[np.ndarray, Sequence[Name]]
) -> dict[str, Any]:
    """Boundary precision, recall and F1, median delay in s, and how often words would be true.

    `right`: the nearest sentence to a new segment's mean names an event that holds. `texts` are
    the embeddings `[N, E]` of the canonical sentences and what each names.
    """
    written, names = texts
    hits, fired, true, delays, right = 0, 0, 0, [], []
    for stream in streams:
        detector.restart()
        bounds = [e.start for e in stream.episode.events if e.start > stream.stamps[0]]
        true += len(bounds)
        left = set(bounds)
        for number, (stamp, embedding) in enumerate(
            zip(stream.stamps, stream.embeddings, strict=True)
        ):
            state = detector.update(round(stamp * 1e9), embedding)
            if not state.changed or number == 0:
                continue
            fired += 1
            name = names[int(np.argmax(written @ state.mean))]
            opened = state.segment_start_ns / 1e9
            right.append(_holds(stream.episode, opened, stamp, name))
            near = [bound for bound in left if abs(bound - opened) <= TOLERANCE]
            if near:
                bound = min(near, key=lambda true_start: abs(true_start - opened))
                left.remove(bound)
                hits += 1
                delays.append(stamp - bound)
    precision, recall, truth = hits / max(1, fired), hits / max(1, true), np.mean(right or [False])
    f1, minutes = (
        _harmonic(precision, recall),
        sum(s.stamps[-1] - s.stamps[0] for s in streams) / 60,
    )
    false_alarms = (fired - hits) / minutes
    return {
        "score": _harmonic(f1, float(truth)) - FALSE_ALARM * max(0.0, false_alarms - 1),
        "f1": f1,
        "precision": precision,
        "recall": recall,
        "delay": float(np.median(delays)) if delays else float("nan"),
        "right": float(truth),
        "false_alarms_per_minute": false_alarms,
        "decodes_per_minute": fired / minutes,
    }


def _harmonic(a: float, b: float) -> float:
    return 2 * a * b / max(1e-9, a + b)


def _holds(episode: Episode, start: float, at: float, name: Name) -> bool:
    kind, *thing = name
    return any(
        event.kind == kind
        and event.start <= at
        and start < event.end
        and (event.object is None or episode.object_names[event.object] == tuple(thing))
        for event in episode.events
    )
