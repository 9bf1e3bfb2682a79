"""How large a graph's attention scores get, which decides how fast they may be computed in fp16.

Invariant: a graph that has the note was run on the inputs, and nothing else in it was changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from vljepa_ros.runtime.typed import LARGEST_SCORE, score_products


def note_scores(path: Path, inputs: Mapping[str, np.ndarray]) -> float:
    """Run the ONNX graph `path` on `inputs`, note its largest attention score in it, return that.

    A score is a product of a query and a key, as the graph computes it, without its sign. Weights
    in files beside the graph stay there. 0.0, and no note, where the graph has no attention.
    """
    model = onnx.load(path, load_external_data=False)
    products = score_products(model.graph)
    if not products:
        return 0.0
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    for name in products:
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
        largest = float(max(session.run(None, dict(inputs))))
    finally:
        file.unlink(missing_ok=True)
    notes = {entry.key: entry.value for entry in model.metadata_props}
    helper.set_model_props(model, {**notes, LARGEST_SCORE: f"{largest:.6g}"})
    onnx.save(model, path)
    return largest
