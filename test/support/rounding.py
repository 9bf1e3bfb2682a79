"""What a graph in fp16 or bf16 gives, on a machine that has no such arithmetic.

Every value of the low type is computed in fp32 from rounded inputs and then rounded, as GPU kernels
do, which sum in fp32 and store what they got.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, TensorProto, helper

LOW = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


def kinds_of(model: ModelProto) -> dict[str, int]:
    """The element type of every value of a graph."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    kinds = {value.name: value.type.tensor_type.elem_type for value in values}
    return kinds | {tensor.name: tensor.data_type for tensor in graph.initializer}


def run_rounded(model: ModelProto, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of a typed graph. ONNX Runtime itself would leave some roundings out."""
    kinds = kinds_of(model)
    return _run(model, inputs, {name: kind for name, kind in kinds.items() if kind in LOW.values()})


def run_naive(model: ModelProto, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of an fp32 graph with every float in fp16."""
    outputs = {value.name for value in model.graph.output}
    floats = {name for name, kind in kinds_of(model).items() if kind == TensorProto.FLOAT}
    return _run(model, inputs, dict.fromkeys(floats - outputs, TensorProto.FLOAT16))


def _run(
    model: ModelProto, inputs: dict[str, np.ndarray], low: dict[str, int]
) -> dict[str, np.ndarray]:
    """Run `model` with the values in `low`, of which none is an output, rounded to those types."""
    nodes = []
    for name in (*(tensor.name for tensor in model.graph.initializer), *inputs):
        if name in low:
            nodes += _rounding(name, name, low[name])
    for original in model.graph.node:
        node = onnx.NodeProto()
        node.CopyFrom(original)
        node.input[:] = [f"{name} rounded" if name in low else name for name in node.input]
        node.output[:] = [f"{name} exact" if name in low else name for name in node.output]
        if node.op_type == "Cast" and original.output[0] in low:
            node.attribute[0].i = TensorProto.FLOAT
        nodes.append(node)
        for name in original.output:
            if name in low:
                nodes += _rounding(f"{name} exact", name, low[name])
    changed = ModelProto()
    changed.CopyFrom(model)
    del changed.graph.node[:], changed.graph.value_info[:]
    changed.graph.node.extend(nodes)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        changed.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in model.graph.output]
    return dict(zip(names, session.run(names, inputs), strict=True))


def _rounding(given: str, name: str, kind: int) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Cast", [given], [f"{name} low"], to=kind),
        helper.make_node("Cast", [f"{name} low"], [f"{name} rounded"], to=TensorProto.FLOAT),
    ]
