"""How the weights of a graph are kept in its files.

Invariant: what is stored small is undone when an engine loads, so the graph computes in fp32.
Weights go from file to file a tensor at a time, so graphs beyond protobuf's 2 GB are stored like
small ones.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

TABLES = ("model.embeddings.word_embeddings.weight",)
COMPRESSED = 10_000  # numbers in a tensor from which small storage is worth it
INLINE = 1 << 30  # bytes of weights beyond which they leave the graph's file; protobuf ends at 2 GB
STORAGE = {
    "fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16),
    "fp32": np.dtype(np.float32), "int8": np.dtype(np.int8),
}  # fmt: skip


def store_small(
    path: Path, tables: Collection[str] = (), but: np.ndarray | None = None,
    sizes: Collection[tuple[int, ...]] | None = None, storage: str = "fp16",
) -> None:  # fmt: skip
    """Keep the matrices of a graph as fp16 or bf16, its tables as int8 with a float scale a row.

    `storage` is one of STORAGE; with fp32, matrices and tables stay as they are, with int8 matrices
    are kept as tables are. With `but`, all
    matrices except that one (or its transpose) go to a file of their own, `<graph>.data`: as long
    as they are frozen it stays the same, and a new release of the bundle adds nothing for it to a
    repository. The matrices of a graph with more than INLINE bytes of them go there in any case.
    With `sizes`, the shapes of the weights, nothing else is touched: the exporter also folds rotary
    angles into a matrix, and as fp16 an angle of 1000 is off by half a radian.
    """
    proto = onnx.load(path, load_external_data=False)
    graph, kind = proto.graph, STORAGE[storage]
    large = sum(kind.itemsize * math.prod(t.dims) for t in graph.initializer) > INLINE
    data = path.with_suffix(".data")
    kept: dict[str, list[TensorProto]] = {}
    nodes = []
    with data.open("wb") as file:
        # In the order of the names, so that the data file stays the same whatever the graph.
        for tensor in sorted(graph.initializer, key=lambda t: f"{t.name}_half"):
            weights, name = numpy_helper.to_array(tensor, str(path.parent)), tensor.name
            matrix = weights.dtype == np.float32 and weights.ndim > 1 and weights.size >= COMPRESSED
            if not matrix or (sizes is not None and weights.shape not in sizes):
                kept[name] = [_tensor_of(weights, name)]
                continue
            if kind == np.float32:
                small = _tensor_of(weights, name)
                kept[name] = [small]
            elif name in tables or kind == np.int8:
                scale = np.maximum(np.abs(weights).max(axis=1, keepdims=True), 1e-12) / 127
                small = _tensor_of(np.round(weights / scale).astype(np.int8), f"{name}_int8")
                kept[name] = [small, _tensor_of(scale, f"{name}_scale")]
                nodes += [
                    helper.make_node("Cast", [small.name], [f"{name}_wide"], to=TensorProto.FLOAT),
                    helper.make_node("Mul", [f"{name}_wide", f"{name}_scale"], [name]),
                ]
            else:
                small = _tensor_of(weights.astype(kind), f"{name}_half")
                kept[name] = [small]
                nodes.append(helper.make_node("Cast", [small.name], [name], to=TensorProto.FLOAT))
            if large or (but is not None and not _same(weights, but)):
                move(small, file, data.name)
        moved = file.tell()
    if not moved:
        data.unlink()
    stored = [small for tensor in graph.initializer for small in kept[tensor.name]]
    del graph.initializer[:]
    graph.initializer.extend(stored)
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend(nodes + rest)
    onnx.save(proto, path)


def move(tensor: TensorProto, file: BinaryIO, name: str) -> None:
    """Move a tensor's content to the end of the open file of that name."""
    content, offset = tensor.raw_data, file.tell()
    file.write(content)
    set_external_data(tensor, name, offset, len(content))
    tensor.ClearField("raw_data")


def _same(weights: np.ndarray, other: np.ndarray) -> bool:
    return any(np.array_equal(weights, way) for way in (other, other.T))


def _tensor_of(values: np.ndarray, name: str) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values, order="C"), name)
