"""Graphs in fp16 and bf16: which value has which type, and what that costs in accuracy."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from networks import WIDTH, scramble, tiny_config
from onnx import ModelProto, TensorProto, helper, numpy_helper
from rounding import LOW, kinds_of, run_naive, run_rounded
from torch import nn

from vljepa_ros.bundle.graphs import GraphSpec
from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.errors import BuildError
from vljepa_ros.inference.backends import open_engine
from vljepa_ros.inference.trt.typed import LARGEST_SCORE, score_products, typed_graph
from vljepa_ros.model.export import storage
from vljepa_ros.model.export.bundle import export_graph, predictor_inputs
from vljepa_ros.model.export.storage import store_small
from vljepa_ros.model.networks import Predictor, XEncoder

GRAPHS = ("x_encoder", "predictor", "y_encoder", "y_decoder")
TABLETOP = load_bundle("tabletop")
INTEGERS = {"query_ids": 700, "query_mask": 2, "ids": 700, "mask": 2, "frames": 256}  # below that
# Least cosine to fp32; fp16 has 11 significant bits, bf16 has 8.
CLOSE = {"fp16": 0.99999, "bf16": 0.9995}


def inputs_of(graph: GraphSpec, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Random inputs; texts of every length, and embeddings of unit length."""
    random, inputs = np.random.default_rng(0), {}
    for name, spec in graph.inputs.items():
        shape = [sizes[size] if isinstance(size, str) else size for size in spec.shape]
        if name in INTEGERS:
            inputs[name] = random.integers(1, INTEGERS[name], shape).astype(spec.dtype)
        else:
            inputs[name] = random.normal(size=shape).astype(spec.dtype)
        if name in ("mask", "query_mask"):
            inputs[name][0, shape[1] // 3 :] = 0
        if name == "embedding":
            inputs[name] /= np.linalg.norm(inputs[name], axis=1, keepdims=True)
    return inputs


def typed(path: Path, precision: str) -> ModelProto:
    model = onnx.load_from_string(typed_graph(path, precision))
    onnx.load_external_data_for_model(model, str(path.resolve().parent))
    return model


def exact(graph: GraphSpec, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    engine = open_engine(graph, "onnxruntime-cpu", precision="fp32")
    outputs = engine.run(**inputs)
    engine.close()
    return outputs


def cosine(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """The least over all outputs and the vectors in them; NaN if anything is."""
    least = []
    for name in one:
        a, b = (rows[name].reshape(-1, rows[name].shape[-1]).astype(float) for rows in (one, other))
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        least.append(((a * b).sum(1) / norms).min())
    return float(min(least)) if np.isfinite(least).all() else float("nan")


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("name", GRAPHS)
def test_the_shipped_bundle_keeps_its_answers(name: str, precision: str):
    graph = TABLETOP.graphs[name]
    inputs = inputs_of(graph, {"B": 2, "Q": 3, "L": 9, "S": 5})
    given = run_rounded(typed(graph.path, precision), inputs)
    assert cosine(exact(graph, inputs), given) >= CLOSE[precision]


@pytest.mark.parametrize("precision", ["fp32", *LOW])
@pytest.mark.parametrize("name", GRAPHS)
def test_a_typed_graph_is_valid_with_the_same_inputs_and_outputs(name: str, precision: str):
    path = TABLETOP.graphs[name].path
    model, base = typed(path, precision), onnx.load(path, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    for side in ("input", "output"):
        assert getattr(model.graph, side)[:] == getattr(base.graph, side)[:]
    assert typed_graph(path, precision) == typed_graph(path, precision)


def noted(folder: Path, path: Path, largest: float | None) -> Path:
    """The graph with another note of its largest attention score, beside the same weights."""
    model = onnx.load(path, load_external_data=False)
    helper.set_model_props(model, {} if largest is None else {LARGEST_SCORE: str(largest)})
    onnx.save(model, folder / path.name)
    data = path.with_suffix(".data").resolve()
    if data.exists():
        (folder / data.name).symlink_to(data)
    return folder / path.name


@pytest.mark.parametrize("largest", [None, 20.0, 2000.0])
@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("name", GRAPHS)
def test_every_value_has_the_type_that_it_needs(
    tmp_path: Path, name: str, precision: str, largest: float | None
):
    path = noted(tmp_path, TABLETOP.graphs[name].path, largest)
    model = onnx.load_from_string(typed_graph(path, precision))
    kinds, low, wide = kinds_of(model), LOW[precision], TensorProto.FLOAT
    makers = {made: node for node in model.graph.node for made in node.output}
    products = set(score_products(model.graph))
    of_type: dict[tuple[str, int], list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        of_type.setdefault((node.op_type, kinds[node.output[0]]), []).append(node)
        if node.op_type in ("MatMul", "Gemm"):
            stays = node.output[0] in products and (largest is None or largest > 1000)
            assert kinds[node.output[0]] == (wide if stays else low)
            if stays:  # tensor cores take what was rounded, and give their fp32 sums
                assert [kinds[makers[i].input[0]] for i in node.input] == [low, low]
    assert len(products) == len(of_type["Softmax", wide]) > 0
    in_low = {"LayerNormalization", "Erf", "Sigmoid", "Gelu"}
    in_fp32 = {"Softmax", "Pow", "ReduceMean", "ReduceSum", "ReduceL2", "Sqrt", "Reciprocal"}
    assert not [op for op, kind in of_type if op in in_low and kind != low]
    assert not [op for op, kind in of_type if op in in_fp32 and kind != wide]
    assert not {op for op, _ in of_type} & {"IsNaN", "If", "Loop", "NonZero"}
    tables = [t.dims for t in model.graph.initializer if t.data_type == wide and len(t.dims) > 1]
    tables = [dims for dims in tables if np.prod(dims) > dims[-1]]
    assert bool(tables) == (name in ("x_encoder", "predictor"))  # rotary ones, and no weight
    assert {dims[-1] for dims in tables} <= {32}  # a head's width


def exported(
    folder: Path, name: str, network: nn.Module, inputs: dict[str, torch.Tensor]
) -> tuple[GraphSpec, dict[str, np.ndarray]]:
    spec, _ = export_graph(name, network, inputs, folder)
    return spec, {key: value.numpy() for key, value in inputs.items()}


def large_x_encoder(folder: Path) -> tuple[GraphSpec, dict[str, np.ndarray]]:
    """A residual channel of 3,000, and attention scores beyond fp16."""
    network = scramble(XEncoder(tiny_config()))
    with torch.no_grad():
        network.encoder.embeddings.patch_embeddings.proj.bias[0] += 3000
        network.encoder.layernorm.weight[0] = network.encoder.layernorm.bias[0] = 0
        for layer in network.encoder.layer:
            for part in (layer.attention.query, layer.attention.key):
                part.weight *= 600
                part.bias *= 600
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 32, 32, 3), np.uint8)
    return exported(folder, "x_encoder", network, {"frames": torch.from_numpy(frames)})


def large_predictor(folder: Path) -> tuple[GraphSpec, dict[str, np.ndarray]]:
    """Residuals whose squares are beyond fp16, and scores of some hundreds."""
    config = tiny_config()
    network = scramble(Predictor(config))
    with torch.no_grad():
        network.vis_proj.weight *= 3000
        network.embed_tokens.weight *= 3000
        for layer in network.layers:
            for part in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                part.weight *= 5
    visual = torch.randn(2, config.visual_tokens, WIDTH, generator=torch.Generator().manual_seed(0))
    return exported(folder, "predictor", network, predictor_inputs(config, visual))


@pytest.mark.parametrize("make", [large_x_encoder, large_predictor])
def test_large_values_survive_where_fp16_alone_fails(tmp_path: Path, make: Callable):
    torch.manual_seed(0)
    graph, inputs = make(tmp_path)
    wanted = exact(graph, inputs)
    for precision in LOW:
        given = run_rounded(typed(graph.path, precision), inputs)
        assert cosine(wanted, given) >= CLOSE[precision]
    assert not cosine(wanted, run_naive(onnx.load(graph.path), inputs)) >= 0.9


def encoder(path: Path, bits: int) -> Path:
    """ids -> row of a table -> matrix; the values need no more than `bits` significant bits."""
    random = np.random.default_rng(0)
    table, matrix = (
        random.integers(-(2**bits), 2**bits, (120, 100)).astype(np.float32) / 2**bits
        for _ in range(2)
    )
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["rows"]),
         helper.make_node("Transpose", ["matrix"], ["turned"], perm=[1, 0]),
         helper.make_node("MatMul", ["rows", "turned"], ["embedding"])], "encoder",
        [info("ids", TensorProto.INT64, ["B"])],
        [info("embedding", TensorProto.FLOAT, ["B", 120])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(matrix, "matrix")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("precision", ["fp32", *LOW])
@pytest.mark.parametrize("linked", [False, True], ids=["files", "links"])
def test_weights_in_a_file_stay_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, linked: bool
):
    """Links are what the Hub's cache and `colcon build --symlink-install` make of a bundle."""
    monkeypatch.setattr(storage, "INLINE", 1)
    path = encoder(tmp_path / "encoder.onnx", 7)
    inputs = {"ids": np.arange(120)}
    store_small(path, ["table"])
    wanted = onnxruntime.InferenceSession(path).run(None, inputs)[0]
    real = path.with_suffix(".data")
    if linked:
        (tmp_path / "links").mkdir()
        for file in (path, real):
            (tmp_path / "links" / file.name).symlink_to(file)
        path = tmp_path / "links" / path.name
    data = typed_graph(path, precision)
    proto = onnx.load_from_string(data)
    (matrix,) = (tensor for tensor in proto.graph.initializer if tensor.external_data)
    assert matrix.data_type == TensorProto.FLOAT16
    assert {entry.key: entry.value for entry in matrix.external_data}["location"] == real.name
    onnx.load_external_data_for_model(proto, str(tmp_path))
    given = run_rounded(proto, inputs)["embedding"]
    np.testing.assert_allclose(given, wanted, atol=0.01 * np.abs(wanted).max())


def test_what_fits_the_low_precision_is_not_changed(tmp_path: Path):
    """Seven bits fit fp16 and bf16, so a wrong rounding of constants would show."""
    path = encoder(tmp_path / "encoder.onnx", 7)
    inputs = {"ids": np.arange(120)}
    wanted = onnxruntime.InferenceSession(path).run(None, inputs)[0]
    for precision, kind in LOW.items():
        model = typed(path, precision)
        assert kind in {tensor.data_type for tensor in model.graph.initializer}
        given = run_rounded(model, inputs)["embedding"]
        np.testing.assert_allclose(given, wanted, rtol=2.0**-8 if precision == "bf16" else 2.0**-11)


def test_what_cannot_be_typed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = encoder(tmp_path / "encoder.onnx", 7)
    with pytest.raises(BuildError, match="typed as 'int4'; use one of fp32, fp16, bf16"):
        typed_graph(path, "int4")
    with pytest.raises(BuildError, match=r"missing\.onnx cannot be read as ONNX"):
        typed_graph(tmp_path / "missing.onnx", "fp16")
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(BuildError, match=r"encoder\.onnx cannot be read as ONNX"):
        typed_graph(path, "fp16")
    sides = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])] for name in "xz"]
    nodes = [
        helper.make_node("Riddle", ["x"], ["y"], domain="else.where"),
        helper.make_node("Neg", ["y"], ["z"]),
    ]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("else.where", 1)]
    graph = helper.make_graph(nodes, "g", *sides)
    onnx.save(helper.make_model(graph, opset_imports=opsets), path)
    with pytest.raises(BuildError, match="type of 'y', which Riddle gives, is unknown"):
        typed_graph(path, "fp16")
    onnx.save(helper.make_model(graph, opset_imports=opsets[:1]), path)
    with pytest.raises(BuildError, match=r"encoder\.onnx cannot be typed: .*else\.where"):
        typed_graph(path, "fp16")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(BuildError, match=r"without the package 'onnx'.*pip install onnx"):
        typed_graph(path, "fp16")
