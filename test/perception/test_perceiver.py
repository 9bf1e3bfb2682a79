"""The perceiver: cameras, queries and engines joined; what comes out depends on stamps alone."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from device import Device, OnDevice, installed

from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.errors import EngineError
from vljepa_ros.inference.familiarity import add_familiarity, fit, pooled
from vljepa_ros.inference.runtime import Clips, Runtime
from vljepa_ros.inference.tensors import Tensor
from vljepa_ros.perception.change import ChangeDetector
from vljepa_ros.perception.perceiver import Perceiver, Step
from vljepa_ros.perception.settings import Settings, SettingsError
from vljepa_ros.perception.window import Verdict

SECOND = 10**9
START = 1000 * SECOND
Scene = tuple[int, int, int]
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
ONCE = Settings(change_threshold=1.2)  # only when a transition between colours is nearly over


@pytest.fixture
def model(tiny_bundle: Path) -> Iterator[Runtime]:
    model = Runtime(load_bundle(tiny_bundle, verify=False), "onnxruntime-cpu", threads=1)
    yield model
    model.close()


def image(colour: Scene, height: int = 48, width: int = 64) -> np.ndarray:
    picture = np.full((height, width, 3), colour, np.uint8)
    picture[: height // 2, width // 2 :] //= 2
    return picture


def feed(
    perceiver: Perceiver, colours: list[Scene], fps: float = 4, start: int = START,
    camera: str = "camera",
) -> list[Step]:  # fmt: skip
    """The steps of a stream of pictures of one colour each."""
    steps = []
    for i, colour in enumerate(colours):
        stamp = start + round(i / fps * 1e9)
        if perceiver.due(camera, stamp).due and perceiver.take(
            camera, stamp, f"{camera}_frame", image(colour)
        ):
            steps += perceiver.step([camera])
    return steps


def perceive(model: Runtime, settings: Settings | None = None, *cameras: str) -> Perceiver:
    return Perceiver(model, cameras or ("camera",), settings or Settings())


def test_steps_carry_the_stamps_of_their_frames(model: Runtime) -> None:
    steps = feed(perceive(model), [RED] * 12)
    assert [s.stamp_ns for s in steps] == [START + i * SECOND // 4 for i in range(3, 12)]
    assert all(s.stamp_ns - s.window_start_ns == 3 * SECOND // 4 for s in steps)
    assert {s.frame_id for s in steps} == {"camera_frame"}
    assert [s.sequence for s in steps] == list(range(1, 10))
    for step in steps:
        assert step.embedding.dtype == np.float32
        assert np.linalg.norm(step.embedding) == pytest.approx(1, abs=1e-5)


def test_a_frozen_picture_is_encoded_once_and_announced_once(model: Runtime) -> None:
    perceiver = perceive(model, Settings(gate_max_age=1e4))
    steps = feed(perceiver, [RED] * 400)
    assert [bool(s.change) for s in steps] == [True] + [False] * 396
    assert [s.reused for s in steps] == [False] + [True] * 396
    counters = perceiver.counters("camera")
    assert (counters.encodes, counters.reused, counters.changes) == (1, 396, 1)
    assert len({s.embedding.tobytes() for s in steps}) == 1


def test_a_frozen_picture_is_encoded_again_at_the_greatest_age(model: Runtime) -> None:
    steps = feed(perceive(model, Settings(gate_max_age=5)), [RED] * 64)
    assert [i for i, s in enumerate(steps) if not s.reused] == [0, 20, 40, 60]
    assert sum(s.change is not None for s in steps) == 1


def noisy(perceiver: Perceiver, start: int, height: int = 48, frames: int = 40) -> int:
    """A still scene before a camera that is lighter or darker by up to 7 levels; the encodes."""
    before = perceiver.counters("camera").encodes
    for number in range(frames):
        picture = image((120, 120, 120), height) + np.uint8(number * 5 % 8)
        stamp = start + number * SECOND // 4
        if perceiver.due("camera", stamp).due and perceiver.take("camera", stamp, "", picture):
            perceiver.step(["camera"])
    return perceiver.counters("camera").encodes - before


def test_a_camera_s_noise_is_learnt_and_kept_until_it_is_another_camera(model: Runtime) -> None:
    perceiver = perceive(model, Settings(gate_max_age=1e4))
    assert perceiver.noise("camera") is None
    assert noisy(perceiver, START) > 8
    assert perceiver.noise("camera") == 7
    assert noisy(perceiver, START + 10 * SECOND) <= 1
    assert noisy(perceiver, START + 100 * SECOND) == 1  # a gap: the stream begins anew
    assert perceiver.noise("camera") == 7
    assert noisy(perceiver, START + 110 * SECOND, height=96, frames=8) == 8
    assert perceiver.noise("camera") is None


@pytest.mark.parametrize("threshold", [0.0, 3.0])
def test_a_threshold_that_is_set_is_not_learnt(model: Runtime, threshold: float) -> None:
    perceiver = perceive(model, Settings(gate_max_age=1e4, gate_threshold=threshold))
    noisy(perceiver, START)
    assert noisy(perceiver, START + 10 * SECOND) > 30
    perceiver.configure(Settings(gate_max_age=1e4))  # and it goes on with what is known by now
    assert noisy(perceiver, START + 20 * SECOND) <= 1


def test_another_picture_is_another_segment(model: Runtime) -> None:
    steps = feed(perceive(model, ONCE), [RED] * 20 + [BLUE] * 20)
    changes = [s.change for s in steps if s.change]
    assert [c.segment_id for c in changes] == [1, 2]
    assert changes[1].previous_segment_id == 1
    assert changes[1].previous_segment_start_ns == steps[0].stamp_ns
    switch = START + 20 * SECOND // 4
    fired = next(s for s in steps[1:] if s.change)
    assert switch <= changes[1].segment_start_ns <= fired.stamp_ns <= switch + 2 * SECOND
    assert fired.change_score >= 1 and fired.segment_id == 2


@pytest.mark.parametrize("fps", [10, 12.5, 30, 60])
def test_the_camera_s_rate_does_not_change_the_steps(model: Runtime, fps: float) -> None:
    """On a scene that changes at whole seconds, every camera shows the same quarter seconds."""

    def stream(rate: float) -> list[Scene]:
        colours = (RED, GREEN, BLUE)
        return [colours[int(i / rate) // 3 % 3] for i in range(round(12 * rate))]

    steps = feed(perceive(model), stream(fps), fps)
    reference = feed(perceive(model), stream(4), 4)
    slots = [s.stamp_ns * 4 // SECOND for s in steps]
    assert slots == [s.stamp_ns * 4 // SECOND for s in reference]
    np.testing.assert_array_equal([s.embedding for s in steps], [s.embedding for s in reference])


@pytest.mark.parametrize("rate", [1.0, 3.0, 8.0])
def test_steps_come_at_the_rate_that_is_set(model: Runtime, rate: float) -> None:
    steps = feed(perceive(model, Settings(rate=rate)), [RED] * 300, fps=30)
    slots = [s.stamp_ns * round(rate) // SECOND for s in steps]
    assert slots == list(range(slots[0], slots[0] + len(slots)))
    assert len(steps) >= 9 * rate - 1
    for step in steps:
        assert abs(step.stamp_ns - step.window_start_ns - 0.75 * SECOND) < 0.2 * SECOND


def test_a_rate_of_its_own_for_one_camera(model: Runtime) -> None:
    perceiver = perceive(model, Settings(rates={"rear": 1.0}), "front", "rear")
    front = feed(perceiver, [RED] * 40, camera="front")
    rear = feed(perceiver, [RED] * 40, camera="rear")
    assert (len(front), len(rear)) == (37, 10)


def test_cameras_that_are_due_together_share_the_runs_and_nothing_else(model: Runtime) -> None:
    names = ("a", "b", "c")
    streams = {
        "a": [RED] * 12 + [BLUE] * 12, "b": [GREEN] * 24, "c": [BLUE, RED] * 12,
    }  # fmt: skip
    together = perceive(model, None, *names)
    runs = len(model._runs["x_encoder"])
    steps = []
    for i in range(24):
        stamp = START + i * SECOND // 4
        ready = [
            n for n in names
            if together.due(n, stamp).due and together.take(n, stamp, n, image(streams[n][i]))
        ]  # fmt: skip
        steps += together.step(ready) if ready else []
    assert len(model._runs["x_encoder"]) - runs <= 21
    for name in names:
        alone = feed(perceive(model, None, name), streams[name], camera=name)
        mine = [s for s in steps if s.camera == name]
        assert [s.sequence for s in mine] == [s.sequence for s in alone]
        assert [s.segment_id for s in mine] == [s.segment_id for s in alone]
        assert [s.reused for s in mine] == [s.reused for s in alone]
        np.testing.assert_allclose(
            [s.embedding for s in mine], [s.embedding for s in alone], atol=1e-5
        )


def test_every_query_has_its_own_stream(model: Runtime) -> None:
    queries = ("what is happening ?", "describe the video")
    perceiver = perceive(model, Settings(queries=queries))
    steps = feed(perceiver, [RED] * 10)
    assert [s.query for s in steps[:4]] == [*queries, *queries]
    assert [s.sequence for s in steps[:4]] == [1, 1, 2, 2]
    assert not np.allclose(steps[0].embedding, steps[1].embedding)
    assert perceiver.counters("camera").encodes == 1


def test_queries_change_while_the_stream_runs(model: Runtime) -> None:
    one, two = "what is happening ?", "a red cube"
    perceiver = perceive(model, Settings(queries=[one]))
    feed(perceiver, [RED] * 10)
    runs = len(model._runs["x_encoder"])
    perceiver.configure(Settings(queries=[one, two]))
    steps = feed(perceiver, [RED] * 2, start=START + 10 * SECOND // 4)
    assert [(s.query, s.sequence, s.reused, bool(s.change)) for s in steps] == [
        (one, 8, True, False), (two, 1, False, True),
        (one, 9, True, False), (two, 2, True, False),
    ]  # fmt: skip
    assert len(model._runs["x_encoder"]) == runs  # the tokens at hand answer the new question
    perceiver.configure(Settings(queries=[two]))
    feed(perceiver, [RED] * 2, start=START + 12 * SECOND // 4)
    perceiver.configure(Settings(queries=[one]))
    back = feed(perceiver, [RED] * 2, start=START + 14 * SECOND // 4)
    assert [(s.sequence, s.segment_id, bool(s.change)) for s in back] == [
        (10, 2, True), (11, 2, False),
    ]  # fmt: skip


def test_thresholds_change_while_the_stream_runs(model: Runtime) -> None:
    perceiver = perceive(model, Settings(gate_threshold=0, change_threshold=1e5))
    steps = feed(perceiver, [RED] * 16 + [BLUE] * 16)
    assert sum(bool(s.change) for s in steps) == 1 and not any(s.reused for s in steps)
    perceiver.configure(Settings(change_threshold=0.1))
    steps = feed(perceiver, [RED] * 16, start=START + 8 * SECOND)
    assert any(s.change for s in steps) and any(s.reused for s in steps)


@pytest.mark.parametrize("jump", [-100, 60])
def test_a_restart_leaves_nothing_from_before(model: Runtime, jump: int) -> None:
    perceiver = perceive(model)
    before = feed(perceiver, [BLUE] * 10 + [RED] * 10)
    start = START + 5 * SECOND + jump * SECOND
    after = feed(perceiver, [RED] * 10 + [GREEN] * 10, start=start)
    fresh = feed(perceive(model), [RED] * 10 + [GREEN] * 10, start=start)
    assert perceiver.counters("camera").restarts == 1
    assert [s.stamp_ns for s in after] == [s.stamp_ns for s in fresh]
    assert [s.reused for s in after] == [s.reused for s in fresh]
    assert [s.change_score for s in after] == [s.change_score for s in fresh]
    assert after[0].change is not None
    assert after[0].segment_id == before[-1].segment_id + 1
    assert after[0].sequence == before[-1].sequence + 1
    assert min(s.window_start_ns for s in after) == start


def test_one_camera_s_restart_does_not_touch_another(model: Runtime) -> None:
    perceiver = perceive(model, None, "a", "b")
    feed(perceiver, [RED] * 10, camera="a")
    feed(perceiver, [RED] * 10, camera="b")
    feed(perceiver, [RED] * 10, start=START - 500 * SECOND, camera="a")
    step = feed(perceiver, [RED], start=START + 10 * SECOND // 4, camera="b")[0]
    assert step.reused and not step.change
    assert perceiver.counters("b").restarts == 0


def test_frames_that_are_not_due_are_told_apart_and_counted(model: Runtime) -> None:
    perceiver = perceive(model)
    stamps = [0, START, START + 1, START + 1, START, START + SECOND, START + 60 * SECOND]
    verdicts = [perceiver.due("camera", s) for s in stamps]
    assert verdicts == [
        Verdict.INVALID, Verdict.DUE, Verdict.EARLY, Verdict.DUPLICATE, Verdict.LATE,
        Verdict.DUE, Verdict.RESTARTED,
    ]  # fmt: skip
    counters = perceiver.counters("camera")
    assert (counters.frames, counters.due, counters.late, counters.invalid) == (7, 3, 2, 1)


def test_pictures_of_changing_size_go_on(model: Runtime) -> None:
    perceiver = perceive(model)
    steps = []
    for i, size in enumerate([(48, 64), (480, 640), (33, 20), (2, 2), (64, 64), (1, 9)]):
        stamp = START + i * SECOND // 4
        assert perceiver.due("camera", stamp).due
        if perceiver.take("camera", stamp, "", image(RED, *size)):
            steps += perceiver.step(["camera"])
    assert len(steps) == 3


class Broken(Runtime):
    """A model whose predictor gives NaN for some clips, or whose encoder fails."""

    poison: str | None = None

    def encode_keeping(self, clips: Clips) -> list[Tensor]:
        if self.poison == "fail":
            raise EngineError("'x_encoder' failed on purpose.")
        rows = super().encode_keeping(clips)
        if self.poison == "tokens":
            for tokens, clip in zip(rows, clips, strict=True):
                if clip[-1][0, 0, 0] > 0:  # the red ones
                    np.asarray(tokens)[:] = np.nan
        return rows

    def predict(
        self, visual_tokens: np.ndarray | Sequence[Tensor], queries: Sequence[str]
    ) -> np.ndarray:
        embeddings = super().predict(visual_tokens, queries)
        if self.poison == "query":
            embeddings[:, 1] = np.inf
        return embeddings


@pytest.fixture
def broken(tiny_bundle: Path) -> Iterator[Broken]:
    model = Broken(load_bundle(tiny_bundle, verify=False), "onnxruntime-cpu", threads=1)
    yield model
    model.close()


def test_nan_drops_the_steps_of_its_camera_alone(
    broken: Broken, caplog: pytest.LogCaptureFixture
) -> None:
    perceiver = perceive(broken, Settings(gate_max_age=1e4), "a", "b")
    broken.poison = "tokens"
    steps: list[Step] = []
    for i in range(10):
        if i == 7:
            broken.poison = None
        stamp = START + i * SECOND // 4
        ready = [
            name for name, colour in (("a", RED), ("b", BLUE))
            if perceiver.due(name, stamp).due and perceiver.take(name, stamp, "", image(colour))
        ]  # fmt: skip
        steps += perceiver.step(ready) if ready else []
    assert [s.sequence for s in steps if s.camera == "b"] == list(range(1, 8))
    assert [s.stamp_ns for s in steps if s.camera == "a"] == [
        START + i * SECOND // 4 for i in (7, 8, 9)
    ]
    assert all(np.isfinite(s.embedding).all() for s in steps)
    assert (perceiver.counters("a").errors, perceiver.counters("b").errors) == (4, 0)
    errors = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert len(errors) == 1 and "Camera 'a'" in errors[0] and "not finite" in errors[0]


def test_nan_for_one_query_does_not_wake_the_encoder(broken: Broken) -> None:
    broken.poison = "query"
    perceiver = perceive(broken, Settings(queries=["a", "b"], gate_max_age=1e4))
    steps = feed(perceiver, [RED] * 10)
    assert {s.query for s in steps} == {"a"} and len(steps) == 7
    counters = perceiver.counters("camera")
    assert (counters.encodes, counters.errors) == (1, 7)


def test_an_engine_that_fails_is_tried_again(broken: Broken) -> None:
    perceiver = perceive(broken)
    broken.poison = "fail"
    with pytest.raises(EngineError, match="on purpose"):
        feed(perceiver, [RED] * 4)
    broken.poison = None
    steps = feed(perceiver, [RED] * 2, start=START + SECOND)
    assert [s.reused for s in steps] == [False, True] and steps[0].change is not None


def test_the_last_visual_tokens_are_kept_for_questions(model: Runtime) -> None:
    perceiver = perceive(model)
    assert perceiver.seen("camera") is None
    steps = feed(perceiver, [RED] * 8)
    seen = perceiver.seen("camera")
    assert seen is not None and seen.stamp_ns == steps[-1].stamp_ns
    assert seen.frame_id == "camera_frame"
    answer = model.predict([seen.tokens], [steps[-1].query])[0, 0]
    np.testing.assert_allclose(answer, steps[-1].embedding, atol=1e-6)


MOTION = [RED] * 8 + [GREEN, BLUE, RED] * 4 + [BLUE] * 12


def same(steps: list[Step], wanted: list[Step]) -> None:
    """The steps are those that are wanted, but for what the gate had encoded anew."""
    assert [(s.stamp_ns, s.sequence, s.segment_id) for s in steps] == [
        (s.stamp_ns, s.sequence, s.segment_id) for s in wanted
    ]
    assert [bool(s.change) for s in steps] == [bool(s.change) for s in wanted]
    for step, other in zip(steps, wanted, strict=True):
        np.testing.assert_allclose(step.embedding, other.embedding, atol=1e-5)


def test_a_device_that_fails_costs_no_step(model: Runtime) -> None:
    """Visual tokens went with it while the gate holds them: they are made again."""
    wanted = feed(perceive(model), MOTION)
    for lost_at in (5, 12):
        device = Device()
        with installed(device):
            perceiver = perceive(Runtime(model.bundle, threads=1))
            steps = feed(perceiver, MOTION[:lost_at])
            assert isinstance(perceiver.seen("camera").tokens, OnDevice)
            device.lost = True
            steps += feed(perceiver, MOTION[lost_at:], start=START + lost_at * SECOND // 4)
        assert {e.backend for e in perceiver.model.info} == {"onnxruntime-cpu"}
        same(steps, wanted)
        counters = perceiver.counters("camera")
        assert counters.encodes + counters.reused == len(wanted)


def test_another_model_takes_over_between_two_steps(model: Runtime) -> None:
    wanted = feed(perceive(model), MOTION)
    with installed(Device()):
        perceiver = perceive(model)
        steps = feed(perceiver, MOTION[:7])
        other = Runtime(model.bundle, threads=1)
        perceiver.replace_model(other)
        assert perceiver.seen("camera") is not None  # what was seen can be asked about at once
        steps += feed(perceiver, MOTION[7:], start=START + 7 * SECOND // 4)
        assert isinstance(perceiver.seen("camera").tokens, OnDevice)
        perceiver.replace_model(model)
        assert isinstance(perceiver.seen("camera").tokens, np.ndarray)
    same(steps, wanted)
    assert not steps[7 - 3].reused  # the first one after it is encoded


def test_every_stage_is_timed(model: Runtime) -> None:
    perceiver = perceive(model)
    feed(perceiver, [RED] * 10)
    stages = perceiver.stages.percentiles()
    assert list(stages) == ["resize", "window", "gate", "encode", "predict", "detect"]
    assert [records for _, _, records in stages.values()] == [10, 10, 7, 1, 1, 7]
    assert all(0 <= p50 <= p99 for p50, p99, _ in stages.values())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Settings(rate=0), "'rate' must be in"),
        (Settings(rate=float("nan")), "'rate'"),
        (Settings(rates={"camera": -1}), r"'rates\[camera\]'"),
        (Settings(gate_threshold=300), "'gate_threshold' must be in 0..255, not 300"),
        (Settings(change_threshold=0), "'change_threshold'"),
        (Settings(hysteresis=1.5), "'hysteresis'"),
        (Settings(min_segment=0), "'min_segment'"),
        (Settings(queries=["a", "a"]), "twice"),
        (Settings(queries=["a", "  "]), "empty question"),
    ],
)
def test_settings_out_of_range_are_refused_and_change_nothing(
    model: Runtime, settings: Settings, words: str
) -> None:
    with pytest.raises(SettingsError, match=words):
        Perceiver(model, ["camera"], settings)
    perceiver = perceive(model)
    before = perceiver.settings
    with pytest.raises(SettingsError, match=words):
        perceiver.configure(settings)
    assert perceiver.settings is before


def test_the_detector_s_settings_are_counted_in_sample_rate_steps(tiny_bundle: Path) -> None:
    bundle, found = load_bundle(tiny_bundle, verify=False), ChangeDetector(1, 1, 1, 1)
    Settings(rate=8, change_threshold=0.6, min_segment=5).set_detector(found, "camera", bundle)
    assert (found.threshold, found.candidate, found.min_segment) == (1.2, 6, 10)
    assert found.hysteresis == bundle.change.hysteresis
    Settings(rates={"camera": 1}, hysteresis=0.5).set_detector(found, "camera", bundle)
    assert (found.threshold, found.candidate, found.min_segment) == (0.125, 1, 1)
    assert found.hysteresis == 0.5


def test_twice_the_rate_sees_the_same_changes_in_time(model: Runtime) -> None:
    """The Ward cost and the lengths are counted in sample-rate steps, whatever the rate."""
    stream = [RED] * 80 + [BLUE] * 80
    found = []
    for rate in (4.0, 8.0):
        steps = feed(perceive(model, replace(ONCE, rate=rate)), stream, fps=16)
        found.append([s.change for s in steps if s.change])
    assert [len(changes) for changes in found] == [2, 2]
    difference = found[0][1].segment_start_ns - found[1][1].segment_start_ns
    assert abs(difference) <= SECOND // 2


def knowing(model: Runtime, folder: Path) -> Runtime:
    """The same model in a bundle that knows pictures which are red, and nothing else."""
    shutil.copytree(model.bundle.path, folder)
    red = [np.full((4, 32, 32, 3), (180 + k % 70, k % 40, k % 25), np.uint8) for k in range(100)]
    seen = pooled(model, np.stack(red))
    add_familiarity(folder, fit(seen[::2], seen[1::2]))
    return Runtime(load_bundle(folder), "onnxruntime-cpu", threads=1)


def test_steps_and_what_is_asked_about_say_how_familiar_they_are(
    model: Runtime, tmp_path: Path
) -> None:
    assert {s.familiarity for s in feed(perceive(model), [RED] * 6)} == {-1.0}
    perceiver = perceive(knowing(model, tmp_path / "red"))
    picture = np.full((48, 64, 3), (220, 10, 5), np.uint8)
    found = []
    for k in range(24):
        stamp = START + k * SECOND // 4
        shown = picture if k < 12 else image(GREEN)
        if perceiver.due("camera", stamp).due and perceiver.take("camera", stamp, "f", shown):
            found += perceiver.step(["camera"])
        seen = perceiver.seen("camera")
        assert seen is None or seen.familiarity == found[-1].familiarity
    first, last = found[0].familiarity, found[-1].familiarity
    assert 0 <= last < 0.5 < first <= 1
    assert [s.familiarity for s in found if s.encoded == 0 and s.stamp_ns < START + 3 * SECOND] == (
        [first] * sum(s.encoded == 0 and s.stamp_ns < START + 3 * SECOND for s in found)
    )
    assert "familiarity" in perceiver.stages.percentiles()


def test_familiarity_outlives_the_device_that_had_the_tokens(
    model: Runtime, tmp_path: Path
) -> None:
    wise = knowing(model, tmp_path / "red")
    wanted = [s.familiarity for s in feed(perceive(wise), MOTION)]
    for lost_at in range(3, len(MOTION)):
        device = Device()
        with installed(device):
            perceiver = perceive(Runtime(wise.bundle, threads=1))
            steps = feed(perceiver, MOTION[:lost_at])
            device.lost = True
            steps += feed(perceiver, MOTION[lost_at:], start=START + lost_at * SECOND // 4)
        np.testing.assert_allclose([s.familiarity for s in steps], wanted, atol=1e-5)
