"""Conditions that are held against steps: cosines, thresholds, and what was taken away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.perception.conditions import Conditions

TEXTS = ["the red cube falls", "a ball rolls", "a hand picks the cube", "nothing moves"]


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Iterator[Runtime]:
    model = Runtime(load_bundle(tiny_bundle, verify=False), "onnxruntime-cpu")
    yield model
    model.close()


def add(conditions: Conditions, key: object, text: str, threshold: float = 0.0) -> None:
    for _ in conditions.add(key, text, threshold):
        pass


def unit(seed: int) -> np.ndarray:
    vector = np.random.default_rng(seed).normal(size=32).astype(np.float32)
    return vector / np.linalg.norm(vector)


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.floats(0, 1)), max_size=20),
    st.integers(0, 10),
)
def test_what_stands_is_judged_by_its_cosine_and_threshold(
    model: Runtime, steps: list[tuple[bool, int, float]], seed: int
) -> None:
    conditions = Conditions(model)
    standing: dict[int, tuple[str, float]] = {}
    for adds, key, threshold in steps:
        if adds:
            standing.pop(key, None)
            standing[key] = (TEXTS[key % len(TEXTS)], threshold)
            add(conditions, key, *standing[key])
        else:
            standing.pop(key, None)
            conditions.remove(key)
        embedding = unit(seed)
        judged = {j.key: j for j in conditions.judge(embedding)}
        assert set(judged) == set(standing)
        for key_, (text, wanted) in standing.items():
            score = float(model.embed_text([text])[0] @ embedding)
            assert judged[key_].score == pytest.approx(score, abs=1e-6)
            assert judged[key_].holds == (judged[key_].score >= (wanted or conditions.threshold))


def test_no_threshold_is_the_bundles(model: Runtime) -> None:
    conditions = Conditions(model)
    assert conditions.threshold == model.bundle.thresholds.watch
    add(conditions, "mild", TEXTS[0])
    add(conditions, "strict", TEXTS[0], 0.9999)
    text = model.embed_text([TEXTS[0]])[0]
    other = unit(1) - (unit(1) @ text) * text
    other /= np.linalg.norm(other)
    for cosine, mild, strict in ((1.0, True, True), (0.8, True, False), (0.3, False, False)):
        embedding = (cosine * text + (1 - cosine**2) ** 0.5 * other).astype(np.float32)
        judged = {j.key: j for j in conditions.judge(embedding)}
        assert judged["mild"].score == pytest.approx(cosine, abs=1e-5)
        assert (judged["mild"].holds, judged["strict"].holds) == (mild, strict)


def test_conditions_are_embedded_once_and_judged_without_an_engine(
    model: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    conditions = Conditions(model)
    for key, text in enumerate(TEXTS):
        add(conditions, key, text)
    monkeypatch.setattr(model, "_run", None)
    for seed in range(3):
        assert len(conditions.judge(unit(seed))) == len(TEXTS)
    assert Conditions(model).judge(unit(0)) == []
