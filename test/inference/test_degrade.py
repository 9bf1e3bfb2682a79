"""A device that fails while it runs: the model goes on with the next backend, and loses nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from device import Device, OnDevice, installed

from vljepa_ros.bundle.spec import Bundle, load_bundle
from vljepa_ros.errors import EngineError, PrecisionError, TensorsLostError
from vljepa_ros.inference.backends import must_build, open_engine
from vljepa_ros.inference.runtime import Runtime

PARTS = ("x_encoder", "predictor", "y_encoder", "y_decoder")
QUERIES = [f"what is {word}" for word in ("red", "green", "blue", "yellow", "falls")]


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle, verify=False)


@pytest.fixture
def device() -> Iterator[Device]:
    found = Device(B=3, Q=2)
    with installed(found):
        yield found


@pytest.fixture
def clips() -> list[list[np.ndarray]]:
    random = np.random.default_rng(0)
    return [list(random.integers(0, 256, (4, 32, 32, 3), np.uint8)) for _ in range(5)]


@pytest.fixture(scope="module")
def reference(bundle: Bundle) -> Runtime:
    return Runtime(bundle, "onnxruntime-cpu", threads=1, parts=PARTS)


def backends(model: Runtime) -> set[str]:
    return {engine.backend for engine in model.info}


def test_batches_beyond_the_profile_are_run_in_pieces(
    bundle: Bundle, device: Device, clips: list[list[np.ndarray]], reference: Runtime
) -> None:
    model = Runtime(bundle, parts=PARTS)
    assert backends(model) == {"device"}
    rows = model.encode_keeping(clips)
    assert [type(row) for row in rows] == [OnDevice] * 5
    embeddings = model.predict(rows, QUERIES)
    batches = [shapes["visual_tokens"][0] for name, shapes in device.runs if name == "predictor"]
    assert batches == [3, 3, 3, 2, 2, 2]  # times 2, 2 and 1 queries
    np.testing.assert_allclose(embeddings, reference.predict(reference.encode(clips), QUERIES))
    texts = [f"red {word}" for word in ("cube", "ball", "arm", "hand", "table")]
    np.testing.assert_allclose(model.embed_text(texts), reference.embed_text(texts))
    assert model.decode_all(embeddings[:, 0]) == reference.decode_all(embeddings[:, 0])


def test_a_lost_device_is_left_for_the_next_and_the_run_is_repeated(
    bundle: Bundle, device: Device, clips: list[list[np.ndarray]], reference: Runtime,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    model = Runtime(bundle, parts=PARTS)
    device.lost = True
    with caplog.at_level(logging.ERROR):
        np.testing.assert_allclose(model.encode(clips), reference.encode(clips))
    assert backends(model) == {"onnxruntime-cpu"}  # all that ran on it, not the X-encoder alone
    assert len(model.faults) == 1
    assert "device failed and was left for onnxruntime-cpu: The device is lost" in model.faults[0]
    assert model.faults[0] in caplog.text
    embedding = reference.embed_text(["a red cube"])[0]
    assert model.decode(embedding) == reference.decode(embedding)


def test_tokens_of_a_lost_device_are_to_be_encoded_again(
    bundle: Bundle, device: Device, clips: list[list[np.ndarray]], reference: Runtime
) -> None:
    model = Runtime(bundle)
    rows = model.encode_keeping(clips[:2])
    device.lost = True
    with pytest.raises(TensorsLostError, match="'predictor'"):
        model.predict(rows, QUERIES)
    again = model.predict(model.encode_keeping(clips[:2]), QUERIES)
    np.testing.assert_allclose(again, reference.predict(reference.encode(clips[:2]), QUERIES))


def test_a_device_that_fails_in_the_middle_of_a_text_does_not_shorten_it(
    bundle: Bundle, device: Device, reference: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedding = next(
        e for e in reference.embed_text(QUERIES) if len(reference.decode(e).split()) > 3
    )
    model = Runtime(bundle, parts=("y_decoder",))
    check, left = device.check, [3]

    def fail_later() -> None:
        left[0] -= 1
        device.lost = left[0] < 0
        check()

    monkeypatch.setattr(device, "check", fail_later)
    assert model.decode(embedding) == reference.decode(embedding)
    assert backends(model) == {"onnxruntime-cpu"}


def test_devices_fail_one_after_the_other(bundle: Bundle, clips: list[list[np.ndarray]]) -> None:
    first, second = Device("first"), Device("second")
    with installed(first, second):
        model = Runtime(bundle)
        first.lost = second.lost = True
        model.encode(clips[:1])
        assert backends(model) == {"onnxruntime-cpu"}
        assert "second failed" in model.faults[-1] or "left for onnxruntime-cpu" in model.faults[-1]


def test_what_is_not_built_yet_does_not_stand_in_for_a_lost_device(
    bundle: Bundle, clips: list[list[np.ndarray]]
) -> None:
    first, unbuilt = Device("first"), Device("unbuilt")
    unbuilt.built = set()
    with installed(first, unbuilt):
        model = Runtime(bundle)
        first.lost = True
        model.encode(clips[:1])
        assert backends(model) == {"onnxruntime-cpu"} and not unbuilt.built


def test_a_build_is_reported_and_can_be_left_for_later(bundle: Bundle, device: Device) -> None:
    device.built = set()
    graph = bundle.graphs["predictor"]
    assert must_build(graph)
    assert Runtime(bundle, build=False).info[0].backend == "onnxruntime-cpu"
    assert not device.built
    with pytest.raises(EngineError, match=r"device .its engine is not built yet"):
        open_engine(graph, "device", build=False)
    told: list[tuple[str, str, float]] = []
    model = Runtime(bundle, report=lambda *words: told.append(words))
    assert backends(model) == {"device"} and not must_build(graph)
    assert told[:3] == [("x_encoder", "building", done) for done in (0.0, 0.5, 1.0)]
    assert len(told) == 9


def test_a_build_that_fails_is_passed_over_and_said(
    bundle: Bundle, device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    device.built, device.unbuildable = set(), True
    assert open_engine(bundle.graphs["predictor"]).backend == "onnxruntime-cpu"
    assert "device failed and is passed over: 'predictor' cannot be built" in caplog.text
    with pytest.raises(EngineError, match="cannot be built"):
        open_engine(bundle.graphs["predictor"], "device")


def test_auto_takes_another_precision_rather_than_none(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    with installed():
        engine = open_engine(bundle.graphs["predictor"], precision="fp16")
    assert engine.precision == "fp32" and "no 'predictor' in fp16" in caplog.text
    with pytest.raises(PrecisionError, match="no 'predictor' in fp16"):
        open_engine(bundle.graphs["predictor"], "onnxruntime-cpu", precision="fp16")
    with pytest.raises(EngineError, match="Unknown precision 'fp61'"):
        open_engine(bundle.graphs["predictor"], precision="fp61")
