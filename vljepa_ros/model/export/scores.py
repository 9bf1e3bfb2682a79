"""How large the values of a graph get on real inputs: its attention scores, or any others.

Invariant: a graph that has the note of its largest score was run on the inputs, and nothing else in
it was changed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from vljepa_ros.inference.trt.typed import LARGEST_SCORE, score_products


def note_scores(path: Path, inputs: Mapping[str, np.ndarray]) -> float:
    """Run the ONNX graph `path` on `inputs`, note its largest attention score in it, return that.

    A score is a product of a query and a key, as the graph computes it, without its sign: it
    decides how fast attention may be computed in fp16. Weights in files beside the graph stay
    there. 0.0, and no note, where the graph has no attention.
    """
    model = onnx.load(path, load_external_data=False)
    products = score_products(model.graph)
    if not products:
        return 0.0
    largest = max(largest_values(path, products, [inputs]).values())
    notes = {entry.key: entry.value for entry in model.metadata_props}
    helper.set_model_props(model, {**notes, LARGEST_SCORE: f"{largest:.6g}"})
    onnx.save(model, path)
    return largest


def largest_values(
    path: Path, names: Collection[str], samples: Iterable[Mapping[str, np.ndarray]]
) -> dict[str, float]:
    """The largest magnitude of each of the named fp32 values of the ONNX graph `path`."""
    probe = onnx.load(path, load_external_data=False)
    del probe.graph.output[:]
    for name in dict.fromkeys(names):
        probe.graph.node.append(helper.make_node("Abs", [name], [f"{name} size"]))
        probe.graph.node.append(
            helper.make_node("ReduceMax", [f"{name} size"], [f"{name} most"], keepdims=0)
        )
        probe.graph.output.append(
            helper.make_tensor_value_info(f"{name} most", TensorProto.FLOAT, [])
        )
    file = path.with_suffix(".probe.onnx")  # in the folder of the weights
    try:
        onnx.save(probe, file)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"]
        )
        found = np.max([session.run(None, dict(sample)) for sample in samples], axis=0)
    finally:
        file.unlink(missing_ok=True)
    return dict(zip(dict.fromkeys(names), map(float, found), strict=True))
