"""The shipped bundle on the shipped stream: what the README promises, measured again."""

from __future__ import annotations

from pathlib import Path

import pytest

from vljepa_ros.perception.settings import Settings
from vljepa_ros.runtime.bundle import load_bundle, verify_bundle
from vljepa_ros.runtime.model import VLJepa
from vljepa_ros.training.evaluation.shipped import judge_stream

ROOT = Path(__file__).parents[2]
VIDEO = ROOT / "videos" / "tabletop.mp4"
BUNDLE = ROOT / "engines" / "tabletop"


@pytest.fixture(scope="module")
def judged() -> dict:
    parts = ("x_encoder", "predictor", "y_encoder", "y_decoder")
    model = VLJepa(load_bundle(BUNDLE), "onnxruntime-cpu", parts=parts)
    return judge_stream(model, VIDEO, VIDEO.with_suffix(".json"), Settings())


def test_every_file_is_what_the_manifest_says() -> None:
    assert verify_bundle(BUNDLE) == []


def test_it_speaks_less_than_half_as_often_as_uniform_decoding(judged: dict) -> None:
    """At 28 events a minute; how often on long streams stands in docs/results.md."""
    assert 0 < judged["decodes"] < judged["uniform_decodes"] / 2


def test_most_sentences_name_an_event_that_holds(judged: dict) -> None:
    assert judged["kind_right"] > 0.5


def test_the_manifest_carries_these_very_figures(judged: dict) -> None:
    claimed = load_bundle(BUNDLE).evaluation["shipped_stream"]
    assert claimed["decodes"] == judged["decodes"]
    assert claimed["kind_right"] == pytest.approx(judged["kind_right"])
    assert claimed["right"] == pytest.approx(judged["right"])
