"""Calibration of the change detector on streams whose truth is known."""

import numpy as np
import pytest

from vljepa_ros.perception.change import ChangeDetector
from vljepa_ros.training import calibrate
from vljepa_ros.training.calibrate import Stream, measure
from vljepa_ros.training.tabletop import language
from vljepa_ros.training.tabletop.episode import Episode
from vljepa_ros.training.tabletop.vocabulary import COLOURS, KINDS, SHAPES

NAMED = language.canonical()
WRITTEN = np.eye(len(NAMED), dtype=np.float32)  # every sentence has a direction of its own
TEXTS = WRITTEN, list(NAMED.values())
RATE = 4  # steps per second
EVENTS = [("still", -1), ("reach", 0), ("pick_up", 0), ("still", -1), ("push", 0), ("still", -1)]
LENGTH = 5.0  # s of every event


def stream(noise: float = 0.0, blip: float | None = None) -> Stream:
    """Embeddings of the true sentences; at `blip` s those of another one, for half a second."""
    spans = [[i * LENGTH, (i + 1) * LENGTH] for i in range(len(EVENTS))]
    arrays = {
        "objects": np.array([[SHAPES.index("mug"), COLOURS.index("blue")]]),
        "event_kind": np.array([KINDS.index(kind) for kind, _ in EVENTS]),
        "event_object": np.array([item for _, item in EVENTS]),
        "event_span": np.array(spans),
    }
    episode = Episode(arrays, {"seed": 0})
    stamps = np.arange(0.25, len(EVENTS) * LENGTH, 1 / RATE)
    sentences = list(NAMED)
    rows = [
        sentences.index(language.describe(episode.event_at(t - 0.01), episode.object_names))
        for t in stamps
    ]
    if blip is not None:
        wrong = (stamps >= blip) & (stamps < blip + 0.5)
        rows = np.where(wrong, sentences.index("a hand passes over the table"), rows)
    embeddings = WRITTEN[rows] + noise * np.random.default_rng(0).normal(
        size=(len(rows), len(WRITTEN))
    )
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    return Stream(episode, stamps, unit.astype(np.float32))


def test_a_perfect_stream_earns_full_marks():
    earned = measure([stream()], ChangeDetector(0.8, 2, 1, 1.0), TEXTS)
    assert earned["f1"] == earned["right"] == earned["score"] == 1
    assert earned["false_alarms_per_minute"] == 0
    assert earned["delay"] == pytest.approx(0.25)  # a candidate of two steps
    assert earned["decodes_per_minute"] == pytest.approx(5 / (29.5 / 60), rel=0.02)


def test_a_change_that_is_none_is_a_false_alarm():
    earned = measure([stream(blip=2.5)], ChangeDetector(0.8, 2, 1, 1.0), TEXTS)
    assert earned["recall"] == 1
    assert earned["precision"] == pytest.approx(5 / 7)
    assert earned["false_alarms_per_minute"] == pytest.approx(2 / (29.5 / 60), rel=0.02)
    assert earned["right"] == pytest.approx(6 / 7)


def test_calibration_finds_what_ignores_noise_and_blips(monkeypatch: pytest.MonkeyPatch):
    """Of all settings it takes one that is quick, sparing, and fires at every event only."""
    judged = stream(noise=0.02, blip=2.5)
    monkeypatch.setattr(calibrate.store, "load_episode", lambda path: judged.episode)
    monkeypatch.setattr(calibrate, "stream_rows", lambda *_: np.arange(len(judged.stamps)))
    monkeypatch.setattr(calibrate, "embed_episode", lambda *_: (judged.embeddings, None))
    judged.episode.arrays["stamps"] = judged.stamps

    class Model:
        def embed_text(self, texts):
            return WRITTEN[[list(NAMED).index(text) for text in texts]]

    found = calibrate.calibrate(Model(), [None])
    assert found["f1"] == 1
    assert found["delay"] <= calibrate.LONGEST_DELAY
    assert found["decodes_per_minute"] <= calibrate.MOST_DECODES
    parts = [found[name] for name in ("threshold", "candidate", "min_segment", "hysteresis")]
    assert measure([judged], ChangeDetector(*parts), TEXTS)["score"] == found["score"]
