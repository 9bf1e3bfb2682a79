"""The novelty gate: never blind to a change, never woken by noise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vljepa_ros.perception.gate import MOST, SPAN, CameraNoise, NoveltyGate, block_means
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


# -------------------------------------------------------------- a gate that knows its camera

LEAST = 1.5  # grey levels, as the shipped bundle has it
LEARNT = 2 * SPAN  # frames, 4 s, after which noise is known


class Camera:
    """Block means, four a second, through a gate that learns; `encoded` says what was, by frame."""

    def __init__(self, frames: int = 8, threshold: float = LEAST, learns: bool = True) -> None:
        self.gate = NoveltyGate(threshold, 10**6 * SECOND, learns)
        self.encoded: list[bool] = []
        self._frames, self._means = frames, list[np.ndarray]()

    def see(self, pictures: np.ndarray) -> list[bool]:
        """Which clips that end at these pictures, block means `[N, G, G, 3]`, are encoded."""
        for means in pictures.astype(np.float32):
            stamp = SECOND + SECOND // 4 * len(self._means)
            self._means.append(means)
            self.gate.noise.feed(stamp, means)
            newest = tuple(self._means[-self._frames :])
            stamps = tuple(stamp - SECOND // 4 * k for k in range(len(newest) - 1, -1, -1))
            now = Clip(newest, stamps, newest)
            full = len(newest) == self._frames
            self.encoded.append(full and self.gate.is_new(now))
            if self.encoded[-1]:
                self.gate.accept(now)
        return self.encoded[-len(pictures) :]


def view(seed: int, frames: int) -> np.ndarray:
    """A still scene as block means, `[frames, 12, 12, 3]`, away from black and white."""
    return np.random.default_rng(seed).uniform(60, 190, (12, 12, 3))[None].repeat(frames, 0)


def pumping(frames: int, height: float) -> np.ndarray:
    """What a codec adds that comes back to a better picture once a second."""
    return height * (np.arange(frames) % 4 / 3)[:, None, None, None]


NOISES = st.sampled_from(["white", "pumping", "hunting", "flicker", "leaves"])


def noise(kind: str, strength: float, seed: int, frames: int) -> np.ndarray:
    """Stationary noise of block means, about `strength` grey levels, `[frames, 12, 12, 3]`."""
    random = np.random.default_rng(seed)
    time, shape = np.arange(frames)[:, None, None, None], (frames, 12, 12, 3)
    white = random.normal(0, 1, shape)
    if kind == "pumping":
        return strength * (pumping(frames, 2) + 0.2 * white)
    if kind == "hunting":  # an exposure that does
        return strength * (1.5 * np.sin(time * 0.6 + 1) + 0.2 * white)
    if kind == "flicker":  # the bands of a lamp, rolling down
        return strength * (1.5 * np.sin(time * 2.4 + np.arange(12)[:, None, None]) + 0.2 * white)
    if kind == "leaves":  # in a corner
        white[:, 4:] *= 0.1
        return strength * white
    return strength * white


@settings(max_examples=60)
@given(NOISES, st.floats(0, 1.4), st.integers(0, 10**6), st.sampled_from([1, 2, 8]))
def test_a_still_scene_is_passed_over_once_its_noise_is_learnt(
    kind: str, strength: float, seed: int, frames: int
) -> None:
    camera = Camera(frames)
    still = view(seed, 120) + noise(kind, strength, seed, 120)
    camera.see(still[:60])
    assert sum(camera.see(still[60:])) <= 1  # of 60: the clip before may have been of another noise


@settings(max_examples=60)
@given(
    kind=NOISES, strength=st.floats(0, 1.4), seed=st.integers(0, 10**6),
    frames=st.sampled_from([1, 2, 8]), row=st.integers(0, 11), column=st.integers(0, 11),
    channel=st.integers(0, 2), up=st.sampled_from([-1, 1]), after=st.integers(0, 60),
)  # fmt: skip
def test_a_change_that_stays_is_never_passed_over(
    kind: str, strength: float, seed: int, frames: int,
    row: int, column: int, channel: int, up: int, after: int,
) -> None:  # fmt: skip
    """Of one block, by more than the most that noise may be, and noise on top of it."""
    camera = Camera(frames)
    noisy = view(seed, after + 16) + noise(kind, strength, seed, after + 16)
    noisy[after + 8 :, row, column, channel] += up * (MOST + 4 * strength)
    camera.see(noisy[: after + 8])
    assert any(camera.see(noisy[after + 8 :]))


@given(st.floats(0, 1.0), st.integers(0, 10**6), st.integers(0, 11), st.integers(0, 11))
@settings(max_examples=40)
def test_where_there_is_little_noise_little_is_new(
    strength: float, seed: int, row: int, column: int
) -> None:
    """The learnt threshold is no higher than 15 times the deviation of the noise."""
    camera = Camera()
    noisy = view(seed, 76) + noise("white", strength, seed, 76)
    noisy[60:, row, column] += max(2 * LEAST, 18 * strength)
    camera.see(noisy[:60])
    assert any(camera.see(noisy[60:]))


def test_noise_does_not_hide_a_change_elsewhere() -> None:
    camera = Camera()
    scene = view(1, 120) + noise("leaves", 1.4, 1, 120)
    camera.see(scene[:100])
    scene[100:, 9, 9] += 2 * LEAST  # where no leaves are
    assert any(camera.see(scene[100:]))


def test_a_busy_start_is_not_taken_for_noise() -> None:
    scene = view(3, 180) + noise("white", 0.5, 3, 180)
    scene[:60, 2:8, 2:8] = np.random.default_rng(2).uniform(0, 255, (60, 6, 6, 3))
    camera = Camera()
    assert all(camera.see(scene[:60])[7:])  # whatever moves is new
    camera.see(scene[60:100])
    assert not any(camera.see(scene[100:140]))
    scene[140:, 4, 4] += 6 * LEAST
    assert any(camera.see(scene[140:]))


def test_what_passes_by_is_not_taken_for_noise() -> None:
    """Somebody is in the picture for a quarter of the time."""
    random = np.random.default_rng(4)
    scene = view(4, 240) + noise("white", 0.3, 4, 240)
    for start in range(0, 240, 24):
        scene[start : start + 6, 3:9, 3:9] += random.uniform(30, 60, (6, 6, 6, 1))
    camera = Camera()
    encoded = camera.see(scene)
    assert all(all(encoded[start : start + 6]) for start in range(24, 240, 24))
    level = camera.gate.noise.level
    assert level is not None and level.max() < LEAST


def test_a_light_that_is_switched_on_is_new_and_what_was_learnt_in_the_dark_is_forgotten() -> None:
    camera = Camera()
    dark = view(5, 80) / 4 + noise("white", 1.4, 5, 80)
    light = view(5, 80) + noise("white", 0.1, 5, 80)
    camera.see(dark)
    learnt = camera.gate.noise.level
    assert learnt is not None and learnt.min() > 3
    assert all(camera.see(light[:8]))  # until the whole clip is light
    assert camera.gate.noise.level is None
    camera.see(light[8 : 8 + LEARNT])
    assert not any(camera.see(light[40:60]))
    light[60:, 0, 0] += 2 * LEAST
    assert any(camera.see(light[60:]))


def test_a_restart_keeps_the_noise_and_looks_at_no_gap() -> None:
    camera = Camera()
    still = view(6, 80) + noise("white", 0.5, 6, 80)
    camera.see(still[:60])
    camera.gate.restart()
    camera.gate.noise.restart()
    known = camera.gate.noise.level
    assert known is not None
    camera.see(still[60:64] + 5)  # another exposure
    np.testing.assert_array_equal(camera.gate.noise.level, known)
    camera.see(still[64:] + 5)
    level = camera.gate.noise.level
    assert level is not None and level.max() < 4


def test_the_noise_is_the_same_however_many_frames_come() -> None:
    """A few frames a second are looked at, by their stamps."""
    slow, fast = CameraNoise(), CameraNoise()
    still = view(7, 400) + noise("white", 1.0, 7, 400)
    for number, means in enumerate(still):
        fast.feed(SECOND + SECOND // 40 * number, means)
        if number % 10 == 0:
            slow.feed(SECOND + SECOND // 40 * number, means)
    assert slow.level is not None
    np.testing.assert_array_equal(slow.level, fast.level)


def test_a_threshold_that_is_set_stays_whatever_the_noise() -> None:
    camera = Camera(threshold=3.0, learns=False)
    still = view(8, 60) + noise("leaves", 1.4, 8, 60)
    encoded = camera.see(still)
    assert sum(encoded) > 30
    assert camera.gate.noise.level is not None  # and is told
