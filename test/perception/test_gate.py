"""The novelty gate: never blind to a change, never woken by noise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vljepa_ros.perception.gate import NoveltyGate, block_means
from vljepa_ros.perception.window import Clip

SECOND = 10**9


def clip(frames: np.ndarray, end_ns: int = 10 * SECOND) -> Clip:
    """A clip of `frames`, uint8 `[T, S, S, 3]`, four a second."""
    stamps = tuple(end_ns - SECOND // 4 * k for k in range(len(frames) - 1, -1, -1))
    return Clip(tuple(frames), stamps, tuple(block_means(f) for f in frames))


def scene(seed: int, size: int = 96, frames: int = 8) -> np.ndarray:
    """A still scene of coloured squares, away from black and white."""
    squares = np.random.default_rng(seed).integers(30, 200, (8, 8, 3)).astype(np.uint8)
    picture = squares.repeat(size // 8, 0).repeat(size // 8, 1)
    return np.broadcast_to(picture, (frames, *picture.shape)).copy()


def test_block_means_are_the_means_of_the_blocks() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (96, 96, 3)).astype(np.uint8)
    expected = picture.reshape(12, 8, 12, 8, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(block_means(picture), expected, atol=1e-3)


@pytest.mark.parametrize(("size", "blocks"), [(8, 1), (32, 4), (96, 12), (100, 12), (256, 12)])
def test_blocks_are_never_smaller_than_eight_pixels(size: int, blocks: int) -> None:
    picture = np.full((size, size, 3), 77, np.uint8)
    means = block_means(picture)
    assert means.shape == (blocks, blocks, 3)
    np.testing.assert_allclose(means, 77, atol=1e-3)


def test_the_first_clip_is_new() -> None:
    gate = NoveltyGate(3.0, 10 * SECOND)
    assert gate.is_new(clip(scene(0))) and gate.novelty(clip(scene(0))) == float("inf")


@given(st.integers(0, 10**6), st.integers(1, 10**11))
@example(0, 10 * SECOND)
def test_a_frozen_clip_is_new_only_when_the_old_one_is_too_old(seed: int, age: int) -> None:
    gate = NoveltyGate(3.0, 10 * SECOND)
    frames = scene(seed % 50)
    gate.accept(clip(frames))
    assert gate.is_new(clip(frames, 10 * SECOND + age)) == (age >= 10 * SECOND)


@given(
    seed=st.integers(0, 50), frame=st.integers(0, 7), row=st.integers(0, 11),
    column=st.integers(0, 11), channel=st.integers(0, 2), up=st.booleans(),
)  # fmt: skip
def test_a_change_of_any_block_of_any_frame_is_new(
    seed: int, frame: int, row: int, column: int, channel: int, up: bool
) -> None:
    gate = NoveltyGate(3.0, 10 * SECOND)
    frames = scene(seed)
    gate.accept(clip(frames))
    block = np.s_[frame, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8, channel]
    frames[block] += 2 if up else 254
    assert not gate.is_new(clip(frames))
    frames[block] += 2 if up else 254
    assert gate.is_new(clip(frames))
    assert gate.novelty(clip(frames)) == pytest.approx(4, abs=0.01)


@pytest.mark.parametrize("size", [32, 96, 256])
def test_sensor_noise_is_not_new(size: int) -> None:
    random = np.random.default_rng(1)
    gate = NoveltyGate(3.0, 10**6 * SECOND)
    frames = scene(3, size)

    def noisy() -> Clip:
        return clip((frames + random.normal(0, 2, frames.shape)).round().astype(np.uint8))

    gate.accept(noisy())
    assert not any(gate.is_new(noisy()) for _ in range(40))


def test_a_scene_that_has_just_frozen_is_new_until_the_whole_clip_is_still() -> None:
    gate = NoveltyGate(3.0, 10**6 * SECOND)
    moving, still = scene(1), scene(2)
    verdicts = []
    for n in range(12):  # n frames of the clip are still already
        frames = np.concatenate([moving[: max(0, 8 - n)], still[: min(n, 8)]])
        now = clip(frames)
        verdicts.append(gate.is_new(now))
        if verdicts[-1]:
            gate.accept(now)
    assert verdicts == [True] * 9 + [False] * 3


def test_a_slow_drift_is_noticed() -> None:
    """Each step is under the threshold; what counts is the clip encoded last."""
    gate = NoveltyGate(3.0, 10**6 * SECOND)
    new = 0
    for level in range(50, 80):
        frames = np.full((8, 96, 96, 3), level, np.uint8)
        if gate.is_new(clip(frames)):
            gate.accept(clip(frames))
            new += 1
    assert new == 10


def test_a_threshold_of_zero_turns_the_gate_off_and_a_restart_forgets() -> None:
    gate = NoveltyGate(0.0, 10 * SECOND)
    gate.accept(clip(scene(0)))
    assert gate.is_new(clip(scene(0)))
    gate.threshold = 3.0
    assert not gate.is_new(clip(scene(0)))
    gate.restart()
    assert gate.is_new(clip(scene(0)))
