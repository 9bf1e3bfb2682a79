"""Chunks: each frame of a stream is encoded once, and the steps are those of whole clips."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from bundles import make_bundle
from device import Device, OnDevice, installed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vljepa_ros.bundle.spec import ClipSpec, load_bundle
from vljepa_ros.errors import EngineError
from vljepa_ros.inference.runtime import Clips, Runtime
from vljepa_ros.inference.tensors import Joined, Tensor
from vljepa_ros.perception.perceiver import Perceiver, Step
from vljepa_ros.perception.question_queue import Answer, Question, QuestionQueue
from vljepa_ros.perception.settings import Settings, SettingsError
from vljepa_ros.perception.window import Clip, Window, millihertz

SECOND = 10**9
START = 1000 * SECOND
FRAMES = 8
UNGATED = Settings(gate_threshold=0)


@pytest.fixture(scope="module", params=[1, 2, 4])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    """Of a bundle that takes so many frames at a time."""
    return opened(tmp_path_factory.mktemp("chunks"), request.param)


def opened(folder: Path, chunk: int | None, **options: object) -> Runtime:
    bundle = load_bundle(make_bundle(folder, chunk=chunk, frames=FRAMES, **options), verify=False)
    return Runtime(bundle, "onnxruntime-cpu", threads=1)


@cache
def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)


Frame = tuple[int, int]  # stamp, and the seed of its picture


def stream(seeds: Sequence[int], fps: float = 4, start: int = START) -> list[Frame]:
    return [(start + round(i / fps * 1e9), seed) for i, seed in enumerate(seeds)]


def feed(perceiver: Perceiver, frames: Sequence[Frame], camera: str = "camera") -> list[Step]:
    steps = []
    for stamp, seed in frames:
        if perceiver.due(camera, stamp).due and perceiver.take(camera, stamp, "f", image(seed)):
            steps += perceiver.step([camera])
    return steps


def perceive(model: Runtime, settings: Settings = UNGATED, *cameras: str) -> Perceiver:
    return Perceiver(model, cameras or ("camera",), settings)


def whole(model: Runtime, clips: Sequence[Clip]) -> np.ndarray:
    """The embeddings of clips that are encoded anew, `[N, E]`."""
    tokens = model.encode(np.stack([clip.frames for clip in clips]))
    return model.predict(tokens, [model.bundle.default_query])[:, 0]


class Watched(Perceiver):
    """Keeps the clips of its steps."""

    def step(self, cameras: Sequence[str]) -> list[Step]:
        self.clips = [*getattr(self, "clips", []), *(
            self._cameras[name].window.clip() for name in cameras
        )]  # fmt: skip
        return super().step(cameras)


# Rates of camera and steps, and how far stamps stray, in parts of the camera's period.
RATES = st.tuples(
    st.sampled_from([1.5, 3.0, 4.0, 10.0, 30.0]), st.sampled_from([1.0, 3.0, 4.0, 7.5, 10.0]),
    st.floats(0, 0.9),
)  # fmt: skip


@given(rates=RATES, seed=st.integers(0, 9), dropped=st.sets(st.integers(0, 60), max_size=20))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_embeddings_are_those_of_clips_that_are_encoded_whole(
    model: Runtime, rates: tuple[float, float, float], seed: int, dropped: set[int]
) -> None:
    fps, rate, jitter = rates
    random = np.random.default_rng(seed)
    frames = [
        (round(stamp + jitter * random.random() / fps * 1e9), int(random.integers(9)))
        for i, (stamp, _) in enumerate(stream([0] * round(5 * fps), fps))
        if i not in dropped
    ]
    perceiver = Watched(model, ["camera"], replace(UNGATED, rate=rate))
    steps = feed(perceiver, frames)
    if not steps:
        return
    np.testing.assert_allclose(
        [step.embedding for step in steps], whole(model, perceiver.clips), atol=1e-5
    )
    for step, clip in zip(steps, perceiver.clips, strict=True):
        assert (step.stamp_ns, step.window_start_ns) == (clip.end_ns, clip.start_ns)
        assert list(clip.stamps_ns) == sorted(clip.stamps_ns)


def test_a_step_encodes_one_chunk(model: Runtime) -> None:
    """But for the first ones: there are as many ways to cut a stream as a chunk has frames."""
    chunk, chunks = model.bundle.clip.chunk, model.bundle.clip.chunks
    perceiver = perceive(model)
    steps = feed(perceiver, stream(range(40)))
    assert [step.encoded for step in steps] == [chunks] * chunk + [1] * (len(steps) - chunk)
    counters = perceiver.counters("camera")
    assert (counters.encodes, counters.reused) == (33, 0)
    assert counters.chunks == chunk * chunks + 33 - chunk


@pytest.mark.parametrize("rate", [4.0, 10.0, 30.0])
def test_stamps_that_stray_cost_no_second_chunk(model: Runtime, rate: float) -> None:
    """A camera of 30 Hz whose frames come early and late, so that slots are missed."""
    random = np.random.default_rng(0)
    frames = [
        (stamp + int(random.integers(-16_000_000, 16_000_000)), i)
        for i, (stamp, _) in enumerate(stream([0] * 240, 30))
    ]
    steps = feed(perceive(model, replace(UNGATED, rate=rate)), frames)
    settled = [step for step in steps if step.stamp_ns > START + 5 * SECOND]
    assert len(settled) > 2 * rate and {step.encoded for step in settled} == {1}


def test_what_stands_still_is_encoded_once(model: Runtime) -> None:
    perceiver = perceive(model, Settings(gate_max_age=1e4))
    steps = feed(perceiver, stream([0] * 60))
    assert [step.encoded for step in steps] == [1] + [0] * 52
    assert [step.reused for step in steps] == [False] + [True] * 52
    counters = perceiver.counters("camera")
    assert (counters.chunks, counters.encodes, counters.reused) == (1, 1, 52)
    assert len({step.embedding.tobytes() for step in steps}) == 1


def test_what_has_come_to_rest_is_predicted_until_the_clip_is_at_rest(model: Runtime) -> None:
    """Nothing is encoded any more, but the clip still changes, and so does what it means."""
    chunk = model.bundle.clip.chunk
    perceiver = Watched(model, ["camera"], Settings(gate_max_age=1e4, gate_threshold=1))
    steps = feed(perceiver, stream([*range(20), *[19] * 30]))
    tail = steps[-30:]  # the first one's newest frame shows what the one before showed
    assert [step.encoded for step in tail] == [1] * (chunk - 1) + [0] * (31 - chunk)
    assert [step.reused for step in tail[:7]] == [False] * 7 and all(s.reused for s in tail[7:])
    np.testing.assert_allclose(
        [step.embedding for step in steps], whole(model, perceiver.clips), atol=1e-5
    )


def test_the_age_of_what_was_encoded_is_bounded(model: Runtime) -> None:
    """From the chunk that was encoded on: the oldest of the first clip."""
    steps = feed(perceive(model, Settings(gate_max_age=5)), stream([0] * 64))
    second = 20 - (FRAMES - model.bundle.clip.chunk)
    again = [i for i, step in enumerate(steps) if step.encoded]
    assert again == [0, second, second + 20, second + 40]
    assert {step.encoded for step in steps} == {0, 1}


@given(
    scenes=st.lists(
        st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), min_size=1, max_size=8),
        min_size=2, max_size=3,
    ),
    rate=st.sampled_from([2.0, 4.0, 8.0]),
)  # fmt: skip
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_cameras_share_their_runs_and_nothing_else(
    model: Runtime, scenes: list[list[tuple[int, int]]], rate: float
) -> None:
    """Through the gate, in one batch or each on its own, and whenever the steps are taken."""
    wanted = Settings(rate=rate, gate_max_age=3)
    streams = {
        str(number): stream([seed for seed, count in scene for _ in range(count)], 8)
        for number, scene in enumerate(scenes)
    }
    together = perceive(model, wanted, *streams)
    found: dict[str, list[Step]] = {name: [] for name in streams}
    for number in range(max(map(len, streams.values()))):
        due = []
        for name, frames in streams.items():
            if number < len(frames):
                stamp, seed = frames[number]
                if together.due(name, stamp).due and together.take(name, stamp, "", image(seed)):
                    due.append(name)
        for step in together.step(due) if due else ():
            found[step.camera].append(step)
    for name, frames in streams.items():
        alone = feed(perceive(model, wanted, name), frames, name)
        assert [(s.stamp_ns, s.reused, s.encoded) for s in found[name]] == [
            (s.stamp_ns, s.reused, s.encoded) for s in alone
        ]
        for one, other in zip(found[name], alone, strict=True):
            np.testing.assert_allclose(one.embedding, other.embedding, atol=1e-5)


def test_nothing_from_before_a_restart_stands_for_what_comes_after(model: Runtime) -> None:
    perceiver = perceive(model, Settings())
    feed(perceiver, stream([1] * 20))
    after = feed(perceiver, stream([1] * 20, start=START - 500 * SECOND))
    fresh = feed(perceive(model, Settings()), stream([1] * 20, start=START - 500 * SECOND))
    assert [(s.encoded, s.reused) for s in after] == [(s.encoded, s.reused) for s in fresh]
    assert after[0].encoded == 1 and perceiver.counters("camera").restarts == 1


def test_a_run_that_fails_leaves_nothing_half_encoded(
    model: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    perceiver, encode = perceive(model, Settings()), Runtime.encode_keeping
    frames = stream(range(20))
    feed(perceiver, frames[:12])

    def fail(self: Runtime, chunks: Clips) -> list[Tensor]:
        raise EngineError("on purpose")

    monkeypatch.setattr(Runtime, "encode_keeping", fail)
    with pytest.raises(EngineError, match="on purpose"):
        feed(perceiver, frames[12:13])
    monkeypatch.setattr(Runtime, "encode_keeping", encode)
    after = feed(perceiver, frames[13:])
    assert after[0].encoded == model.bundle.clip.chunks
    undisturbed = feed(perceive(model, Settings()), frames)[-len(after) :]
    np.testing.assert_allclose(
        [step.embedding for step in after], [step.embedding for step in undisturbed], atol=1e-5
    )


def test_tokens_stay_on_their_device_and_are_encoded_again_when_it_is_lost(
    model: Runtime,
) -> None:
    device = Device()
    frames = stream(range(30))
    wanted = feed(perceive(model), frames)
    with installed(device):
        on_device = Runtime(model.bundle, "auto", threads=1)
        perceiver = perceive(on_device)
        steps = feed(perceiver, frames[:20])
        seen = perceiver.seen("camera")
        assert seen is not None and isinstance(seen.tokens, Joined)
        assert all(isinstance(part, OnDevice) for part in seen.tokens.parts)
        device.lost = True
        steps += feed(perceiver, frames[20:])
    assert steps[13].encoded == model.bundle.clip.chunks  # the first one after it
    np.testing.assert_allclose(
        [step.embedding for step in steps], [step.embedding for step in wanted], atol=1e-5
    )


def test_another_model_goes_on_and_what_was_seen_can_be_asked_about(model: Runtime) -> None:
    perceiver, frames = perceive(model, Settings()), stream(range(24))
    before = feed(perceiver, frames[:16])
    device = Device()
    with installed(device):
        perceiver.replace_model(Runtime(model.bundle, "auto", threads=1))
        seen = perceiver.seen("camera")
        assert seen is not None and isinstance(seen.tokens, np.ndarray)
        answer = perceiver.model.predict([seen.tokens], ["What is happening?"])[0, 0]
        np.testing.assert_allclose(answer, before[-1].embedding, atol=1e-5)
        after = feed(perceiver, frames[16:])
    assert after[0].encoded == model.bundle.clip.chunks and after[0].sequence == len(before) + 1
    wanted = feed(perceive(model, Settings()), frames)[-len(after) :]
    for one, other in zip(after, wanted, strict=True):
        np.testing.assert_allclose(one.embedding, other.embedding, atol=1e-5)


def test_a_whole_clip_is_one_chunk(tmp_path: Path) -> None:
    """The same pictures and settings give the same steps, chunk or not; here the chunk is all."""
    model = opened(tmp_path, None)
    perceiver = Watched(model, ["camera"], Settings())
    steps = feed(perceiver, stream([*range(12), *[11] * 20]))
    assert {(step.encoded, step.reused) for step in steps} == {(1, False), (0, True)}
    seen = perceiver.seen("camera")
    assert seen is not None and isinstance(seen.tokens, np.ndarray)
    np.testing.assert_allclose(
        [s.embedding for s in steps if s.encoded],
        whole(model, [c for c, s in zip(perceiver.clips, steps, strict=True) if s.encoded]),
        atol=1e-5,
    )


# ------------------------------------------------------------------------- the window


def windows(chunk: int, stamps: Sequence[int], rate: float) -> Iterator[list[Clip]]:
    """The chunks of each clip of a stream of due frames."""
    spec = ClipSpec(FRAMES, 8, 1, 4.0, chunk)
    window = Window(spec, 3 * SECOND, max(millihertz(rate), 4000))
    means = np.zeros((1, 1, 3), np.float32)
    for stamp in stamps:
        if window.push(stamp, np.zeros((8, 8, 3), np.uint8), means).due and window.full:
            yield window.clip().chunks(chunk)


@given(
    chunk=st.sampled_from([1, 2, 4]), rate=st.sampled_from([4.0, 5.0, 7.5, 10.0, 13.7, 30.0]),
    moves=st.lists(st.integers(1, 240), min_size=60, max_size=200),
)  # fmt: skip
def test_a_clip_takes_chunks_that_were_the_newest_once(
    chunk: int, rate: float, moves: list[int]
) -> None:
    """Wherever no whole sample period went without a frame, whatever the rates and the stamps."""
    stamps = [int(t) for t in START + np.cumsum(moves) * 1_000_000]
    newest: dict[tuple[int, ...], None] = {}
    for chunks in windows(chunk, stamps, rate):
        newest[chunks[-1].stamps_ns] = None
        joined = [stamp for one in chunks for stamp in one.stamps_ns]
        assert joined == sorted(joined)
        first = next(iter(newest))[-1]  # when the first clip was full
        assert all(one.end_ns < first or one.stamps_ns in newest for one in chunks)


@given(
    chunk=st.sampled_from([1, 2, 4]), rate=st.floats(0.5, 4.0),
    moves=st.lists(st.integers(1, 1200), min_size=20, max_size=60),
)  # fmt: skip
def test_at_the_clip_s_own_rate_chunks_make_the_same_clips(
    chunk: int, rate: float, moves: list[int]
) -> None:
    stamps = [int(t) for t in START + np.cumsum(moves) * 1_000_000]
    apart = [
        [s for one in chunks for s in one.stamps_ns] for chunks in windows(chunk, stamps, rate)
    ]
    whole = [list(chunks[0].stamps_ns) for chunks in windows(FRAMES, stamps, rate)]
    assert apart == whole


# ------------------------------------------------------- bundles that are asked nothing


def test_a_bundle_without_a_query_has_one_stream_and_refuses_questions(tmp_path: Path) -> None:
    model = opened(tmp_path, 1, query=False)
    perceiver = perceive(model)
    steps = feed(perceiver, stream(range(12)))
    assert len(steps) == 5 and {step.query for step in steps} == {""}
    assert perceiver.first(steps) == steps
    asked = Settings(queries=["what is happening?"])
    with pytest.raises(SettingsError, match=r"'queries' must be empty: tiny-1\.0\.0#.*nothing"):
        perceive(model, asked)
    with pytest.raises(SettingsError, match="'queries' must be empty"):
        perceiver.configure(asked)
    assert perceiver.settings is UNGATED
    assert feed(perceiver, stream(range(12, 13), start=START + 3 * SECOND))[0].query == ""
    outcomes: list[object] = []
    queue = QuestionQueue(perceiver)
    queue.put(Question("camera", "", ("a cube", "a ball"), outcomes.append))
    list(queue.answer())
    (answer,) = outcomes
    assert isinstance(answer, Answer)
    latest = perceiver.latest("camera")
    assert latest is not None
    np.testing.assert_allclose(answer.embedding, latest.embedding, atol=1e-6)
    cosines = model.embed_text(["a cube", "a ball"]) @ latest.embedding
    np.testing.assert_allclose(answer.cosines, cosines, atol=1e-5)
