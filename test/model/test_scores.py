"""The note of the largest attention score."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vljepa_ros.inference.trt.typed import LARGEST_SCORE
from vljepa_ros.model.export.scores import note_scores

RANDOM = np.random.default_rng(0)
KEYS = [RANDOM.normal(size=(8, 5)).astype(np.float32) * size for size in (1, 30)]
X = RANDOM.normal(size=(2, 4, 8)).astype(np.float32)


def attentions(path: Path, softmax: str = "Softmax") -> Path:
    """Two attentions over fixed keys side by side, scaled and masked, and a larger product."""
    nodes = [helper.make_node("MatMul", ["x", "key1"], ["large"])]
    for index in "01":
        nodes += [
            helper.make_node("MatMul", ["x", f"key{index}"], [f"scores{index}"]),
            helper.make_node("Mul", [f"scores{index}", "scale"], [f"scaled{index}"]),
            helper.make_node("Add", [f"scaled{index}", "mask"], [f"masked{index}"]),
            helper.make_node(softmax, [f"masked{index}"], [f"shares{index}"]),
        ]
    nodes.append(helper.make_node("Sum", ["large", "shares0", "shares1"], ["y"]))
    weights = {"key0": KEYS[0], "key1": KEYS[1], "scale": np.float32(0.1),
               "mask": np.array([0, -1e4, 0, 0, 0], np.float32)}  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 4, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", 4, 5])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"precision": "fp32"})
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    return path


def test_the_largest_score_is_noted_before_it_is_scaled(tmp_path: Path):
    path = attentions(tmp_path / "g.onnx")
    before = onnx.load(path, load_external_data=False)
    wanted = max(float(np.abs(X @ key).max()) for key in KEYS)
    assert np.isclose(note_scores(path, {"x": X}), wanted, rtol=1e-5)
    after = onnx.load(path, load_external_data=False)
    notes = {entry.key: entry.value for entry in after.metadata_props}
    assert notes.pop("precision") == "fp32"
    assert np.isclose(float(notes.pop(LARGEST_SCORE)), wanted, rtol=1e-5)
    assert not notes
    assert after.graph == before.graph
    assert sorted(file.name for file in tmp_path.iterdir()) == ["g.onnx", "weights"]


def test_a_graph_without_attention_is_left_alone(tmp_path: Path):
    path = attentions(tmp_path / "g.onnx", softmax="Sigmoid")
    before = path.read_bytes()
    assert note_scores(path, {"x": X}) == 0.0
    assert path.read_bytes() == before
