"""When to decode: ways to choose from a stream of embeddings what is put into words.

Invariant: every way sees the same embeddings. Those that are causal use only what came before
their decode; `ward` and the pooled ones are what a finished stream allows, as in the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.cluster import AgglomerativeClustering

from vljepa_ros.perception.change import ChangeDetector
from vljepa_ros.stamps import SECOND_NS

WINDOW = 4  # steps of the local variance


@dataclass(frozen=True)
class Decode:
    """One decode: made at `at`, of `embedding` `[E]`, for what happens from `start` on (s)."""

    at: float
    start: float
    embedding: np.ndarray


Way = Callable[[np.ndarray, np.ndarray], list[Decode]]  # of stamps [S] s and embeddings [S, E]


def uniform(every: int) -> Way:
    """Every so many steps the newest embedding; it stands for the time nearest to it."""

    def select(stamps: np.ndarray, embeddings: np.ndarray) -> list[Decode]:
        steps = np.arange(every // 2, len(stamps), every)
        half = every * float(stamps[1] - stamps[0]) / 2
        return [Decode(float(stamps[i]), float(stamps[i]) - half, embeddings[i]) for i in steps]

    return select


def pooled(every: int) -> Way:
    """The average of so many steps, decoded at their end."""

    def select(stamps: np.ndarray, embeddings: np.ndarray) -> list[Decode]:
        cuts = list(range(0, len(stamps), every))
        return _segments(stamps, embeddings, cuts)

    return select


def cosine(threshold: float) -> Way:
    """The newest embedding whenever its cosine distance to the one before rises to a threshold."""

    def select(stamps: np.ndarray, embeddings: np.ndarray) -> list[Decode]:
        unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        distance = np.concatenate([[0.0], 1 - np.sum(unit[1:] * unit[:-1], axis=1)])
        above = distance >= threshold
        fired = [0, *(np.flatnonzero(above[1:] & ~above[:-1]) + 1)]
        return [Decode(float(stamps[i]), float(stamps[i]), embeddings[i]) for i in fired]

    return select


def variance(threshold: float) -> Way:
    """The average of the last second once its variance, having reached a threshold, is below.

    The segment begins where the variance was highest.
    """

    def select(stamps: np.ndarray, embeddings: np.ndarray) -> list[Decode]:
        found, peak = [Decode(float(stamps[0]), float(stamps[0]), embeddings[0])], -1
        spread = np.zeros(len(stamps))
        for i in range(WINDOW - 1, len(stamps)):
            recent = embeddings[i + 1 - WINDOW : i + 1]
            spread[i] = recent.var(axis=0).sum()
            if spread[i] >= threshold:
                if peak < 0 or spread[i] > spread[peak]:
                    peak = i
            elif peak >= 0:
                middle = float(stamps[max(0, peak - WINDOW // 2)])
                found.append(Decode(float(stamps[i]), middle, recent.mean(axis=0)))
                peak = -1
        return found

    return select


def ward(threshold: float) -> Way:
    """The paper's: the finished stream in clusters of neighbouring steps, each one's average."""

    def select(stamps: np.ndarray, embeddings: np.ndarray) -> list[Decode]:
        chain = np.eye(len(stamps), k=1) + np.eye(len(stamps), k=-1)
        clusters = AgglomerativeClustering(
            n_clusters=None, distance_threshold=threshold, linkage="ward", connectivity=chain
        ).fit(embeddings)
        cuts = [0, *(np.flatnonzero(np.diff(clusters.labels_)) + 1)]
        return _segments(stamps, embeddings, cuts)

    return select


def causal(threshold: float, candidate: int, min_segment: int, hysteresis: float) -> Way:
    """The change detector of the robot: the newest embedding when a segment opens."""

    def select(stamps: np.ndarray, embeddings: np.ndarray) -> list[Decode]:
        detector = ChangeDetector(threshold, candidate, min_segment, hysteresis)
        found = []
        for stamp, embedding in zip(stamps, embeddings, strict=True):
            state = detector.update(round(stamp * SECOND_NS), embedding)
            if state.changed:
                start = state.segment_start_ns / SECOND_NS
                found.append(Decode(float(stamp), start, embedding))
        return found

    return select


def _segments(stamps: np.ndarray, embeddings: np.ndarray, cuts: Sequence[int]) -> list[Decode]:
    """The average of each segment; `cuts` are the steps that begin one."""
    ends = [*cuts[1:], len(stamps)]
    return [
        Decode(float(stamps[b - 1]), float(stamps[a]), embeddings[a:b].mean(axis=0))
        for a, b in zip(cuts, ends, strict=True)
    ]
