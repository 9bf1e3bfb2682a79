"""Engines: checked inputs, the order of backends, and graphs that do not load."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vljepa_ros.bundle.graphs import GraphSpec, TensorSpec
from vljepa_ros.bundle.spec import Bundle, load_bundle
from vljepa_ros.errors import EngineError
from vljepa_ros.inference import backends as backends_module
from vljepa_ros.inference import ort
from vljepa_ros.inference.backends import backends, open_engine
from vljepa_ros.inference.engine import Engine


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle, verify=False)


@pytest.fixture
def predictor(bundle: Bundle) -> Engine:
    return open_engine(bundle.graphs["predictor"], "onnxruntime-cpu")


def arrays() -> dict[str, np.ndarray]:
    return {
        "visual_tokens": np.ones((2, 32, 16), np.float32),
        "query_ids": np.zeros((3, 12), np.int64),
        "query_mask": np.ones((3, 12), np.int64),
    }


def test_an_engine_runs_what_it_declares(predictor: Engine) -> None:
    outputs = predictor.run(**arrays())
    assert outputs.keys() == {"embedding"}
    assert outputs["embedding"].shape == (2, 3, 32)
    assert outputs["embedding"].dtype == np.float32
    again = predictor.run(**arrays())
    assert again["embedding"] is not outputs["embedding"]  # the first result is not written over
    assert (predictor.backend, predictor.precision) == ("onnxruntime-cpu", "fp32")


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("visual_tokens", np.ones((2, 32, 16)), "must be float32, and was given float64"),
        ("query_ids", np.ones((3, 12), np.int32), "must be int64"),
        ("visual_tokens", np.ones((2, 31, 16), np.float32), r"\[B, 32, 16\].*\[2, 31, 16\]"),
        ("visual_tokens", np.ones((32, 16), np.float32), "must have shape"),
        ("query_mask", np.ones((2, 12), np.int64), r"shape \[Q, 12\], and was given \[2, 12\]"),
    ],
)
def test_wrong_inputs_are_refused(
    predictor: Engine, name: str, array: np.ndarray, words: str
) -> None:
    with pytest.raises(EngineError, match=words) as error:
        predictor.run(**{**arrays(), name: array})
    assert f"'{name}' of 'predictor'" in str(error.value)


def test_missing_and_unknown_inputs_are_refused(predictor: Engine) -> None:
    inputs = arrays()
    del inputs["query_mask"]
    with pytest.raises(EngineError, match="'predictor' takes"):
        predictor.run(**inputs)
    with pytest.raises(EngineError, match="'predictor' takes"):
        predictor.run(**arrays(), more=np.zeros(1))


def test_a_closed_engine_says_so(predictor: Engine) -> None:
    predictor.close()
    with pytest.raises(EngineError, match="'predictor' is closed"):
        predictor.run(**arrays())


def test_a_failing_run_is_an_engine_error(predictor: Engine) -> None:
    inputs = arrays()
    inputs["query_ids"][:] = 10**6  # beyond the table
    with pytest.raises(EngineError, match="'predictor' failed on onnxruntime-cpu"):
        predictor.run(**inputs)


def test_the_order_of_preference_is_the_documented_one() -> None:
    reports = backends()
    names = [report.backend for report in reports]
    assert names == [
        "tensorrt", "tensorrt_rtx", "onnxruntime-cuda", "onnxruntime-cpu", "openvino",
    ]  # fmt: skip
    assert [report.backend for report in reports if report.by_name] == ["openvino"]
    assert reports[-2].available and not reports[-2].reason
    for report in reports:
        assert report.available or (report.reason and report.fix)
    assert "tensorrt is not installed" in reports[0].reason


def test_an_unknown_backend_is_refused(bundle: Bundle) -> None:
    with pytest.raises(EngineError, match=r"Unknown backend 'gpu'.*onnxruntime-cpu"):
        open_engine(bundle.graphs["predictor"], "gpu")


def test_an_unavailable_backend_is_never_replaced(bundle: Bundle) -> None:
    with pytest.raises(EngineError, match=r"tensorrt is not available.*not installed"):
        open_engine(bundle.graphs["predictor"], "tensorrt")


def test_auto_says_once_what_it_passed_over(
    bundle: Bundle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends_module, "_reported", set())
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            engine = open_engine(bundle.graphs["predictor"])
    assert engine.backend.startswith("onnxruntime")
    said = [r.getMessage() for r in caplog.records if "Running on" in r.getMessage()]
    assert len(said) == 1 and "tensorrt" in said[0]


def cuda_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with the CUDA package and a broken driver."""
    table = [
        dataclasses.replace(b, missing=lambda: None) if b.name == "onnxruntime-cuda" else b
        for b in backends_module._BACKENDS
    ]
    monkeypatch.setattr(backends_module, "_BACKENDS", tuple(table))
    monkeypatch.setattr(backends_module, "_reported", set())


@pytest.mark.skipif(ort.cuda_missing() is None, reason="CUDA works here")
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_gpu_that_fails_is_reported_and_passed_over(
    bundle: Bundle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda_that_does_not_start(monkeypatch)
    engine = open_engine(bundle.graphs["predictor"])
    assert engine.backend == "onnxruntime-cpu"
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1 and "onnxruntime-cuda failed" in warnings[0]
    with pytest.raises(EngineError, match="CUDA does not start"):
        open_engine(bundle.graphs["predictor"], "onnxruntime-cuda")


def test_a_graph_that_is_no_onnx_is_named(bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "broken.onnx"
    file.write_bytes(b"not a graph")
    graph = dataclasses.replace(bundle.graphs["predictor"], path=file)
    with pytest.raises(EngineError, match=r"broken\.onnx does not load"):
        open_engine(graph)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (TensorSpec("float32", ("B", "Q", 64)), r"float32 \[B, Q, 64\].*float32 \[B, Q, 32\]"),
        (TensorSpec("float16", ("B", "Q", 32)), "float16"),
        (TensorSpec("float32", ("B", 32)), "export the bundle again"),
    ],
)
def test_outputs_must_be_those_of_the_manifest(
    bundle: Bundle, spec: TensorSpec, words: str
) -> None:
    graph = dataclasses.replace(bundle.graphs["predictor"], outputs={"embedding": spec})
    with pytest.raises(EngineError, match=words) as error:
        open_engine(graph)
    assert "predictor.onnx" in str(error.value)


def test_a_size_that_the_graph_fixes_cannot_be_declared_open(bundle: Bundle) -> None:
    inputs = dict(bundle.graphs["predictor"].inputs)
    inputs["query_ids"] = TensorSpec("int64", ("Q", "L"))
    with pytest.raises(EngineError, match="query_ids"):
        open_engine(dataclasses.replace(bundle.graphs["predictor"], inputs=inputs))


def test_weights_in_int8_give_what_their_float_values_give(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    weights = random.integers(-127, 128, (64, 8)).astype(np.int8)
    scale = random.uniform(0.01, 0.02, 8).astype(np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["f"], axis=1),
        helper.make_node("MatMul", ["x", "f"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", 8])
    constants = [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(scale, "s")]
    graph = helper.make_graph(nodes, "int8", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"precision": "int8 weights"})
    file = tmp_path / "int8.onnx"
    onnx.save(model, file)
    spec = GraphSpec(
        "int8", file, "",
        {"x": TensorSpec("float32", ("B", 64))}, {"y": TensorSpec("float32", ("B", 8))},
    )  # fmt: skip
    engine = open_engine(spec, "onnxruntime-cpu", threads=1)
    value = random.normal(size=(3, 64)).astype(np.float32)
    expected = value @ (weights.astype(np.float32) * scale)
    np.testing.assert_allclose(engine.run(x=value)["y"], expected, rtol=1e-4, atol=1e-4)
    assert engine.precision == "int8 weights"
