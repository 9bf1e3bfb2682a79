"""fp8 variants: linear layers only, in the form that TensorRT documents, and close to fp32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from bundles import make_bundle
from onnx import TensorProto, helper, numpy_helper

from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.inference.trt.typed import typed_graph
from vljepa_ros.inference.verify import verify_bundle
from vljepa_ros.model.export import fp8, quantise
from vljepa_ros.model.export.fp8 import LARGEST, write_fp8
from vljepa_ros.model.export.quantise import add_fp8, add_int8

QUERIES = ["what is happening?", "is the cube red?", "what moves?", "where stands the ball?"]
CLIPS = np.random.default_rng(0).integers(0, 256, (4, 4, 32, 32, 3), np.uint8)
RANDOM = np.random.default_rng(0)


def block(path: Path, transposed: bool = False) -> Path:
    """x -> two layers of one input, an attention between them, and a residual addition."""
    weights = {name: RANDOM.normal(size=(8, 8)).astype(np.float32) for name in ("q", "k", "o")}
    nodes = [
        helper.make_node("Cast", ["q_half"], ["q"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "q"], ["query"]),
        helper.make_node("MatMul", ["x", "k"], ["key"]),
        helper.make_node("Transpose", ["key"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["query", "turned"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"]),
        helper.make_node("MatMul", ["shares", "x"], ["mixed"]),
        helper.make_node("Gemm", ["mixed", "o", "bias"], ["out"], transB=int(transposed)),
        helper.make_node("Add", ["x", "out"], ["y"]),
    ]
    stored = {"q_half": weights["q"].astype(np.float16), "k": weights["k"], "o": weights["o"],
              "bias": RANDOM.normal(size=8).astype(np.float32)}  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 8])],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"largest_score": "7"})
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("inline", [True, False])
def test_only_inputs_and_weights_of_linear_layers_are_quantised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transposed: bool, inline: bool
):
    if not inline:
        monkeypatch.setattr(fp8, "INLINE", 1)
        monkeypatch.setattr(fp8, "COMPRESSED", 1)
    source, target = block(tmp_path / "g.onnx", transposed), tmp_path / "g.fp8.onnx"
    samples = [{"x": RANDOM.normal(size=(5, 8)).astype(np.float32)} for _ in range(3)]
    write_fp8(source, target, samples)
    assert target.with_suffix(".data").exists() != inline
    model = onnx.load(target)
    onnx.checker.check_model(model, full_check=True)
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    base = {t.name: numpy_helper.to_array(t) for t in onnx.load(source).graph.initializer}
    made = {name: node for node in model.graph.node for name in node.output}
    largest = max(float(np.abs(sample["x"]).max()) for sample in samples)
    activations = []
    for node in model.graph.node:
        undone = [made[name] for name in node.input
                  if name in made and made[name].op_type == "DequantizeLinear"]  # fmt: skip
        if node.output[0] not in ("query", "key", "out"):
            assert not undone or node.op_type == "DequantizeLinear", node
            continue
        activation, weight = undone
        activations.append(activation.input[0])
        scale = stored[activation.input[1]]
        assert scale.shape == () and made[activation.input[0]].op_type == "QuantizeLinear"
        if node.output[0] != "out":
            assert np.isclose(scale, largest / LARGEST)
        name = {"query": "q_half", "key": "k", "out": "o"}[node.output[0]]
        (axis,) = (attribute.i for attribute in weight.attribute)
        assert axis == (0 if transposed and name == "o" else 1)  # one scale an output column
        scales = np.expand_dims(stored[weight.input[1]], 1 - axis)
        small = stored[weight.input[0]]
        assert str(small.dtype) == "float8_e4m3fn"
        back = small.astype(np.float32) * scales
        wide = base[name].astype(np.float32)
        assert (np.abs(back - wide) <= np.abs(wide) / 16 + scales * 2.0**-10).all()  # 3 bits
        assert np.abs(small.astype(np.float32)).max(axis=1 - axis) == pytest.approx(LARGEST)
    assert activations[0] == activations[1]  # what two layers share is quantised once
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph.node) == 2
    assert not {"k", "o", "q_half"} & stored.keys()
    assert {p.key: p.value for p in model.metadata_props} == {
        "largest_score": "7", "precision": "fp8",
    }  # fmt: skip
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 19)]


def test_a_bundle_gets_both_kinds_of_variants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = make_bundle(tmp_path / "bundle")
    monkeypatch.setattr(quantise, "COSINE", 0.9)  # weights are random
    monkeypatch.setattr(fp8, "INLINE", 1000)
    add_int8(folder, CLIPS, QUERIES)
    found = add_fp8(folder, CLIPS, QUERIES)
    assert found.keys() == {"x_encoder", "predictor"}
    assert verify_bundle(folder) == []
    for name, cosine in found.items():
        graph = load_bundle(folder).graphs[name]
        assert graph.variants.keys() == {"int8", "fp8"}
        assert graph.variants["fp8"].cosine == cosine
        data = typed_graph(graph.variants["fp8"].path, "fp16")
        model = onnx.load_from_string(data)
        onnx.load_external_data_for_model(model, str(folder))
        onnx.checker.check_model(model, full_check=True)


def test_one_that_answers_otherwise_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    folder = make_bundle(tmp_path / "strict")
    monkeypatch.setattr(quantise, "COSINE", 1.01)
    monkeypatch.setattr(fp8, "INLINE", 1000)
    assert add_fp8(folder, CLIPS, QUERIES) == {}
    assert not list(folder.glob("*.fp8.*"))
    assert "no fp8 x_encoder: an embedding has cosine" in caplog.text
