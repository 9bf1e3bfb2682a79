"""The change detector and the threshold of watches, calibrated on streams of their own.

Invariant: nothing that a bundle is judged on is used: the evaluation's streams begin at number 100
of the split, and only those before are taken. A detector's figures are those of streams that its
metric was not fitted to.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vljepa_ros.runtime.errors import VLJepaError
from vljepa_ros.runtime.model import VLJepa
from vljepa_ros.training.evaluation import selection
from vljepa_ros.training.evaluation.agents import Watched, watch
from vljepa_ros.training.evaluation.boundaries import Found, f1, match
from vljepa_ros.training.evaluation.run import Extent
from vljepa_ros.training.evaluation.selection import Way
from vljepa_ros.training.evaluation.streams import Bench, Said, Stream, perceive, point
from vljepa_ros.training.tabletop import store
from vljepa_ros.training.tabletop.episode import SPLITS
from vljepa_ros.training.tabletop.language import describe

THRESHOLDS = np.geomspace(1.6, 0.12, 30)  # Ward costs, from few decodes to many
CANDIDATES = (2, 3, 4)
MIN_SEGMENTS = (1, 2)
HYSTERESIS = (0.8, 1.0)
DIRECTIONS = 12  # that a metric keeps of an embedding's
SHRINKAGE = 0.3  # of the mean variance within events, added to all directions
MOST_DECODES = 60 / 2.85  # a minute: the paper's saving against 1 Hz
F1, DELAY, FALSE_ALARMS = 0.8, 0.7, 1.0  # wanted; s, a minute
MARGIN = 0.97  # of what is wanted, because other streams are a little different
FINALISTS = 24  # whose words are decoded
WATCH_THRESHOLDS = np.arange(0.30, 0.96, 0.01)  # cosines
FIRED_NEVER = 0.05  # at most, of the conditions that never hold in a stream

Parts = tuple[float, int, int, float]  # threshold, candidate, min_segment, hysteresis


def calibrate(model: VLJepa, paths: Sequence[Path]) -> dict[str, Any]:
    """The detector's parameters that fall least short of what is wanted, and what they earned.

    Wanted are 2.85 times fewer decodes than at 1 Hz, with a CIDEr no lower, a boundary F1 of 0.8,
    a median delay of 0.7 s and one false alarm a minute. Of those that fall short of nothing, the
    best is that of the highest CIDEr.

    Returns `metric` float32 `[K, E]`, `threshold`, `candidate`, `min_segment`, `hysteresis` and
    their figures: of each half of the streams with the metric of the other half. Raises
    VLJepaError where there are fewer than two streams.
    """
    streams = [perceive(model, store.load_episode(path)) for path in _own(paths)]
    if len(streams) < 2:
        raise VLJepaError(
            "calibration needs two streams, one to fit the change detector's metric to and one to "
            f"judge it on, and there are {len(streams)}: run `vljepa data --split stream` for more."
        )
    halves = streams[::2], streams[1::2]
    streams = [*halves[0], *halves[1]]
    metrics = fit_metric(halves[1]), fit_metric(halves[0])
    mapped = [
        replace(stream, embeddings=stream.embeddings @ metric.T)
        for half, metric in zip(halves, metrics, strict=True)
        for stream in half
    ]
    tried = sorted(_within_budget(mapped), key=lambda one: shortfall(one[1]))
    benches = [Bench(model, half) for half in halves]

    def cider(way: Callable[[np.ndarray], Way]) -> float:
        said = list[Said]()
        for bench, metric in zip(benches, metrics, strict=True):
            said += bench.say(way(metric))
        return point(streams, said)["cider"]

    def spoken(parts: Parts) -> float:
        return cider(lambda metric: selection.causal(*parts, metric))

    second = round(model.bundle.clip.sample_rate)  # steps
    reference = cider(lambda _metric: selection.uniform(second))
    ranked = []
    for parts, figures in tried[:FINALISTS]:
        words = spoken(parts)
        figures = {**figures, "cider": words, "cider_uniform_1_hz": reference}
        ranked.append((shortfall(figures), -words, parts, figures))
    _, _, parts, figures = min(ranked, key=lambda one: one[:2])
    threshold = _without_metric(streams, parts, figures["decodes_per_minute"])
    metric = fit_metric(streams) * np.float32(np.sqrt(threshold / parts[0]))
    names = ("threshold", "candidate", "min_segment", "hysteresis")
    return {"metric": metric, **dict(zip(names, (threshold, *parts[1:]), strict=True)), **figures}


def fit_metric(streams: Sequence[Stream]) -> np.ndarray:
    """The map under which events lie far from the ones before for what a single one scatters.

    Fisher's linear discriminant between neighbouring events, float32 `[DIRECTIONS, E]` (or all E).
    The mean squared distance between neighbouring events is the same as without it.
    """
    within, between = list[np.ndarray](), list[np.ndarray]()
    for stream in streams:
        seen = np.sort(stream.bounds) + store.NAMED_AFTER
        numbers = np.searchsorted(seen, stream.stamps, side="right")
        events = [stream.embeddings[numbers == n].astype(np.float64) for n in np.unique(numbers)]
        means = np.stack([event.mean(axis=0) for event in events])
        within += [event - mean for event, mean in zip(events, means, strict=True)]
        between.append(np.diff(means, axis=0))
    noise, steps = np.concatenate(within), np.concatenate(between)
    scatter, apart = noise.T @ noise / len(noise), steps.T @ steps / len(steps)
    scatter += SHRINKAGE * np.trace(scatter) / len(scatter) * np.eye(len(scatter))
    root = np.linalg.cholesky(scatter)
    _, directions = np.linalg.eigh(np.linalg.solve(root, np.linalg.solve(root, apart).T))
    metric = np.linalg.solve(root.T, directions[:, ::-1][:, :DIRECTIONS]).T
    metric *= np.sqrt(np.trace(apart) / np.trace(metric @ apart @ metric.T))
    return metric.astype(np.float32)


def _without_metric(streams: Sequence[Stream], parts: Parts, decodes: float) -> float:
    """The Ward cost at which the detector speaks as often without its metric.

    The metric is scaled to it: standing queries that it was not fitted to share its threshold.
    """

    def difference(threshold: float) -> float:
        figures = _boundaries(streams, (threshold, *parts[1:]))
        return abs(figures["decodes_per_minute"] - decodes)

    return min((float(threshold) for threshold in THRESHOLDS), key=difference)


def calibrate_watch(model: VLJepa, paths: Sequence[Path]) -> dict[str, Any]:
    """The lowest threshold at which few conditions fire that never hold, and what it earned.

    A watch is set on what is rare, so a false alarm costs more than a late one. Returns the
    figures of `agents.watch` with their `threshold`.
    """
    watched = []
    for path in _own(paths):
        episode = store.load_episode(path)
        stream = perceive(model, episode)
        happens = [
            {"start": e.start, "end": e.end, "text": describe(e, episode.object_names)}
            for e in episode.events
        ]
        watched.append(Watched(stream.stamps, stream.embeddings, happens))
    tried = (watch(model, watched, float(threshold)) for threshold in WATCH_THRESHOLDS)
    return next(one for one in tried if one["fired_never"] <= FIRED_NEVER)


def _own(paths: Sequence[Path]) -> list[Path]:
    """The streams that nothing is judged on."""
    return [p for p in paths if int(p.stem) < SPLITS["stream"] + Extent.first_stream]


def shortfall(figures: dict[str, float]) -> float:
    """By how much, in all, figures miss what is wanted; each miss counts between 0 and 1.

    False alarms count a quarter: a detector that hardly ever speaks makes none.
    """
    reached = [
        (figures["f1"] / F1, 1.0),
        (MOST_DECODES / max(1e-9, figures["decodes_per_minute"]), 1.0),
        (DELAY / max(1e-9, figures["delay"]), 1.0),
        (FALSE_ALARMS / max(1e-9, figures["false_alarms_per_minute"]), 0.25),
    ]
    if "cider" in figures:
        reached.append((figures["cider"] / max(1e-9, figures["cider_uniform_1_hz"]), 1.0))
    return sum(weight * max(0.0, 1 - MARGIN * share) for share, weight in reached)


def _within_budget(streams: Sequence[Stream]) -> list[tuple[Parts, dict[str, float]]]:
    """What is tried: down to the first threshold at which a detector speaks too often."""
    found = []
    for rest in itertools.product(CANDIDATES, MIN_SEGMENTS, HYSTERESIS):
        for threshold in THRESHOLDS:
            parts = (float(threshold), *rest)
            figures = _boundaries(streams, parts)
            if figures["decodes_per_minute"] > MOST_DECODES * MARGIN:
                break
            found.append((parts, figures))
    return found


def _boundaries(streams: Sequence[Stream], parts: Parts) -> dict[str, float]:
    """Boundary figures of one detector over all streams."""
    way, found = selection.causal(*parts), list[Found]()
    for stream in streams:
        decodes = way(stream.stamps, stream.embeddings)
        found.append(match([(d.at, d.start) for d in decodes[1:]], stream.bounds))
    minutes = sum(stream.minutes for stream in streams)
    delays = [delay for one in found for delay in one.delays]
    hits, fired, true = len(delays), sum(o.fired for o in found), sum(o.true for o in found)
    return {
        "f1": f1(found),
        "precision": hits / max(1, fired),
        "recall": hits / max(1, true),
        "delay": float(np.median(delays)) if delays else float("inf"),
        "false_alarms_per_minute": (fired - hits) / minutes,
        "decodes_per_minute": (fired + len(streams)) / minutes,
    }
