"""What every graph of a bundle must be, so that each backend takes it and none loses digits."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto

from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.inference.trt.typed import LARGEST_SCORE
from vljepa_ros.model.export.storage import COMPRESSED

BUNDLE = load_bundle("tabletop")
FORBIDDEN = {"If", "Loop", "Scan", "NonZero", "Compress", "Unique", "NonMaxSuppression"}
NORMS = {"x_encoder": 13, "predictor": 0, "y_encoder": 13, "y_decoder": 9}  # LayerNormalization


@pytest.fixture(scope="module", params=BUNDLE.graphs)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name: str) -> onnx.ModelProto:
    return onnx.load(BUNDLE.graphs[name].path, load_external_data=False)


def test_the_opset_is_one_that_every_backend_reads(model: onnx.ModelProto):
    ((domain, version),) = ((opset.domain, opset.version) for opset in model.opset_import)
    assert domain == "" and 18 <= version <= 20  # TensorRT 10.3 of JetPack 6 ends at 20


def test_no_step_depends_on_the_data(model: onnx.ModelProto):
    assert not {node.op_type for node in model.graph.node} & FORBIDDEN
    assert not model.functions


def test_layer_normalisation_is_one_node(name: str, model: onnx.ModelProto):
    """In pieces it overflows in fp16."""
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("LayerNormalization") == NORMS[name]
    assert name == "predictor" or not {"Sqrt", "ReduceMean", "Pow"} & set(kinds)  # RMSNorm's


def test_frames_go_in_as_bytes_and_all_floats_as_fp32(name: str, model: onnx.ModelProto):
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    if name == "x_encoder":
        assert kinds == {"frames": TensorProto.UINT8}
    assert set(kinds.values()) <= {TensorProto.UINT8, TensorProto.INT64, TensorProto.FLOAT}
    outputs = {value.type.tensor_type.elem_type for value in model.graph.output}
    assert outputs == {TensorProto.FLOAT}


def test_batches_and_queries_are_open_and_their_profile_is_declared(name: str):
    graph = BUNDLE.graphs[name]
    sizes = {s for tensor in graph.inputs.values() for s in tensor.shape if isinstance(s, str)}
    wanted = {"predictor": {"B", "Q", "L"}, "y_decoder": {"B", "S"}}
    assert sizes == wanted.get(name, {"B"})
    assert BUNDLE.manifest["graphs"][name]["profile"].keys() == sizes


def test_weights_are_stored_once_in_half_the_bytes(model: onnx.ModelProto):
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for tensor in model.graph.initializer:
        matrix = tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2
        if matrix and tensor.dims[0] * tensor.dims[1] >= COMPRESSED:
            assert tensor.dims[1] in (1, 32), tensor.name  # scales of rows; rotary tables
    names = [name.removesuffix("_half").removesuffix("_int8") for name in kinds]
    assert len(names) == len(set(names))


def test_the_largest_attention_score_is_noted(model: onnx.ModelProto):
    notes = {entry.key: entry.value for entry in model.metadata_props}
    assert 1 < float(notes[LARGEST_SCORE]) < 1000
