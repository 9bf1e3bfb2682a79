"""Variants of a bundle's graphs whose linear layers multiply in int8 or fp8.

Invariant: a variant that is written differs from its base graph by no more than COSINE allows, in
the embeddings that come out in the end.

Only the inputs and weights of linear layers are quantised, never residual additions or attention
itself; of convolutional networks, all between the first convolution and the last. Scales are fixed,
from real clips (those of convolutions: see `convolutions`): scales that are taken anew in every run
would make a camera's embedding depend on the others in its batch. Activations are symmetric and per
tensor, weights per output column, so that TensorRT takes the same files as ONNX Runtime.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from vljepa_ros.bundle.graphs import QUERY, GraphSpec, Variant
from vljepa_ros.bundle.manifest import write_manifest
from vljepa_ros.bundle.spec import Bundle, load_bundle
from vljepa_ros.inference.backends import open_engine
from vljepa_ros.inference.engine import Engine
from vljepa_ros.inference.text import TextTokenizer

from .convolutions import Spreads, activation_scales
from .fp8 import write_fp8
from .storage import INLINE, store_small

log = logging.getLogger(__name__)

CPU = "onnxruntime-cpu"
LINEAR = ["Gemm", "MatMul"]
CONVOLUTIONAL = ["Conv", "Clip", "Add"]
COSINE = 0.995  # least, of an embedding to that of the base graphs
CONVOLUTIONS_COSINE = 0.95  # likewise; what loses most is what is like nothing that was trained on
Sample = dict[str, np.ndarray]


def add_int8(folder: Path, clips: np.ndarray, queries: Sequence[str]) -> dict[str, float]:
    """Add int8 variants of X-encoder and predictor to the bundle in `folder`.

    `clips` uint8 `[N, T, S, S, 3]` are real ones, each with one of the N `queries` (which a bundle
    without a query does not look at): every other one sets the scales, and all are compared.
    Returns each variant's least cosine of an embedding to that of the base graphs. A graph that is
    too large, or would differ by more than COSINE allows, gets no variant, and the log says so.
    """
    return _add(folder, clips, queries, "int8", _write, COSINE)


def add_int8_convolutions(
    folder: Path, clips: np.ndarray, queries: Sequence[str], spreads: Spreads
) -> dict[str, float]:
    """`add_int8` of an X-encoder of convolutions, with scales that follow from `spreads`.

    `clips` are only compared. Weights are per channel, the predictor stays as it is.
    """
    write = partial(_write_convolutions, spreads)
    return _add(folder, clips, queries, "int8", write, CONVOLUTIONS_COSINE)


def add_fp8(folder: Path, clips: np.ndarray, queries: Sequence[str]) -> dict[str, float]:
    """Add fp8 variants, which GPUs from compute capability 8.9 on run: as `add_int8`, of any size.

    What they lose is measured on the CPU, which computes their linear layers in fp32 on values that
    were rounded to fp8.
    """
    return _add(folder, clips, queries, "fp8", _write_fp8, COSINE)


def _add(
    folder: Path, clips: np.ndarray, queries: Sequence[str], precision: str,
    write: Callable[[GraphSpec, list[Sample]], Path | None], least: float,
) -> dict[str, float]:  # fmt: skip
    bundle = load_bundle(folder)
    graphs = {name: bundle.graphs[name] for name in ("x_encoder", "predictor")}
    engines = {name: open_engine(graph, CPU, precision="fp32") for name, graph in graphs.items()}
    chunks = clips.reshape(len(clips), bundle.clip.chunks, bundle.clip.chunk, *clips.shape[2:])
    samples, wanted = [], []
    for frames, query in zip(chunks, _tokenised(bundle, queries, len(clips)), strict=True):
        asked = {"visual_tokens": _visual_tokens(engines["x_encoder"], frames), **query}
        samples.append({"x_encoder": {"frames": frames}, "predictor": asked})
        wanted.append(engines["predictor"].run(**asked)["embedding"][0, 0])
    found = {}
    for name, graph in graphs.items():
        path = write(graph, [sample[name] for sample in samples[::2]])
        if path is None:
            continue
        variant = _opened(graph, path, precision)
        cosine = min(_cosines({**engines, name: variant}, samples, wanted))
        variant.close()
        if cosine >= least:
            found[name] = round(cosine, 4)
        else:
            for file in (path, path.with_suffix(".data")):
                file.unlink(missing_ok=True)
            log.warning("no %s %s: an embedding has cosine %.4f to that of fp32", precision, name,
                        cosine)  # fmt: skip
    for engine in engines.values():
        engine.close()
    _list(bundle, precision, found)
    return found


def _tokenised(bundle: Bundle, queries: Sequence[str], clips: int) -> list[Sample]:
    """The predictor's inputs for the query of each clip, beside the visual tokens."""
    if bundle.query is None:
        return [{}] * clips
    tokenizer = TextTokenizer(bundle.query.tokenizer, bundle.query.length)
    return [dict(zip(QUERY, tokenizer([query]), strict=True)) for query in queries]


def _visual_tokens(engine: Engine, chunks: np.ndarray) -> np.ndarray:
    """The visual tokens of one clip, float32 `[1, N, Dv]`, of its chunks."""
    tokens = engine.run(frames=chunks)["visual_tokens"]
    return tokens.reshape(1, -1, tokens.shape[-1])


def _opened(graph: GraphSpec, path: Path, precision: str) -> Engine:
    """A variant on the CPU: int8 as it runs there, fp8 as if it were the base graph."""
    if precision == "int8":
        graph = replace(graph, variants={precision: Variant(path, "", 1.0)})
        return open_engine(graph, CPU, precision=precision)
    return open_engine(replace(graph, path=path, variants={}), CPU, precision="fp32")


def _cosines(
    engines: dict[str, Engine], samples: list[dict[str, Sample]], wanted: list[np.ndarray]
) -> Iterator[float]:
    for sample, embedding in zip(samples, wanted, strict=True):
        tokens = _visual_tokens(engines["x_encoder"], sample["x_encoder"]["frames"])
        asked = {**sample["predictor"], "visual_tokens": tokens}
        yield float(engines["predictor"].run(**asked)["embedding"][0, 0] @ embedding)


def _list(bundle: Bundle, precision: str, cosines: dict[str, float]) -> None:
    """Name the variants, and files that hold their weights, in the bundle's manifest."""
    manifest = bundle.manifest
    for name, cosine in cosines.items():
        entry: dict[str, Any] = manifest["graphs"][name]
        path = _path(bundle.graphs[name], precision)
        variant = {"file": path.name, "sha256": "", "cosine": cosine}
        entry.setdefault("variants", {})[precision] = variant
        if path.with_suffix(".data").exists():
            manifest.setdefault("files", {})[path.with_suffix(".data").name] = ""
    write_manifest(bundle.path, manifest)


def _path(graph: GraphSpec, precision: str) -> Path:
    return graph.path.with_name(f"{graph.path.stem}.{precision}.onnx")


def _write_fp8(graph: GraphSpec, samples: list[Sample]) -> Path:
    path = _path(graph, "fp8")
    write_fp8(graph.path, path, samples)
    return path


def _write(graph: GraphSpec, samples: list[Sample]) -> Path | None:
    """Write the int8 variant of a graph beside it; None where the graph is too large for it."""
    proto = _widened(graph.path)
    if proto.ByteSize() > INLINE:
        log.warning("no int8 %s: with its weights in fp32 it is above 1 GB", graph.name)
        return None
    linear = list(_linear(proto.graph))
    others = {tuple(t.dims) for t in proto.graph.initializer} - {size for _, size in linear}
    options = {
        "ActivationSymmetric": True, "WeightSymmetric": True,
        "OpTypesToExcludeOutputQuantization": LINEAR,
    }  # fmt: skip
    path = _quantised(
        graph, proto, samples, LINEAR, [name for name, _ in linear], QuantType.QInt8, options
    )
    store_small(path, sizes=others)
    return path


def _write_convolutions(spreads: Spreads, graph: GraphSpec, samples: list[Sample]) -> Path | None:
    """Write the int8 variant of a graph with convolutions beside it; None where it has none."""
    proto = _widened(graph.path)
    scales = activation_scales(proto.graph, spreads)
    reached = {*scales, *(node.input[0] for node in proto.graph.node if node.op_type == "Clip"
                          and node.output[0] in scales)}  # fmt: skip
    nodes = [node.name for node in proto.graph.node
             if node.op_type in CONVOLUTIONAL and node.output[0] in reached]  # fmt: skip
    if not nodes:
        return None
    others = {tuple(t.dims) for t in proto.graph.initializer if t.name not in spreads}
    options = {"TensorQuantOverrides": scales}
    path = _quantised(
        graph, proto, samples[:1], CONVOLUTIONAL, nodes, QuantType.QUInt8, options
    )  # fmt: skip
    store_small(path, sizes=others, storage="int8")
    return path


def _quantised(
    graph: GraphSpec, proto: onnx.ModelProto, samples: list[Sample], operators: list[str],
    nodes: list[str], activations: QuantType, options: dict[str, Any],
) -> Path:  # fmt: skip
    """Write `proto` with some nodes in int8 as the variant of `graph`."""
    notes = {note.key: note.value for note in proto.metadata_props}
    path = _path(graph, "int8")
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / path.name
        quantize_static(
            proto, made, _Samples(samples), quant_format=QuantFormat.QDQ,
            op_types_to_quantize=operators, nodes_to_quantize=nodes, per_channel=True,
            activation_type=activations, weight_type=QuantType.QInt8, extra_options=options,
        )  # fmt: skip
        quantised = onnx.load(made)
        helper.set_model_props(quantised, {**notes, "precision": "int8"})
        onnx.save(quantised, path)
    return path


def _widened(path: Path) -> onnx.ModelProto:
    """A graph with its weights in fp32, as it computes with them."""
    proto = onnx.load(path)
    graph = proto.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    kept = []
    for number, node in enumerate(graph.node):
        node.name = node.name or f"node_{number}"  # the quantiser is told of nodes by name
        if node.op_type == "Cast" and node.input[0] in stored:
            small = stored[node.input[0]]
            wide = numpy_helper.to_array(small).astype(np.float32)
            graph.initializer.remove(small)
            graph.initializer.append(numpy_helper.from_array(wide, node.output[0]))
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
    return proto


def _linear(graph: onnx.GraphProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, size of the weight) of the nodes that multiply with weights."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in ("Gemm", "MatMul") and node.input[1] in stored:
            weight = stored[node.input[1]]
            if weight.data_type == TensorProto.FLOAT and not weight.name.endswith(".swap"):
                yield node.name, tuple(weight.dims)


class _Samples(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, samples: list[Sample]):
        self._left = iter(samples)

    def get_next(self) -> Sample | None:
        return next(self._left, None)
