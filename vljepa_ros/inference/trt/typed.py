"""A bundle's graph in fp16 or bf16, for engines that take their types from the graph.

The graphs of a bundle compute in fp32. Here every value gets a type of its own. In the low
precision: matrix products, LayerNormalization (one node: its kernels sum in fp32), activations and
residual additions. In fp32: pixels until they meet a weight, the attention's softmax with all that
is done to the scores, rotary tables with the angles that they are made of, RMSNorm until its weight
(squares overflow fp16), and norms and means over tokens.

The scores themselves, the product of queries and keys, are rounded once where the largest that was
seen at export allows it (`model/scores.py` notes it in the graph): only then does TensorRT run an
attention as one kernel, which in TensorRT for RTX 1.7 keeps them in fp32 all the same. Larger ones,
or ones that nobody measured, stay fp32.

Invariant: inputs and outputs keep names, shapes and types, weights keep the place and the bytes
that they are stored in, and no value is wider than what it was computed from, save where fp32 is
named above.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from vljepa_ros.errors import BuildError

TYPED = ("fp32", "fp16", "bf16")
QDQ_OPSET = 19  # from here on Q/DQ may have scales in fp16
LARGEST_SCORE = "largest_score"  # the graph's property that says it
LARGEST = {"fp16": 1024.0, "bf16": 128.0}  # up to there a score is rounded by at most 0.25
FP16_MOST = 65504.0
LIGHT = 1024  # bytes of a constant that may decide on shapes

# Results that need fp32's range or digits, whatever goes in.
WIDE = frozenset((
    "Softmax", "Pow", "Sqrt", "Reciprocal", "Exp", "Log", "Cos", "Sin", "Range", "CumSum",
    "ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2",
))  # fmt: skip
# Results that are worth the low precision, whatever goes in; of DequantizeLinear: its scale's.
NARROW = frozenset(("MatMul", "Gemm", "Conv", "Gelu", "DequantizeLinear"))
# Between the attention's first product and its softmax, or between positions and an angle.
PASSING = frozenset((
    "Mul", "Add", "Sub", "Div", "Neg", "Where", "Cast", "Clip", "Max", "Min", "Reshape",
    "Transpose", "Squeeze", "Unsqueeze", "Expand", "Identity",
))  # fmt: skip


def score_products(graph: Any) -> list[str]:
    """The outputs of the matrix products whose results go to a softmax."""
    makers = {name: node for node in graph.node for name in node.output}
    products: list[str] = []
    for node in graph.node:
        if node.op_type == "Softmax":
            before = _before(node, makers)
            products += [name for name in before if makers[name].op_type == "MatMul"]
    return products


def typed_graph(source: Path, precision: str) -> bytes:
    """The ONNX graph `source` with its types as strongly typed engines of `precision` need them.

    `precision`: fp32, fp16 or bf16. Weights in files beside `source` stay there: give a parser of
    the result `source` as the model's path. Needs the package `onnx`. Raises BuildError where it
    is missing, or where the graph cannot be read or typed.
    """
    if precision not in TYPED:
        raise BuildError(f"No graph can be typed as '{precision}'; use one of {', '.join(TYPED)}.")
    onnx = _onnx()
    try:
        model = onnx.load(source, load_external_data=False)
    except Exception as error:  # protobuf's and the file system's
        raise BuildError(f"{source} cannot be read as ONNX: {error}.") from error
    _undo_tables(onnx, model.graph, source)
    _undo_biases(onnx, model.graph, source)
    _drop_nan_guards(model.graph)
    _widen_bytes(onnx, model.graph)
    if precision != "fp32":
        low = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.BFLOAT16
        _Typing(onnx, model, source, low, LARGEST[precision]).rewrite()
    onnx.helper.set_model_props(model, {"precision": precision})
    return bytes(model.SerializeToString())


def _onnx() -> Any:
    try:
        import onnx
        import onnx.helper
        import onnx.numpy_helper
        import onnx.shape_inference
    except ImportError as error:
        raise BuildError(
            f"Engines cannot be built without the package 'onnx' ({error}): pip install onnx."
        ) from error
    return onnx


def _users(graph: Any) -> dict[str, list[Any]]:
    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    return users


def _before(end: Any, makers: dict[str, Any]) -> set[str]:
    """What is computed for the node `end`, back to matrix products and to what is not PASSING."""
    waiting, found = list(end.input), set()
    while waiting:
        name = waiting.pop()
        maker = makers.get(name)
        if maker is None or name in found:
            continue
        if maker.op_type == "MatMul" or maker.op_type in PASSING:
            found.add(name)
        if maker.op_type in PASSING:
            waiting += maker.input
    return found


def _undo_tables(onnx: Any, graph: Any, source: Path) -> None:
    """Make embedding tables that are stored as int8 with a scale a row fp16 again.

    TensorRT takes int8 constants for the weights of a matrix product only.
    """
    users = _users(graph)
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for name, table in list(stored.items()):
        first = users.get(name, [])
        if table.data_type != onnx.TensorProto.INT8 or [n.op_type for n in first] != ["Cast"]:
            continue
        (product,) = users[first[0].output[0]]
        scale = next(stored[other] for other in product.input if other in stored)
        values = _values(onnx, table, source) * _values(onnx, scale, source)
        half = onnx.numpy_helper.from_array(values.astype(np.float16), f"{product.output[0]}_half")
        graph.initializer.append(half)
        graph.initializer.remove(table)
        wide = onnx.helper.make_node(
            "Cast", [half.name], list(product.output), to=onnx.TensorProto.FLOAT
        )
        graph.node.insert(0, wide)
        for node in (first[0], product):
            graph.node.remove(node)


def _undo_biases(onnx: Any, graph: Any, source: Path) -> None:
    """Make biases fp32 again that are stored as int32 with a scale, for ONNX Runtime's kernels."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "DequantizeLinear"]:
        bias = stored.get(node.input[0])
        if bias is not None and bias.data_type == onnx.TensorProto.INT32:
            scale = _values(onnx, stored[node.input[1]], source)
            values = (_values(onnx, bias, source) * scale).astype(np.float32)
            graph.initializer.append(onnx.numpy_helper.from_array(values, node.output[0]))
            graph.node.remove(node)


def _widen_bytes(onnx: Any, graph: Any) -> None:
    """Cast inputs of bytes to fp32 at once: TensorRT does nothing else with them.

    The casts that come later, once the bytes were put in their places, then do nothing.
    """
    for value in graph.input:
        if value.type.tensor_type.elem_type != onnx.TensorProto.UINT8:
            continue
        for node in graph.node:
            node.input[:] = [f"{value.name}_wide" if i == value.name else i for i in node.input]
        wide = onnx.TensorProto.FLOAT
        cast = onnx.helper.make_node("Cast", [value.name], [f"{value.name}_wide"], to=wide)
        graph.node.insert(0, cast)
        del graph.value_info[:]  # some of it is not of bytes now


def _drop_nan_guards(graph: Any) -> None:
    """Take out what torch's fused attention exports behind a softmax: where it is NaN, 0.

    It is NaN in rows of nothing but -inf, and the masks here are finite. TensorRT 1.7 for RTX
    fails to build an attention with it.
    """
    makers: dict[str, Any] = {name: node for node in graph.node for name in node.output}
    for guard in [node for node in graph.node if node.op_type == "Where"]:
        pair = [makers[name] for name in (guard.input[0], guard.input[2]) if name in makers]
        if [node.op_type for node in pair] != ["IsNaN", "Softmax"]:
            continue
        asks, softmax = pair
        if list(asks.input) == list(softmax.output):
            softmax.output[0] = guard.output[0]
            graph.node.remove(guard)
            graph.node.remove(asks)


def _values(onnx: Any, tensor: Any, source: Path) -> np.ndarray:
    """A constant's values. The package `onnx` reads no file that is a link, as the Hub's are."""
    where = {entry.key: entry.value for entry in tensor.external_data}
    if not where:
        return np.asarray(onnx.numpy_helper.to_array(tensor))
    values = np.fromfile(
        source.parent / where["location"], onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type),
        math.prod(tensor.dims), offset=int(where.get("offset", 0)),
    )  # fmt: skip
    return np.asarray(values.reshape(tensor.dims))


class _Typing:
    """One walk over a graph, in its order, that gives every float value its type.

    A value that is known when the engine is built, a constant, takes the type of whoever uses it.
    """

    def __init__(self, onnx: Any, model: Any, source: Path, low: int, largest: float) -> None:
        self.onnx, self.model, self.graph, self.source = onnx, model, model.graph, source
        self.low = low
        self.wide: int = onnx.TensorProto.FLOAT
        self.stored = {tensor.name: tensor for tensor in self.graph.initializer}
        self.floats = self._float_names()
        self.outputs = [value.name for value in self.graph.output if value.name in self.floats]
        self._rename_inside({name: f"{name}_typed" for name in self.outputs})
        properties = {entry.key: entry.value for entry in model.metadata_props}
        small = float(properties.get(LARGEST_SCORE, "inf")) <= largest
        self.kept_wide = self._kept_wide(score_products(self.graph) if small else [])
        self.types = {name: tensor.data_type for name, tensor in self.stored.items()}
        self.types |= {value.name: self.wide for value in self.graph.input}
        self.constant = set(self.stored)
        self.origin: dict[str, str] = {}  # of a widened weight: what is stored
        self.made: dict[tuple[str, int], str] = {}
        self.nodes: list[Any] = []

    def rewrite(self) -> None:
        for node in self.graph.node:
            if not self._is_widening(node):
                self._rewrite_node(node)
        for name in self.outputs:
            self.nodes.append(self._cast(self._as(f"{name}_typed", self.wide), name, self.wide))
        used = {name for node in self.nodes for name in node.input}
        stored = [tensor for tensor in self.graph.initializer if tensor.name in used]
        for part in (self.graph.initializer, self.graph.node, self.graph.value_info):
            del part[:]
        self.graph.initializer.extend(stored)
        self.graph.node.extend(self.nodes)
        if any(node.op_type == "DequantizeLinear" for node in self.nodes):
            for opset in self.model.opset_import:
                if opset.domain in ("", "ai.onnx"):
                    opset.version = max(opset.version, QDQ_OPSET)

    def _float_names(self) -> set[str]:
        """The names of all float values. BuildError where the type of a value is unknown."""
        proto = self.onnx.TensorProto
        light = self.onnx.ModelProto(
            ir_version=self.model.ir_version, opset_import=self.model.opset_import
        )
        for part in ("node", "input", "output", "value_info"):
            getattr(light.graph, part).extend(getattr(self.graph, part))
        light.graph.initializer.extend(  # without the weights, of which copies would be made
            tensor if len(tensor.raw_data) < LIGHT
            else proto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
            for tensor in self.graph.initializer
        )  # fmt: skip
        try:
            graph = self.onnx.shape_inference.infer_shapes(light).graph
        except Exception as error:  # of several kinds, without a public base class
            raise BuildError(f"{self.source} cannot be typed: {error}.") from error
        kinds = {
            value.name: value.type.tensor_type.elem_type
            for value in (*graph.value_info, *graph.input, *graph.output)
        }
        kinds |= {name: tensor.data_type for name, tensor in self.stored.items()}
        for node in self.graph.node:
            for name in node.output:
                if name and not kinds.get(name):
                    raise BuildError(
                        f"{self.source}: the type of '{name}', which {node.op_type} gives, is "
                        "unknown; export the bundle again."
                    )
        floats = (proto.FLOAT, proto.FLOAT16, proto.BFLOAT16)
        return {name for name, kind in kinds.items() if kind in floats}

    def _kept_wide(self, rounded: list[str]) -> set[str]:
        """What is computed between an attention's first product and its softmax, or for angles."""
        makers = {name: node for node in self.graph.node for name in node.output}
        found: set[str] = set()
        for node in self.graph.node:
            if node.op_type in ("Softmax", "Cos", "Sin"):
                found |= _before(node, makers)
        return found.difference(rounded)

    def _rename_inside(self, names: dict[str, str]) -> None:
        for node in self.graph.node:
            for part in (node.input, node.output):
                part[:] = [names.get(name, name) for name in part]
        self.floats |= set(names.values())

    def _is_widening(self, node: Any) -> bool:
        """Whether the node does nothing but widen a weight that is stored small; it is noted."""
        name, widened = node.input[0] if node.input else "", node.output[0]
        if node.op_type != "Cast" or name not in self.stored or not {name, widened} <= self.floats:
            return False
        self.origin[widened] = name
        self.types[widened] = self.types[name]
        self.constant.add(widened)
        return True

    def _rewrite_node(self, node: Any) -> None:
        kind = self._type_of(node)
        constant = all(name in self.constant for name in node.input if name)
        scores = node.output[0] in self.kept_wide and node.op_type == "MatMul"
        for index, name in enumerate(node.input):
            if name in self.floats:
                if scores:  # tensor cores multiply low operands, and what they sum is fp32
                    name = self._as(name, self.low)
                node.input[index] = self._as(name, kind)
        for name in node.output:
            if name in self.floats:
                # What becomes a float there is wide: pixels, masks, positions.
                self.types[name] = self.wide if node.op_type == "Cast" else kind
                if constant:
                    self.constant.add(name)
        self.nodes.append(node)

    def _type_of(self, node: Any) -> int:
        """The type that a node computes in."""
        if node.op_type in WIDE or node.output[0] in self.kept_wide:
            return self.wide
        if node.op_type in NARROW:
            return self.low
        floats = [name for name in node.input if name in self.floats]
        moving = [name for name in floats if name not in self.constant]
        if moving:
            wide = any(self.types[name] == self.wide for name in moving) or self._turns(node)
        elif node.op_type == "Gather":  # rows of a table of embeddings
            wide = False
        else:
            wide = all(self.types[name] == self.wide for name in floats)
        return self.wide if wide else self.low

    def _turns(self, node: Any) -> bool:
        """Whether the node multiplies by a constant table, as rotary positions do."""
        tables = [self.stored[name] for name in node.input if name in self.stored]
        return node.op_type == "Mul" and any(sum(d > 1 for d in t.dims) > 1 for t in tables)

    def _as(self, name: str, kind: int) -> str:
        """The name under which the value `name` can be had as `kind`; a cast is made once."""
        name = self.origin.get(name, name)
        if self.types[name] == kind:
            return name
        if (name, kind) not in self.made:
            made = f"{name}_{'wide' if kind == self.wide else 'low'}"
            tensor = self.stored.get(name)
            if tensor is not None and tensor.data_type == self.wide and not tensor.external_data:
                self.graph.initializer.append(self._narrowed(tensor, made))
            else:
                self.nodes.append(self._cast(name, made, kind))
            self.made[name, kind], self.types[made] = made, kind
            self.floats.add(made)
            if name in self.constant:
                self.constant.add(made)
        return self.made[name, kind]

    def _cast(self, name: str, made: str, kind: int) -> Any:
        return self.onnx.helper.make_node("Cast", [name], [made], to=kind)

    def _narrowed(self, tensor: Any, name: str) -> Any:
        """A small fp32 constant in the low precision: some constants may not be computed."""
        values = _values(self.onnx, tensor, self.source)
        if self.low == self.onnx.TensorProto.FLOAT16:
            content = values.clip(-FP16_MOST, FP16_MOST).astype(np.float16)
        else:  # to the nearest, ties to even
            bits = np.ascontiguousarray(values).view(np.uint32)
            content = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        return self.onnx.TensorProto(
            name=name, data_type=self.low, dims=tensor.dims, raw_data=content.tobytes()
        )
