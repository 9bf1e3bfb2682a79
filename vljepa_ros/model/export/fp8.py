"""Graphs whose linear layers multiply in fp8, for GPUs that have it, as explicit Q/DQ.

NVIDIA's ModelOpt does the same and cannot be installed beside this package: its ONNX part wants
an older ONNX, and it wants newer setuptools than colcon can work with.

Invariant: Q/DQ stand on the inputs and weights of linear layers and nowhere else, so attention
itself and residual additions stay as exact as the rest of the engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from .scores import largest_values
from .storage import COMPRESSED, INLINE, move

FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
ZERO = "fp8_zero"
OPSET = 19  # the first with fp8, and the last but one that TensorRT 10.3 reads
LARGEST = 448.0  # of E4M3
LEAST_SCALE = 2.0**-14  # the smallest that is exact in fp16, in which engines keep scales


def write_fp8(source: Path, target: Path, samples: Iterable[Mapping[str, np.ndarray]]) -> None:
    """Write the graph `source` with its linear layers in fp8 to `target`, in the same folder.

    `samples` are inputs of the graph, of real clips: they set the scales of what linear layers take
    in, one a tensor; weights have one an output column. The weights go to a file beside `target`,
    ending in `.data`, where there is more than INLINE of them.
    """
    model = onnx.load(source, load_external_data=False)
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    widened = {node.output[0]: node.input[0] for node in graph.node
               if node.op_type == "Cast" and node.input[0] in stored}  # fmt: skip
    layers = {node.output[0] for node in _linear(graph, stored, widened)}
    taken = [node.input[0] for node in graph.node if node.output[0] in layers]
    added = _Added()
    for name, largest in largest_values(source, taken, samples).items():
        added.round_trip(name, largest)
    nodes, done = [], set()
    for node in graph.node:
        if node.output[0] in layers:
            name, weight = node.input[0], node.input[1]
            tensor = stored[widened.get(weight, weight)]
            across = len(tensor.dims) - 1 - _is_transposed(node)
            if weight not in done:
                done.add(weight)
                added.weight(weight, numpy_helper.to_array(tensor, str(source.parent)), across)
            nodes += [*added.before.pop(name, []), *added.before.pop(weight, [])]
            node.input[0], node.input[1] = f"{name}_back", f"{weight}_back"
        nodes.append(node)
    used = {name for node in nodes for name in node.input}
    nodes = [node for node in nodes if node.output[0] in used or node.output[0] not in widened]
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    for part in (graph.node, graph.initializer, graph.value_info):
        del part[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*kept, *added.constants])
    model.opset_import[0].version = OPSET
    notes = {entry.key: entry.value for entry in model.metadata_props}
    helper.set_model_props(model, {**notes, "precision": "fp8"})
    _gather_weights(model, source.parent, target)
    onnx.save(model, target)


class _Added:
    """Constants, and the Q/DQ that come before the first use of a value, by its name."""

    def __init__(self) -> None:
        self.constants = [numpy_helper.from_array(np.zeros((), FP8), ZERO)]
        self.before: dict[str, list[NodeProto]] = {}

    def round_trip(self, name: str, largest: float) -> None:
        """Q and DQ of an activation up to `largest`; the result is `<name>_back`."""
        scale = np.float32(max(largest / LARGEST, LEAST_SCALE))
        self.constants.append(numpy_helper.from_array(scale, f"{name}_scale"))
        parts = (f"{name}_scale", ZERO)
        self.before[name] = [
            helper.make_node("QuantizeLinear", [name, *parts], [f"{name}_fp8"]),
            helper.make_node("DequantizeLinear", [f"{name}_fp8", *parts], [f"{name}_back"]),
        ]

    def weight(self, name: str, values: np.ndarray, across: int) -> None:
        """DQ of a matrix with a scale for each of its rows (`across` 0) or columns (1)."""
        wide = values.astype(np.float32)
        scales = np.maximum(np.abs(wide).max(axis=1 - across) / LARGEST, LEAST_SCALE)
        small = (wide / np.expand_dims(scales, 1 - across)).astype(FP8)
        parts = {"fp8": small, "scales": scales, "zeros": np.zeros(scales.shape, FP8)}
        self.constants += [
            numpy_helper.from_array(part, f"{name}_{key}") for key, part in parts.items()
        ]
        inputs = [f"{name}_{key}" for key in parts]
        node = helper.make_node("DequantizeLinear", inputs, [f"{name}_back"], axis=across)
        self.before[name] = [node]


def _linear(
    graph: onnx.GraphProto, stored: Mapping[str, TensorProto], widened: Mapping[str, str]
) -> Iterator[NodeProto]:
    """The products of something with a weight. A rotary layer's `swap` is a permutation."""
    for node in graph.node:
        if node.op_type in ("Gemm", "MatMul") and node.input[0] not in stored:
            weight = widened.get(node.input[1], node.input[1])
            if weight in stored and not node.input[1].endswith(".swap"):
                yield node


def _is_transposed(node: NodeProto) -> bool:
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


def _gather_weights(model: onnx.ModelProto, folder: Path, target: Path) -> None:
    """Put weights that lie beside the source into the model, or beside the target if too large."""
    data = target.with_suffix(".data")
    tensors = model.graph.initializer
    for tensor in tensors:
        if tensor.external_data:
            values = numpy_helper.to_array(tensor, str(folder))
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    if sum(len(tensor.raw_data) for tensor in tensors) > INLINE:
        with data.open("wb") as file:
            for tensor in tensors:
                if len(tensor.raw_data) >= COMPRESSED:
                    move(tensor, file, data.name)
    else:
        data.unlink(missing_ok=True)
