"""Calibration of the change detector on streams whose truth is known."""

from pathlib import Path

import numpy as np
import pytest

from vljepa_ros.evaluation.tasks.streams import PerceivedStream
from vljepa_ros.tabletop.episode import SPLITS
from vljepa_ros.training import calibrate
from vljepa_ros.training.calibrate import shortfall

RATE = 4  # steps per second
LENGTH = 5.0  # s of every event
EVENTS = 6


def stream(noise: float = 0.0, blip: float | None = None, lasting: float = 0.5) -> PerceivedStream:
    """Every event has a direction of its own; at `blip` s there is another, `lasting` s long."""
    stamps = np.arange(0.25, EVENTS * LENGTH, 1 / RATE)
    rows = ((stamps - 0.01) // LENGTH).astype(int)
    if blip is not None:
        rows = np.where((stamps >= blip) & (stamps < blip + lasting), EVENTS, rows)
    embeddings = np.eye(32)[rows] + noise * np.random.default_rng(0).normal(size=(len(rows), 32))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    bounds = tuple(LENGTH * i for i in range(1, EVENTS))
    return PerceivedStream(
        stamps, embeddings.astype(np.float32), np.zeros(len(stamps), bool), (), np.zeros(0), (),
        bounds, (), 0.0,
    )  # fmt: skip


def test_a_perfect_stream_earns_full_marks():
    earned = calibrate._boundaries([stream()], (0.4, 2, 1, 1.0))
    assert earned["f1"] == earned["precision"] == earned["recall"] == 1
    assert earned["false_alarms_per_minute"] == 0
    assert earned["delay"] == pytest.approx(0.25)  # half of the candidate is enough
    assert earned["decodes_per_minute"] == pytest.approx(EVENTS / (29.5 / 60), rel=0.02)


def test_a_change_that_is_none_is_a_false_alarm():
    earned = calibrate._boundaries([stream(blip=2.5)], (0.4, 2, 1, 1.0))
    assert earned["recall"] == 1
    assert earned["precision"] == pytest.approx(5 / 7)
    assert earned["false_alarms_per_minute"] == pytest.approx(2 / (29.5 / 60), rel=0.02)


GOOD = {"f1": 0.9, "decodes_per_minute": 15.0, "delay": 0.5, "false_alarms_per_minute": 0.5,
        "cider": 5.0, "cider_uniform_1_hz": 4.0}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "worse"),
    [("f1", 0.6), ("decodes_per_minute", 30.0), ("delay", 1.2), ("false_alarms_per_minute", 4.0),
     ("cider", 3.0)],
)  # fmt: skip
def test_every_miss_counts_and_only_misses(name: str, worse: float):
    assert shortfall(GOOD) == 0
    assert shortfall({**GOOD, name: worse}) > 0.1
    even_worse = worse / 2 if name in ("f1", "cider") else worse * 2
    assert shortfall({**GOOD, name: even_worse}) > shortfall({**GOOD, name: worse})


def test_calibration_finds_what_ignores_noise_and_blips(monkeypatch: pytest.MonkeyPatch):
    """Of all settings it takes one that fires at every event and at nothing else.

    The streams of the evaluation, from number 100 on, are not opened.
    """

    class Trials:
        def __init__(self, model, streams):
            assert len(streams) == 1

        def say(self, way):
            return way

    monkeypatch.setattr(calibrate, "Trials", Trials)
    monkeypatch.setattr(calibrate, "point", lambda streams, way: {"cider": 1.0})
    monkeypatch.setattr(calibrate, "perceive", lambda model, path: stream(0.02, 2.5, 0.25))
    monkeypatch.setattr(calibrate.store, "load_episode", lambda path: path)
    first = SPLITS["stream"]
    paths = [Path(f"{first + number:08d}.npz") for number in (3, 100)]

    class Model:
        class bundle:
            class clip:
                sample_rate = 4.0

    found = calibrate.calibrate(Model(), paths)
    assert found["f1"] == 1
    assert found["delay"] <= calibrate.DELAY
    assert found["decodes_per_minute"] <= calibrate.MOST_DECODES


def test_a_watch_gets_the_lowest_threshold_that_seldom_cries_wolf(monkeypatch: pytest.MonkeyPatch):
    """Five in a hundred conditions that never hold may fire; here that is below a cosine of 0.6."""

    def watch(model, watched, threshold):
        assert len(watched) == 1
        return {"threshold": threshold, "fired_never": max(0.0, 0.65 - threshold)}

    class Episode:
        events = ()

    monkeypatch.setattr(calibrate, "watch", watch)
    monkeypatch.setattr(calibrate, "perceive", lambda model, path: stream())
    monkeypatch.setattr(calibrate.store, "load_episode", lambda path: Episode())
    first = SPLITS["stream"]
    found = calibrate.calibrate_watch(None, [Path(f"{first}.npz"), Path(f"{first + 100}.npz")])
    assert found["threshold"] == pytest.approx(0.6)
