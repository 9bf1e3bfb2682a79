"""int8 variants: linear layers only, the same answers, and none that would answer otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from bundles import make_bundle
from onnx import TensorProto

from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.inference.backends import open_engine
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.inference.verify import verify_bundle
from vljepa_ros.model.export import quantise
from vljepa_ros.model.export.quantise import add_int8

QUERIES = ["what is happening?", "is the cube red?", "what moves?", "where stands the ball?"]
CLIPS = np.random.default_rng(0).integers(0, 256, (4, 4, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with variants."""
    folder = make_bundle(tmp_path_factory.mktemp("bundles") / "int8")
    found = add_int8(folder, CLIPS, QUERIES)
    assert found.keys() == {"x_encoder", "predictor"}
    return folder


def test_a_bundle_of_chunks_without_a_query_gets_them_too(tmp_path: Path):
    folder = make_bundle(tmp_path, chunk=1, query=False)
    assert add_int8(folder, CLIPS, [""] * len(CLIPS)).keys() == {"x_encoder", "predictor"}
    assert verify_bundle(folder) == []
    bundle = load_bundle(folder)
    found, wanted = (
        Runtime(bundle, "onnxruntime-cpu", parts=("x_encoder", "predictor"), precision=precision)
        for precision in ("int8", "fp32")
    )
    cosines = (
        found.predict(found.encode(CLIPS), [""]) * wanted.predict(wanted.encode(CLIPS), [""])
    ).sum(-1)
    assert quantise.COSINE <= cosines.min() < 1 - 1e-7


def test_the_manifest_lists_them_with_their_cosine(bundle: Path):
    assert verify_bundle(bundle) == []
    for name, graph in load_bundle(bundle).graphs.items():
        if name in ("x_encoder", "predictor"):
            variant = graph.variants["int8"]
            assert variant.path.name == f"{name}.int8.onnx"
            assert quantise.COSINE <= variant.cosine <= 1.0001
        else:
            assert graph.variants == {}


@pytest.mark.parametrize("name", ["x_encoder", "predictor"])
def test_only_what_linear_layers_multiply_is_quantised(bundle: Path, name: str):
    model = onnx.load(bundle / f"{name}.int8.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    made = {output: node for node in model.graph.node for output in node.output}
    used = [(node, name) for node in model.graph.node for name in node.input]
    undone = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    weights = [node for node in undone if node.input[0] in stored]
    linear = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm")
              and made.get(node.input[1]) in weights]  # fmt: skip
    assert linear
    for node in undone:
        assert [by.op_type for by, what in used if what == node.output[0]] in (["MatMul"], ["Gemm"])
    for node in linear:
        assert made[node.input[0]].op_type == "DequantizeLinear"
        weight = stored[made[node.input[1]].input[0]]
        assert weight.data_type == TensorProto.INT8
    for node in (*undone, *(n for n in model.graph.node if n.op_type == "QuantizeLinear")):
        zero = onnx.numpy_helper.to_array(stored[node.input[2]])
        assert zero.dtype in (np.int8, np.int32) and not zero.any()  # as TensorRT wants it


def test_a_clip_does_not_depend_on_its_neighbours(bundle: Path):
    graph = load_bundle(bundle).graphs["x_encoder"]
    engine = open_engine(graph, "onnxruntime-cpu", threads=1, precision="int8")
    assert engine.precision == "int8"
    together = engine.run(frames=CLIPS)["visual_tokens"]
    for row, clip in enumerate(CLIPS):
        alone = engine.run(frames=clip[None])["visual_tokens"][0]
        np.testing.assert_allclose(alone, together[row], atol=1e-6)
    base = open_engine(graph, "onnxruntime-cpu", threads=1, precision="fp32")
    difference = np.abs(base.run(frames=CLIPS)["visual_tokens"] - together).max()
    assert 0 < difference < 0.1  # it is another computation, and close


def test_one_that_answers_otherwise_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    folder = make_bundle(tmp_path / "strict")
    monkeypatch.setattr(quantise, "COSINE", 1.01)
    assert add_int8(folder, CLIPS, QUERIES) == {}
    assert not list(folder.glob("*.int8.onnx"))
    assert load_bundle(folder).graphs["x_encoder"].variants == {}
    assert "no int8 x_encoder: an embedding has cosine" in caplog.text


def test_a_graph_that_is_too_large_gets_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    folder = make_bundle(tmp_path / "large")
    monkeypatch.setattr(quantise, "INLINE", 1000)
    assert add_int8(folder, CLIPS, QUERIES) == {}
    assert "no int8 predictor: with its weights in fp32 it is above 1 GB" in caplog.text
    assert not list(folder.glob("*.int8.onnx"))


def test_variants_are_made_again_when_the_bundle_is(bundle: Path, tmp_path: Path):
    folder = make_bundle(tmp_path / "again", seed=0)
    add_int8(folder, CLIPS, QUERIES)
    first = (folder / "x_encoder.int8.onnx").read_bytes()
    add_int8(folder, CLIPS, QUERIES)
    assert (folder / "x_encoder.int8.onnx").read_bytes() == first
    (folder / "x_encoder.int8.onnx").write_bytes(b"cut short")
    assert "x_encoder.int8.onnx does not match its manifest" in verify_bundle(folder)[0]
