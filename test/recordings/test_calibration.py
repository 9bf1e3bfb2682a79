"""What footage says of thresholds: knees, rates, noise, watches and what is familiar."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

from vljepa_ros.bundle.spec import REQUIRED, load_bundle
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.perception.perceiver import Perceiver, Step
from vljepa_ros.perception.settings import Settings
from vljepa_ros.recordings import calibration
from vljepa_ros.recordings.calibration import CalibrationError, Footage, Source
from vljepa_ros.recordings.offline import RecordedFrame
from vljepa_ros.recordings.video import VideoSource

ROOT = Path(__file__).parents[2]
VIDEO = ROOT / "videos" / "tabletop.mp4"
SECOND = 10**9
STEP = Step("camera", "?", 0, "", 0, np.zeros(8), 1, 1, 0, 0.0, False, None, 1, 0.9)


def footage(embeddings: np.ndarray, familiarity: float = 0.9) -> Footage:
    """Steps at 4 Hz with these embeddings `[S, 8]`; pooled tokens that vary a little."""
    random = np.random.default_rng(0)
    steps = [
        replace(STEP, stamp_ns=(k + 4) * SECOND // 4, embedding=one, familiarity=familiarity)
        for k, one in enumerate(embeddings)
    ]
    return Footage("it", steps, [random.normal(size=4).astype(np.float32) for _ in steps])


def turns(every: int, steps: int = 480) -> np.ndarray:
    """Another direction every so many steps, with a wobble at each."""
    random = np.random.default_rng(1)
    found = np.eye(8)[np.arange(steps) // every % 8] + 0.03 * random.normal(size=(steps, 8))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    from bundles import make_bundle

    folder = make_bundle(tmp_path_factory.mktemp("calibration") / "tiny", embedding_dim=8)
    model = Runtime(load_bundle(folder), "onnxruntime-cpu", threads=1)
    yield model
    model.close()


def test_at_the_knee_what_happens_is_a_change_and_what_wobbles_is_none(tiny: Runtime) -> None:
    """Two minutes with a turn every 10 s: 11 of them, 5.5 a minute."""
    thresholds, rates = calibration.change_curve(tiny, [footage(turns(40))])
    assert (np.diff(thresholds) > 0).all()
    assert rates[0] > 15 and rates[-1] == 0
    at = calibration.at_knee(thresholds, rates)
    assert rates[np.searchsorted(thresholds, at)] == pytest.approx(5.5, abs=0.1)
    assert 0.1 < at < 0.8  # far from the wobble's, and from the turns' own


def test_a_curve_without_a_knee_is_cut_at_what_is_worth_saying() -> None:
    thresholds, rates = np.geomspace(0.01, 1, 48), np.linspace(90, 0, 48)
    at = calibration.at_knee(thresholds, rates)
    assert 17 < rates[np.searchsorted(thresholds, at)] <= 60 / 2.85


def test_a_rate_that_is_wanted_is_kept_to(tiny: Runtime) -> None:
    thresholds, rates = calibration.change_curve(tiny, [footage(turns(40))])
    for wanted in (1.0, 6.0, 25.0):
        at = calibration.at_rate(thresholds, rates, wanted)
        row = int(np.searchsorted(thresholds, at))
        assert rates[row] <= wanted
        assert row == 0 or (rates[:row] > wanted).all()


def test_footage_in_which_nothing_changes_has_no_knee(tiny: Runtime) -> None:
    still = footage(np.tile(np.eye(8)[0], (400, 1)))
    with pytest.raises(CalibrationError, match="Nothing changes in the footage"):
        calibration.at_knee(*calibration.change_curve(tiny, [still]))


def test_hardly_a_condition_that_does_not_hold_would_fire(tiny: Runtime) -> None:
    never = [f"the {a} {b}" for a in ("cube", "ball", "hand", "arm") for b in ("falls", "rolls")]
    seen = footage(turns(40))
    found = calibration.watch_threshold(tiny, [seen], never)
    embeddings = np.stack([step.embedding for step in seen.steps])
    highest = (embeddings @ tiny.embed_text(never).T).max(0)
    assert 0 < found < 1
    assert (highest >= found).mean() <= 0.15
    assert (highest >= found - 0.2).mean() > 0.05  # and it is not higher than it has to be


def test_what_the_footage_shows_becomes_familiar_where_nothing_is() -> None:
    seen = [footage(turns(40))]
    found = calibration.fit_familiarity(seen)
    assert found is not None
    known = found.of(np.random.default_rng(5).normal(size=(200, 4)).astype(np.float32))
    assert (known >= 0.5).mean() > 0.97
    assert (found.of(np.full((1, 4), 30, np.float32)) < 0.5).all()
    assert calibration.fit_familiarity([footage(turns(40, 60))]) is None  # too little


def test_a_bundle_that_knows_its_world_does_not_learn_another_by_seeing_it() -> None:
    assert calibration.adapted(0.5, [footage(turns(40), 0.1)]) == 0.5
    assert calibration.adapted(0.5, [footage(turns(40), 0.9)]) == 0.5
    noisy = footage(turns(40), 0.9)  # its world, through a worse camera
    noisy.steps[::20] = [replace(step, familiarity=0.4) for step in noisy.steps[::20]]
    assert calibration.adapted(0.5, [noisy]) == pytest.approx(0.4)
    noisy.steps[::20] = [replace(step, familiarity=0.01) for step in noisy.steps[::20]]
    assert calibration.adapted(0.5, [noisy]) == 0.25  # half, at most


def test_too_little_footage_is_refused() -> None:
    with pytest.raises(CalibrationError, match=r"14\.8 s of footage; 20 s is the least"):
        calibration.check([footage(turns(40, 60))])
    calibration.check([footage(turns(40, 60)), footage(turns(40, 60))])


def test_the_gate_s_threshold_follows_from_what_it_has_learnt() -> None:
    seen = footage(turns(40))
    with pytest.raises(CalibrationError, match="long enough in one piece"):
        calibration.gate_noise([seen])
    for level, wanted in ((0.1, 1.0), (1.0, 2.2), (30.0, 12.0)):
        seen.noise = [level] * 50 + [3 * level] * 20
        assert calibration.gate_noise([seen]) == wanted


# ------------------------------------------------------------ the shipped bundle, short


def noisy(picture: np.ndarray, number: int) -> np.ndarray:
    """Noise as a cheap camera and its codec make it: coarse, another in every frame."""
    random = np.random.default_rng(number)
    coarse = random.normal(0, 1.6, (30, 40, 3)).astype(np.float32)
    height, width = picture.shape[:2]
    laid = picture + cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)
    return np.clip(laid, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def pictures() -> list[tuple[int, np.ndarray]]:
    """A minute of the shipped video, at the 4 Hz that the bundle takes."""
    every = list(VideoSource(str(VIDEO)).frames())[:1240:5]
    return [(offset_ns, picture) for offset_ns, picture in every]


def part(pictures: list[tuple[int, np.ndarray]], noise: bool, begin: int, end: int) -> Source:
    def frames() -> Iterator[RecordedFrame]:
        for number, (offset_ns, picture) in enumerate(pictures):
            if begin * SECOND <= offset_ns < end * SECOND:
                shown = partial(noisy, picture, number) if noise else partial(np.array, picture)
                stamp = SECOND + offset_ns
                yield RecordedFrame("camera", stamp, "", stamp, shown)

    return Source("part", ("camera",), frames)


def test_noise_that_hides_the_quiet_is_found_and_the_changes_stay(
    pictures: list[tuple[int, np.ndarray]],
) -> None:
    """Calibrated on one half, judged on the other; the whole video by hand: docs/calibration.md."""
    bundle = load_bundle(ROOT / "engines" / "tabletop")
    model = Runtime(bundle, "onnxruntime-cpu", threads=1, parts=REQUIRED)
    seen = calibration.observe(model, part(pictures, True, 0, 21), lambda frame: None)
    gate = calibration.gate_noise(seen)
    still = [
        (event["start"], event["end"])
        for event in json.loads(VIDEO.with_suffix(".json").read_text())["events"]
        if event["kind"] == "still"
    ]

    def judged(noise: bool, settings: Settings) -> tuple[float, int]:
        """The share of encodes that are passed over in quiet, and how many changes there are."""
        perceiver, steps = Perceiver(model, ["camera"], settings), list[Step]()
        for _, _, found in calibration._perceived(part(pictures, noise, 44, 62), perceiver):
            steps += found
        quiet = [
            step.encoded == 0
            for step in steps
            if any(
                begin <= step.window_start_ns / SECOND - 1 and step.stamp_ns / SECOND - 1 < end
                for begin, end in still
            )
        ]
        assert len(quiet) > 20
        return float(np.mean(quiet)), sum(step.change is not None for step in steps)

    fixed = Settings(gate_threshold=bundle.thresholds.gate)
    assert judged(True, fixed)[0] == 0  # as it was, everything is encoded
    clean = judged(False, fixed)
    model.bundle = replace(bundle, thresholds=replace(bundle.thresholds, gate=gate))
    saved, changes = judged(True, Settings())
    assert saved >= 0.8
    assert changes == clean[1]
    model.close()
