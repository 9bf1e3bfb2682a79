"""How weights are kept: in which type, in which file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from vljepa_ros.model.export import storage
from vljepa_ros.model.export.storage import store_small

TABLE, MATRIX = (np.random.default_rng(i).normal(size=(120, 100)).astype("f4") for i in (0, 1))
KINDS = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
INPUTS = {"ids": np.arange(120)}


def encoder(path: Path) -> Path:
    """ids -> row of a table -> matrix."""
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["rows"]),
         helper.make_node("Gemm", ["rows", "matrix"], ["embedding"], transB=1)], "encoder",
        [info("ids", TensorProto.INT64, ["B"])],
        [info("embedding", TensorProto.FLOAT, ["B", 120])],
        [numpy_helper.from_array(TABLE, "table"), numpy_helper.from_array(MATRIX, "matrix")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    return path


def run(path: Path) -> np.ndarray:
    return onnxruntime.InferenceSession(path).run(None, INPUTS)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_matrix_is_kept_in_the_precision_asked_for(tmp_path: Path, kind: str):
    path = encoder(tmp_path / "encoder.onnx")
    wanted = run(path)
    store_small(path, storage=kind)
    tensors = onnx.load(path).graph.initializer
    assert [tensor.data_type for tensor in tensors] == [KINDS[kind]] * 2
    assert sum(len(tensor.raw_data) for tensor in tensors) == 2 * 12_000 * BYTES[kind]
    digits = {"fp32": 0, "fp16": 2**-11, "bf16": 2**-8}[kind]
    size = np.abs(TABLE) @ np.abs(MATRIX).T
    assert (np.abs(run(path) - wanted) <= 2.1 * digits * size + 1e-4).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_is_kept_in_bytes_where_small_storage_is_asked_for(tmp_path: Path, kind: str):
    path = encoder(tmp_path / "encoder.onnx")
    store_small(path, ["table"], storage=kind)
    kinds = {tensor.name: tensor.data_type for tensor in onnx.load(path).graph.initializer}
    if kind == "fp32":
        assert kinds == {"table": TensorProto.FLOAT, "matrix": TensorProto.FLOAT}
    else:
        assert kinds["table_int8"] == TensorProto.INT8 and kinds["matrix_half"] == KINDS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_too_large_for_one_file_is_judged_by_the_bytes_that_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    monkeypatch.setattr(storage, "INLINE", 3 * 2 * 12_000)  # between 2 and 4 bytes a number
    path = encoder(tmp_path / "encoder.onnx")
    wanted = run(path)
    store_small(path, storage=kind)
    assert path.with_suffix(".data").exists() == (kind == "fp32")
    np.testing.assert_allclose(run(path), wanted, atol=0.3)
