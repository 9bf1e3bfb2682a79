"""The change detector: silent on what stays, one change for one change."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vljepa_ros.perception.change import ChangeDetector, ChangeState, ward

DIM = 16
STEP = 250_000_000


def detector(threshold: float = 0.5, candidate: int = 3, min_segment: int = 4) -> ChangeDetector:
    return ChangeDetector(threshold, candidate, min_segment, 0.7)


def play(stream: np.ndarray, found: ChangeDetector | None = None) -> list[ChangeState]:
    """States of a stream, `[steps, E]`, whose step i has the stamp (i + 1) * STEP."""
    found = found or detector()
    return [found.update((i + 1) * STEP, e) for i, e in enumerate(stream)]


def changes(states: list[ChangeState]) -> list[int]:
    return [i for i, state in enumerate(states) if state.changed]


def unit(seed: int) -> np.ndarray:
    v = np.random.default_rng(seed).normal(size=DIM)
    return v / np.linalg.norm(v)


def orthogonal(v: np.ndarray, to: np.ndarray) -> np.ndarray:
    """The part of `v` that has cosine 0 with `to`, at unit length."""
    rest = v - (v @ to) * to
    return rest / np.linalg.norm(rest)


def noisy(centre: np.ndarray, steps: int, sigma: float, seed: int) -> np.ndarray:
    """Steps around a centre, at unit length."""
    v = centre + np.random.default_rng(seed).normal(0, sigma, (steps, DIM))
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def test_ward_s_cost_is_the_growth_of_the_spread() -> None:
    """Joining two clusters raises the sum of squared distances to the mean by this much."""
    random = np.random.default_rng(0)
    a, b = random.normal(size=(5, DIM)), random.normal(size=(3, DIM))

    def spread(x: np.ndarray) -> float:
        return float(((x - x.mean(axis=0)) ** 2).sum())

    growth = spread(np.concatenate([a, b])) - spread(a) - spread(b)
    assert ward(5, a.mean(axis=0), 3, b.mean(axis=0)) == pytest.approx(growth)


def test_the_first_embedding_opens_a_segment() -> None:
    state = detector().update(7, unit(0))
    assert (state.changed, state.score, state.segment_id, state.segment_start_ns) == (
        True, 1.0, 1, 7,
    )  # fmt: skip
    assert (state.previous_segment_id, state.previous_segment_start_ns) == (0, 0)


@given(st.integers(0, 10**6), st.floats(1e-6, 4), st.integers(1, 6), st.integers(1, 10))
@settings(max_examples=30)
def test_a_frozen_stream_is_silent(seed: int, threshold: float, k: int, minimum: int) -> None:
    stream = np.broadcast_to(unit(seed).astype(np.float32), (300, DIM))
    states = play(stream, detector(threshold, k, minimum))
    assert changes(states) == [0]
    assert max(s.score for s in states[1:]) < 1e-6
    assert {s.segment_id for s in states} == {1}


@given(
    seed=st.integers(0, 10**6), first=st.integers(7, 60), k=st.integers(1, 5),
    minimum=st.integers(1, 6), sigma=st.floats(0, 0.02),
)  # fmt: skip
def test_two_meanings_are_one_change_found_soon(
    seed: int, first: int, k: int, minimum: int, sigma: float
) -> None:
    """The segment begins at the last step of the meaning before."""
    first += k + minimum
    a = unit(seed)
    b = orthogonal(unit(seed + 1), a)
    stream = np.concatenate([noisy(a, first, sigma, seed), noisy(b, 40, sigma, seed + 1)])
    states = play(stream, detector(0.4, k, minimum))
    found = changes(states)
    assert len(found) == 2 and found[0] == 0
    assert first <= found[1] <= first + k
    state = states[found[1]]
    assert state.score >= 1
    assert state.segment_start_ns == first * STEP
    assert (state.segment_id, state.previous_segment_id) == (2, 1)
    assert state.previous_segment_start_ns == STEP


@given(st.integers(0, 10**6), st.integers(8, 30))
def test_no_change_comes_from_noise_or_one_odd_step(seed: int, odd: int) -> None:
    stream = noisy(unit(seed), 60, 0.05, seed)
    stream[odd] = orthogonal(unit(seed + 1), unit(seed))
    assert changes(play(stream, detector(1.0))) == [0]


def test_a_gradual_transition_fires_once() -> None:
    """A clip slides over the event, so that the embedding turns over eight steps."""
    a, b = np.eye(DIM)[:2]
    weights = np.concatenate([np.zeros(20), np.linspace(0, 1, 9), np.ones(40)])
    stream = np.outer(1 - weights, a) + np.outer(weights, b)
    stream /= np.linalg.norm(stream, axis=1, keepdims=True)
    found = changes(play(stream))
    assert len(found) == 2 and 21 <= found[1] <= 29


def test_hysteresis_holds_a_second_change_back_until_the_score_has_fallen() -> None:
    """Straight after a change the same jump again does not fire; after a calm it does."""
    a, b, c = np.eye(DIM)[:3]

    def run(calm: int) -> list[int]:
        stream = np.concatenate([[a] * 12, [b] * calm, [c] * 30])
        return changes(play(stream, detector(min_segment=1)))

    assert len(run(1)) == 2
    assert len(run(8)) == 3


def test_a_segment_that_was_never_calm_does_not_hide_the_next_change() -> None:
    """The noise of the second meaning keeps every score above a low hysteresis."""
    a, b, c = (unit(seed) for seed in (1, 2, 3))
    stream = np.concatenate([noisy(a, 20, 0.0, 0), noisy(b, 30, 0.06, 1), noisy(c, 30, 0.06, 2)])
    states = play(stream, ChangeDetector(0.4, 3, 1, 0.01))
    assert min(s.score for s in states[26:50]) > 0.01
    found = changes(states)
    assert len(found) == 3 and found[0] == 0
    assert 20 <= found[1] <= 23 and 50 <= found[2] <= 53


def test_a_meaning_that_never_settles_is_told_when_all_steps_are_new() -> None:
    angles = np.concatenate([np.zeros(12), 0.2 * np.arange(1, 40)])
    stream = np.outer(np.cos(angles), np.eye(DIM)[0]) + np.outer(np.sin(angles), np.eye(DIM)[1])
    states = play(stream, ChangeDetector(0.4, 3, 1, 0.8))
    found = changes(states)
    assert min(s.score for s in states[found[1] :]) > 0.8
    assert np.diff(found[1:]).tolist() == [6] * (len(found) - 2)
    assert len(found) >= 6


@given(st.integers(0, 10**6), st.integers(30, 400))
def test_a_meaning_that_drifts_away_slowly_is_a_change_in_the_end(seed: int, steps: int) -> None:
    """No step differs much from those before it, but the words of the first no longer hold."""
    a = unit(seed)
    b = orthogonal(unit(seed + 1), a)
    angles = np.linspace(0, np.pi / 2, steps)[:, None]
    stream = np.concatenate([np.cos(angles) * a + np.sin(angles) * b, [b] * 10])
    states = play(stream, detector(0.25))
    found = changes(states)
    assert len(found) >= 2
    said = stream[found[-1]]  # what holds in the end is nearer than twice a change's distance
    assert 1.5 * ((said - b) ** 2).sum() < 4 * 0.25
    assert len(found) <= 4


def test_a_segment_is_not_closed_before_its_least_length() -> None:
    a, b = np.eye(DIM)[:2]
    for length in range(4, 20):
        stream = np.concatenate([[a] * length, [b] * 60])
        states = play(stream, detector(min_segment=10))
        starts = [s.segment_start_ns // STEP - 1 for s in states if s.changed]
        assert all(start >= 9 for start in starts[1:])  # the last step of the segment before


@given(st.integers(0, 10**6), st.sampled_from([0.25, 0.5, 2.0, 4.0]))
def test_the_threshold_scales_with_the_embedding(seed: int, scale: float) -> None:
    stream = np.concatenate([noisy(unit(seed + i), 15, 0.1, seed + i) for i in range(4)])
    states = play(stream, detector(0.5))
    scaled = play(stream * scale, detector(0.5 * scale**2))
    assert [s.score for s in states] == [s.score for s in scaled]
    assert changes(states) == changes(scaled)


@given(st.integers(0, 10**6), st.floats(0, 1.5), st.floats(0, 1.5))
def test_a_larger_change_never_scores_less(seed: int, one: float, other: float) -> None:
    a, b = np.eye(DIM)[:2]

    def peak(angle: float) -> float:
        turned = np.cos(angle) * a + np.sin(angle) * b
        stream = np.concatenate([[a] * 12, [turned] * 3])
        return max(s.score for s in play(stream, detector(1e3))[1:])

    small, large = sorted((one, other))
    assert peak(small) <= peak(large) + 1e-12


@given(st.integers(0, 10**6))
def test_the_same_stream_gives_the_same_states(seed: int) -> None:
    stream = np.concatenate([noisy(unit(seed + i), 12, 0.1, seed) for i in range(3)])
    for one, other in zip(play(stream), play(stream), strict=True):
        assert (one.score, one.changed, one.segment_id) == (
            other.score, other.changed, other.segment_id,
        )  # fmt: skip


@given(st.integers(0, 10**6))
def test_a_change_is_a_score_of_one_and_ids_rise_by_one(seed: int) -> None:
    stream = np.concatenate([noisy(unit(seed + i), 20, 0.1, seed) for i in range(4)])
    states = play(stream)
    for before, state in itertools.pairwise(states):
        assert state.segment_id == before.segment_id + state.changed
        if state.changed:
            assert state.score >= 1.0
            assert state.previous_segment_id == before.segment_id
            assert state.previous_segment_start_ns == before.segment_start_ns
            assert state.segment_start_ns > before.segment_start_ns
        else:
            assert state.segment_start_ns == before.segment_start_ns


def test_a_restart_forgets_everything_but_the_ids() -> None:
    stream = np.concatenate([noisy(unit(i), 20, 0.05, i) for i in (1, 2)])
    fresh = play(stream)
    used = detector()
    play(np.concatenate([noisy(unit(i), 9, 0.2, i) for i in (3, 4, 5)]), used)
    last = used.update(10**12, unit(6)).segment_id
    used.restart()
    again = play(stream, used)
    assert [s.score for s in again] == [s.score for s in fresh]
    assert [s.segment_id - last for s in again] == [s.segment_id for s in fresh]
    assert again[0].changed and again[0].previous_segment_id == last


def test_the_cost_of_a_step_does_not_grow() -> None:
    found = detector()
    play(np.broadcast_to(unit(0), (5000, DIM)), found)
    assert len(found._recent) == 6
