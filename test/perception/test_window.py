"""The window: clips depend on stamps alone, whatever the camera does."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vljepa_ros.bundle.spec import ClipSpec
from vljepa_ros.perception.window import Sampler, Verdict, Window, millihertz, slot

SECOND = 10**9
CLIP = ClipSpec(frames=8, image_size=8, tubelet=2, sample_rate=4.0)
GAP = 3 * SECOND
MEANS = np.zeros((1, 1, 3), np.float32)


def picture(stamp_ns: int) -> np.ndarray:
    """A picture that tells its stamp."""
    return np.frombuffer(int(stamp_ns).to_bytes(8, "big"), np.uint8).reshape(1, 8, 1)


def stamp_of(picture: np.ndarray) -> int:
    return int.from_bytes(picture.tobytes(), "big")


def play(stamps: list[int], rate: float = 4.0) -> list[tuple[int, ...]]:
    """The clips of a stream in the order of arrival, through a sampler and a window."""
    intake = max(millihertz(rate), millihertz(CLIP.sample_rate))
    sampler, window = Sampler(intake, CLIP.span_ns, GAP), Window(CLIP, GAP, intake)
    clips = []
    for stamp in stamps:
        if sampler.offer(stamp).due and window.push(stamp, picture(stamp), MEANS).due:
            if not window.full:
                continue
            clip = window.clip()
            assert [stamp_of(p) for p in clip.pictures] == list(clip.stamps_ns)
            clips.append(clip.stamps_ns)
    return clips


def camera(rate: float, seconds: float, start: int = 1000 * SECOND, jitter: int = 0) -> list[int]:
    """Stamps of a camera; `jitter` in nanoseconds, by a fixed pattern."""
    count = int(seconds * rate)
    return [start + round(i / rate * 1e9) + (i * 7919) % (jitter + 1) for i in range(count)]


def test_the_grid_is_absolute_and_exact() -> None:
    assert slot(10**18, millihertz(4)) == 4 * 10**9
    assert slot(10**18 - 1, millihertz(4)) == 4 * 10**9 - 1
    assert millihertz(29.97) == 29970 and millihertz(1e-9) == 1


def test_a_camera_at_thirty_hertz_gives_a_quarter_second_grid() -> None:
    start = 1000 * SECOND
    clips = play(camera(30, 4, start))
    assert clips[0] == tuple(start + round(i / 30 * 1e9) for i in (0, 8, 15, 23, 30, 38, 45, 53))
    assert len(clips) == 4 * 4 - 7


def test_a_camera_slower_than_the_clip_is_held() -> None:
    start = 1000 * SECOND
    clips = play(camera(1, 5, start))
    seconds = [[(stamp - start) // SECOND for stamp in clip] for clip in clips]
    assert seconds == [[n, n, n, n + 1, n + 1, n + 1, n + 1, n + 2] for n in range(3)]


@given(
    rate=st.floats(0.5, 120), jitter=st.integers(0, 3_000_000), step_rate=st.floats(0.2, 20),
    start=st.integers(1, 2 * 10**18),
)  # fmt: skip
def test_clips_are_sorted_and_close_to_their_times(
    rate: float, jitter: int, step_rate: float, start: int
) -> None:
    stamps = camera(rate, 6, start, jitter)
    clips = play(stamps, step_rate)
    intake = max(step_rate, CLIP.sample_rate)
    # A frame may come as late in its slot as the camera's period, and slots are rounded.
    tolerance = (1 / rate + 1.5 / intake) * 1e9 + jitter + 1
    for clip in clips:
        assert list(clip) == sorted(clip) and set(clip) <= set(stamps)
        for k, stamp in enumerate(reversed(clip)):
            assert abs(clip[-1] - k * CLIP.period_ns - stamp) <= tolerance
    if rate >= 1:
        assert clips and clips[-1][-1] >= stamps[-1] - (1 / rate + 1 / intake) * 1e9 - jitter


@given(data=st.data(), rate=st.sampled_from([2.0, 5.0, 10.0, 30.0]))
def test_late_and_repeated_frames_alter_nothing(data: st.DataObject, rate: float) -> None:
    stamps = camera(rate, 5)
    noisy = []
    for i, stamp in enumerate(stamps):
        noisy.append(stamp)
        for _ in range(data.draw(st.integers(0, 2))):
            back = data.draw(st.integers(0, CLIP.span_ns))
            noisy.append(max(stamp - back, stamps[0]))
        if data.draw(st.booleans()):
            noisy.append(stamps[max(0, i - data.draw(st.integers(0, 3)))])
    assert play(noisy) == play(stamps)


@given(jump=st.integers(-100, -2) | st.integers(4, 100), rate=st.sampled_from([4.0, 7.5, 30.0]))
def test_nothing_from_before_a_restart_is_used(jump: int, rate: float) -> None:
    before = camera(rate, 4)
    start = before[-1] + jump * SECOND
    after = camera(rate, 4, start)
    clips = play(before + after)[len(play(before)) :]
    assert clips == play(after)
    assert all(min(clip) >= start for clip in clips)


@pytest.mark.parametrize("jump", [5, -100])
def test_the_restart_is_reported_once(jump: int) -> None:
    sampler = Sampler(4000, CLIP.span_ns, GAP)
    verdicts = [sampler.offer(s) for s in camera(4, 2) + camera(4, 2, (1002 + jump) * SECOND)]
    assert verdicts.count(Verdict.RESTARTED) == 1
    assert verdicts[8] is Verdict.RESTARTED and verdicts[9] is Verdict.DUE


@given(st.lists(st.integers(-5, 40), min_size=1, max_size=60))
def test_every_verdict_is_the_one_its_stamps_ask_for(tenths: list[int]) -> None:
    """Against a direct reading of the rules, over any order of stamps."""
    sampler, seen, taken = Sampler(4000, CLIP.span_ns, GAP), 0, 0
    for tenth in tenths:
        stamp = tenth * SECOND // 10
        verdict = sampler.offer(stamp)
        if stamp <= 0:
            assert verdict is Verdict.INVALID
            continue
        if seen == 0:
            assert verdict is Verdict.DUE
        elif stamp == seen:
            assert verdict is Verdict.DUPLICATE
        elif stamp - seen > GAP or seen - stamp > CLIP.span_ns:
            assert verdict is Verdict.RESTARTED
        elif stamp < seen:
            assert verdict is Verdict.LATE
        else:
            new_slot = stamp * 4 // SECOND > taken * 4 // SECOND
            assert verdict is (Verdict.DUE if new_slot else Verdict.EARLY)
        if verdict.due:
            taken = stamp
        if verdict not in (Verdict.LATE, Verdict.DUPLICATE):
            seen = stamp


@given(
    st.lists(st.tuples(st.integers(1, 60), st.booleans()), min_size=30, max_size=90),
    st.sampled_from([4.0, 10.0]),
)
def test_frames_that_the_node_drops_never_mix_times(
    moves: list[tuple[int, bool]], rate: float
) -> None:
    """Due frames may be dropped before the window; whatever is left is in order, without gaps."""
    sampler, window = Sampler(millihertz(rate), CLIP.span_ns, GAP), Window(CLIP, GAP)
    window.configure(millihertz(rate), GAP)
    stamp = 1000 * SECOND
    for tenths, dropped in moves:
        stamp += (tenths if tenths <= 30 else -tenths) * SECOND // 10
        if not sampler.offer(stamp).due or dropped:
            continue
        verdict = window.push(stamp, picture(stamp), MEANS)
        stamps = [f.stamp_ns for f in window._frames]
        assert stamps[-1] == stamp or verdict in (Verdict.DUPLICATE, Verdict.EARLY)
        assert stamps == sorted(set(stamps))
        assert all(b - a <= GAP for a, b in itertools.pairwise(stamps))


def test_memory_is_bounded_by_the_clip() -> None:
    window = Window(CLIP, GAP, 20_000)
    for stamp in camera(20, 60):
        window.push(stamp, picture(stamp), MEANS)
    assert len(window._frames) <= 7 * 5 + 2


def test_fewer_frames_never_give_a_clip() -> None:
    window = Window(CLIP, GAP)
    assert not window.full
    for stamp in camera(4, 7 / 4):
        window.push(stamp, picture(stamp), MEANS)
        assert not window.full


def test_the_rate_can_change_while_frames_come() -> None:
    window = Window(CLIP, GAP)
    for stamp in camera(4, 3):
        window.push(stamp, picture(stamp), MEANS)
    window.configure(10_000, GAP)
    assert window.full  # the frames at hand still make a clip
    start = 1003 * SECOND
    for stamp in camera(10, 3, start):
        assert window.push(stamp, picture(stamp), MEANS).due
        assert window.full
    clip = window.clip()
    assert clip.end_ns == start + 29 * SECOND // 10
    assert clip.start_ns == pytest.approx(clip.end_ns - CLIP.span_ns, abs=0.15 * SECOND)
    assert len(set(clip.stamps_ns)) == 8


@pytest.mark.parametrize("bad", [{0}, {0, 1}, {1}, {0, 2, 5}])
def test_a_frame_that_is_refused_leaves_its_slot_to_the_next(bad: set[int]) -> None:
    """Frames of 12 Hz, slots of 4 Hz: of three frames, the first that is not refused is due."""
    sampler, taken = Sampler(4000, CLIP.span_ns, GAP), []
    for k in range(9):
        stamp = SECOND + k * SECOND // 12
        if sampler.offer(stamp).due:
            if k in bad:
                sampler.refuse(stamp)
            else:
                taken.append(k)
    assert taken == [next(k for k in range(s, s + 3) if k not in bad) for s in (0, 3, 6)]


def test_a_refused_frame_after_a_jump_back_leaves_its_slot_too() -> None:
    sampler = Sampler(4000, CLIP.span_ns, GAP)
    assert sampler.offer(1000 * SECOND) is Verdict.DUE
    assert sampler.offer(10 * SECOND) is Verdict.RESTARTED
    sampler.refuse(10 * SECOND)
    assert sampler.offer(10 * SECOND + 1) is Verdict.DUE
    assert sampler.offer(10 * SECOND + 2) is Verdict.EARLY


def test_every_bad_frame_of_a_slot_costs_it_nothing() -> None:
    """Not the first alone."""
    sampler = Sampler(4000, SECOND, SECOND)
    assert sampler.offer(SECOND) is Verdict.DUE
    sampler.refuse(SECOND)
    for k in (1, 2):
        assert sampler.offer(SECOND + k) is Verdict.DUE
        sampler.refuse(SECOND + k)
    assert sampler.offer(SECOND + 3) is Verdict.DUE
    assert sampler.offer(SECOND + 4) is Verdict.EARLY
