"""Figures with bootstrap intervals.

Invariant: whole episodes are drawn again, never single clips, because the clips of an episode
show the same scene and stand or fall together.
"""

from __future__ import annotations

from typing import Any

import numpy as np

RESAMPLES = 1000
COVERAGE = 0.95

Figure = dict[str, float]  # "value", and the bounds "low" and "high" of its interval


def draws(count: int) -> np.ndarray:
    """How often each of `count` episodes is drawn, int `[RESAMPLES, count]`; always the same."""
    rng = np.random.default_rng(0)
    return rng.multinomial(count, np.full(count, 1 / count), RESAMPLES)


def figure(value: float, resampled: np.ndarray) -> Figure:
    """A value with the percentile interval of its resampled values; those not a number are left."""
    tail = 50 * (1 - COVERAGE)
    low, high = np.nanpercentile(resampled, (tail, 100 - tail))
    return {"value": float(value), "low": float(low), "high": float(high)}


def mean(values: Any, episodes: Any, groups: Any = None) -> Figure:
    """The mean of `values` `[N]` and its interval; `episodes` `[N]` says where each is from.

    With `groups` `[N]` it is the mean of the groups' means, each group counting the same.
    """
    values = np.asarray(values, float)
    _, episode = np.unique(episodes, return_inverse=True)
    group = np.zeros(len(values), int)
    if groups is not None:
        _, group = np.unique(groups, return_inverse=True)
    shape = (episode.max() + 1, group.max() + 1)
    sums, counts = np.zeros(shape), np.zeros(shape)
    np.add.at(sums, (episode, group), values)
    np.add.at(counts, (episode, group), 1)
    drawn = draws(len(sums))
    with np.errstate(invalid="ignore"):  # a group that no drawn episode has
        resampled = np.nanmean((drawn @ sums) / (drawn @ counts), axis=1)
    return figure(float((sums.sum(0) / counts.sum(0)).mean()), resampled)


def median(values: Any, episodes: Any) -> Figure:
    """The median of `values` `[N]` and its interval, as `mean`."""
    values = np.asarray(values, float)
    _, episode = np.unique(episodes, return_inverse=True)
    resampled = [
        np.median(np.repeat(values, drawn[episode])) for drawn in draws(int(episode.max()) + 1)
    ]
    return figure(float(np.median(values)), np.array(resampled))


def ratio(above: Any, below: Any) -> Figure:
    """The sum of `above` over the sum of `below`, both `[E]` by episode, and its interval."""
    above, below = np.asarray(above, float), np.asarray(below, float)
    drawn = draws(len(above))
    with np.errstate(invalid="ignore", divide="ignore"):
        value, resampled = above.sum() / below.sum(), (drawn @ above) / (drawn @ below)
    return figure(float(value), resampled)
