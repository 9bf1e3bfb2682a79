"""What the export does to a graph that torch gave it; whole bundles are in `test/training`."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import yaml
from bundles import make_bundle
from networks import WIDTH as WIDTH_OF_PATCHES
from networks import scramble, tiny_config
from onnx import TensorProto, helper, numpy_helper

from vljepa_ros.bundle.graphs import GraphSpec, TensorSpec
from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.inference.backends import open_engine
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.inference.verify import verify_bundle
from vljepa_ros.model.export import storage
from vljepa_ros.model.export.bundle import (
    ExportError,
    _compare,
    _name_outputs,
    _spec,
    export_graph,
    export_networks,
    predictor_inputs,
)
from vljepa_ros.model.export.storage import store_small
from vljepa_ros.model.networks import Predictor

WORDS, WIDTH, DIM = 300, 120, 100
RANDOM = np.random.default_rng(0)
TABLE = (RANDOM.normal(size=(WORDS, WIDTH)) * RANDOM.uniform(0.01, 10, (WORDS, 1))).astype("f4")
TABLE[7] = 0
FROZEN = RANDOM.normal(0, WIDTH**-0.5, (WIDTH, WIDTH)).astype("f4")
HEAD = RANDOM.normal(0, WIDTH**-0.5, (WIDTH, DIM)).astype("f4")
BIAS = RANDOM.normal(size=20_000).astype("f4")  # as many numbers as a matrix, but a vector


def make_graph(path: Path, head: np.ndarray = HEAD) -> Path:
    """ids -> row of the table -> two matrices, as a sentence encoder with its head."""
    weights = {"table": TABLE, "frozen": FROZEN, "head": head, "bias": BIAS,
               "small": np.eye(DIM, dtype="f4")[:, :50]}  # fmt: skip
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("MatMul", ["rows", "frozen"], ["hidden"]),
        helper.make_node("Tanh", ["hidden"], ["bent"]),
        helper.make_node("MatMul", ["bent", "head"], ["out"]),
        helper.make_node("Slice", ["bias", "zero", "first_end", "zero"], ["part"]),
        helper.make_node("Add", ["out", "part"], ["sum"]),
        helper.make_node("MatMul", ["sum", "small"], ["embedding"]),
    ]
    weights |= {"zero": np.array([0]), "first_end": np.array([DIM])}
    graph = helper.make_graph(
        nodes, "encoder",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["B"])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["B", 50])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def run(path: Path) -> np.ndarray:
    spec = GraphSpec(
        "encoder", path, "", {"ids": TensorSpec("int64", ("B",))},
        {"embedding": TensorSpec("float32", ("B", 50))},
    )  # fmt: skip
    engine = open_engine(spec, "onnxruntime-cpu", threads=1)
    embedding = engine.run(ids=np.arange(WORDS))["embedding"]
    engine.close()
    return embedding


def initializers(path: Path) -> dict[str, np.ndarray]:
    graph = onnx.load(path).graph
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def test_small_storage_keeps_the_numbers(tmp_path: Path):
    path = make_graph(tmp_path / "encoder.onnx")
    wanted, size = run(path), path.stat().st_size
    store_small(path, ["table"])
    got = run(path)
    norms = np.linalg.norm(got, axis=1) * np.linalg.norm(wanted, axis=1)
    assert ((got * wanted).sum(1) / norms).min() >= 0.999
    assert np.abs(got - wanted).max() < 0.1
    assert path.stat().st_size < 0.6 * size
    assert sorted(tmp_path.iterdir()) == [path]


def test_matrices_become_half_tables_bytes_and_the_rest_stays(tmp_path: Path):
    path = make_graph(tmp_path / "encoder.onnx")
    store_small(path, ["table"])
    kept = initializers(path)
    np.testing.assert_array_equal(kept["frozen_half"], FROZEN.astype(np.float16))
    np.testing.assert_array_equal(kept["head_half"], HEAD.astype(np.float16))
    table = kept["table_int8"] * kept["table_scale"]
    assert kept["table_int8"].dtype == np.int8
    error = np.abs(table - TABLE).max(axis=1)
    assert (error <= np.abs(TABLE).max(axis=1) / 127 * 0.51).all()  # half a step of each row's own
    assert not table[7].any()
    np.testing.assert_array_equal(kept["bias"], BIAS)
    assert kept["bias"].dtype == kept["small"].dtype == np.float32
    assert kept["first_end"].dtype == np.int64
    assert not {"table", "frozen", "head"} & set(kept)


@pytest.mark.parametrize("turned", [False, True], ids=["as it is", "transposed"])
def test_frozen_weights_go_to_a_file_that_a_new_head_does_not_change(tmp_path: Path, turned: bool):
    contents, embeddings = [], []
    for name, head in (("a", HEAD), ("b", -2 * HEAD)):
        (tmp_path / name).mkdir()
        path = make_graph(tmp_path / name / "encoder.onnx", head)
        store_small(path, ["table"], but=head.T if turned else head)
        contents.append((path.with_suffix(".data").read_bytes(), path.read_bytes()))
        embeddings.append(run(path))
    assert contents[0][0] == contents[1][0]
    assert contents[0][1] != contents[1][1]
    assert len(contents[0][0]) == TABLE.size + 2 * FROZEN.size  # int8 and fp16, and no head
    assert np.abs(embeddings[0] - embeddings[1]).max() > 0.1
    (tmp_path / "plain").mkdir()
    plain = make_graph(tmp_path / "plain" / "encoder.onnx")
    store_small(plain, ["table"])
    np.testing.assert_array_equal(run(plain), embeddings[0])


def test_outputs_get_their_names_and_what_bore_them_another():
    nodes = [
        helper.make_node("Neg", ["x"], ["embedding"]),  # an inner value bears the output's name
        helper.make_node("Abs", ["embedding"], ["abs_1"]),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [info("x", TensorProto.FLOAT, [2])], [info("abs_1", TensorProto.FLOAT, [2])],
        value_info=[info("embedding", TensorProto.FLOAT, [2])],
    )  # fmt: skip
    _name_outputs(graph, ["embedding"])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    assert [o.name for o in graph.output] == ["embedding"]
    assert [(list(n.input), list(n.output)) for n in graph.node] == [
        (["x"], ["embedding_inner"]), (["embedding_inner"], ["embedding"]),
    ]  # fmt: skip


class TwoOutputs(torch.nn.Module):
    """Stands for a Y-decoder: of its outputs only the second can be wrong."""

    def forward(self, embedding, ids, past):
        return embedding + ids, past * self.scale

    scale = torch.tensor([1.0, 1.0, 1.0])


def test_every_output_is_compared_with_torch(tmp_path: Path):
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Cast", ["ids"], ["wide"], to=TensorProto.FLOAT),
         helper.make_node("Add", ["embedding", "wide"], ["logits"]),
         helper.make_node("Identity", ["past"], ["present"])], "g",
        [info("embedding", TensorProto.FLOAT, [2, 3]), info("ids", TensorProto.INT64, [2, 1]),
         info("past", TensorProto.FLOAT, [2, 3])],
        [info("logits", TensorProto.FLOAT, [2, 3]), info("present", TensorProto.FLOAT, [2, 3])],
    )  # fmt: skip
    path = tmp_path / "y_decoder.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    generator = torch.Generator().manual_seed(0)
    inputs = {"embedding": torch.randn(2, 3, generator=generator), "ids": torch.ones(2, 1).long(),
              "past": torch.randn(2, 3, generator=generator)}  # fmt: skip
    spec, network = _spec("y_decoder", path), TwoOutputs()
    assert _compare(network, inputs, spec) == {"cosine": 1.0, "largest_difference": 0.0}
    network.scale = torch.tensor([1.0, 1.0, -1.0])
    with pytest.raises(ExportError, match="other numbers than torch: 'present'"):
        _compare(network, inputs, spec)


def test_a_large_graph_keeps_its_numbers_in_a_file_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("inline", "beside"):
        (tmp_path / name).mkdir()
    inline, beside = (make_graph(tmp_path / n / "encoder.onnx") for n in ("inline", "beside"))
    onnx.save(onnx.load(beside), beside, save_as_external_data=True, location="raw")  # as exported
    store_small(inline, ["table"])
    monkeypatch.setattr(storage, "INLINE", 1)
    store_small(beside, ["table"])
    (beside.parent / "raw").unlink()
    np.testing.assert_array_equal(run(beside), run(inline))
    assert beside.with_suffix(".data").stat().st_size == TABLE.size + 2 * (FROZEN.size + HEAD.size)
    assert beside.stat().st_size < 0.3 * inline.stat().st_size + 4 * BIAS.size


class Pictures(torch.nn.Module):
    """uint8 `[B, 1, S, S, 3]` to one token `[B, 1, C]`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Linear(3, 8)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.weight((frames.float() / 255).mean((2, 3)))


class Newer(torch.nn.Module):
    """The tokens' mean, in which newer ones weigh more: no query."""

    def forward(self, visual_tokens: torch.Tensor) -> torch.Tensor:
        weights = torch.arange(1.0, visual_tokens.shape[1] + 1)[None, :, None]
        return torch.nn.functional.normalize((visual_tokens * weights).sum(1, keepdim=True), dim=-1)


class Words(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows = torch.nn.Embedding(50, 8)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize((self.rows(ids) * mask[..., None]).sum(1), dim=-1)


def test_networks_of_single_pictures_without_a_query_make_a_bundle(tmp_path: Path):
    """As public two-tower models are: no network of this package's in it."""
    other = make_bundle(tmp_path / "other")
    manifest = yaml.safe_load((other / "bundle.yaml").read_text())
    for section in ("query", "decoder", "graphs", "files", "tolerance"):
        del manifest[section]
    manifest |= {"embedding_dim": 8, "evaluation": {}}
    manifest["clip"] |= {"tubelet": 1, "chunk": 1, "frames": 6}
    clips = RANDOM.integers(0, 256, (3, 6, 32, 32, 3), np.uint8)
    texts = RANDOM.integers(4, 40, (3, 16)), np.ones((3, 16), np.int64)
    networks = {"x_encoder": Pictures(), "predictor": Newer(), "y_encoder": Words()}
    networks = {name: network.eval() for name, network in networks.items()}
    folder = export_networks(
        networks, tmp_path / "made", manifest,
        {"y_tokenizer.json": other / "y_tokenizer.json"}, clips, texts, query={},
    )  # fmt: skip
    assert verify_bundle(folder) == []
    bundle = load_bundle(folder)
    assert (bundle.query, bundle.clip.chunks) == (None, 6)
    assert bundle.graphs["predictor"].profile == {"B": (1, 1, 8)}
    model = Runtime(bundle, "onnxruntime-cpu")
    with torch.no_grad():
        tokens = networks["x_encoder"](torch.from_numpy(clips.reshape(18, 1, 32, 32, 3)))
        wanted = networks["predictor"](tokens.reshape(3, 6, 8))
    found = model.predict(model.encode(clips), [""])
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-3)


def test_what_is_no_weight_is_not_rounded(tmp_path: Path):
    """Rotary angles, which the exporter folds into a matrix, lose half a radian as fp16."""
    path = make_graph(tmp_path / "encoder.onnx")
    store_small(path, sizes=[TABLE.shape, HEAD.shape])
    kept = initializers(path)
    assert {"table_half", "head_half"} <= set(kept)
    np.testing.assert_array_equal(kept["frozen"], FROZEN)


def test_rotary_angles_stay_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(storage, "COMPRESSED", 1000)  # as small as these matrices are
    config = tiny_config(visual_merge=1, query_length=200)
    predictor = scramble(Predictor(config), seed=1)
    visual = torch.randn(2, config.visual_tokens, WIDTH_OF_PATCHES)
    export_graph("predictor", predictor, predictor_inputs(config, visual), tmp_path)
    kept = initializers(tmp_path / "predictor.onnx").values()
    large = [value for value in kept if value.ndim > 1 and value.size >= 1000]
    assert sum(value.dtype == np.float16 for value in large) >= 9  # the weights
    angles = np.arange(config.visual_tokens + 200)[:, None] * 10000.0 ** (-np.arange(4) / 4)
    tables = [value for value in large if value.dtype == np.float32]
    assert tables
    for table in tables:  # with the root of the softmax's scale for a head of 8
        wanted = np.cos(angles) if table[0, 0] > 0 else np.sin(angles)
        np.testing.assert_allclose(table * 8**0.25, np.tile(wanted, 2), atol=2e-5)  # fp16: 2e-4
