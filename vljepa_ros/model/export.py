"""From torch to a bundle: one ONNX graph a network, each compared with torch.

Invariant: a bundle is written only if every graph gives torch's numbers on the samples to within
the bundle's tolerance.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data
from torch import Tensor, nn
from torch.export import Dim

from vljepa_ros.model.networks import VLJepa
from vljepa_ros.runtime.bundle import GraphSpec, TensorSpec
from vljepa_ros.runtime.engine import open_engine
from vljepa_ros.runtime.errors import VLJepaError
from vljepa_ros.runtime.manifest import write_manifest

OPSET = 18
TABLES = ("model.embeddings.word_embeddings.weight",)
TOLERANCE = 0.999  # least cosine to torch
COMPRESSED = 10_000  # numbers in a tensor from which small storage is worth it


class ExportError(VLJepaError):
    """A graph that does not give torch's numbers."""


def export_bundle(
    model: VLJepa, folder: Path, manifest: Mapping[str, Any], tokenizers: Mapping[str, Path],
    clips: np.ndarray, texts: tuple[np.ndarray, np.ndarray],
) -> Path:  # fmt: skip
    """Write the bundle of `model` into `folder` and return it.

    `manifest` holds the sections that the networks do not know (name, thresholds, source, …);
    `tokenizers` the files to copy under their names; `clips` uint8 `[B, T, S, S, 3]` and `texts`
    (ids, mask), int64 `[B, L]`, are what the graphs are compared with torch on, B >= 2. Raises
    ExportError if one differs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = model.eval().float()
    manifest = {**manifest, **_geometry(model)}
    graphs, earned = {}, {}
    for name, (network, inputs, dynamic) in _samples(model, clips, texts).items():
        path = folder / f"{name}.onnx"
        outputs = OUTPUTS[name]
        _export(network, inputs, outputs, dynamic, path)
        if name == "y_encoder":
            store_small(path, TABLES, but=model.y_encoder.projector.weight.detach().numpy())
        else:
            store_small(path)
        spec = _spec(name, path)
        graphs[name] = _manifest_entry(spec)
        earned[name] = _compare(network, inputs, spec)
    for name, source in tokenizers.items():
        shutil.copyfile(source, folder / name)
    manifest["graphs"] = graphs
    data = [file.name for file in sorted(folder.glob("*.data"))]
    manifest["files"] = dict.fromkeys((*tokenizers, *data), "")
    manifest["tolerance"] = {"cosine": TOLERANCE}
    manifest["evaluation"] = {**manifest.get("evaluation", {}), "onnx_against_torch": earned}
    write_manifest(folder, manifest)
    return folder


OUTPUTS = {
    "x_encoder": ["visual_tokens"],
    "predictor": ["embedding"],
    "y_encoder": ["embedding"],
    "y_decoder": ["logits", "present"],
}


def _samples(
    model: VLJepa, clips: np.ndarray, texts: tuple[np.ndarray, np.ndarray]
) -> dict[str, tuple[nn.Module, dict[str, Tensor], dict[str, dict[int, Any]]]]:
    """Each network with named sample inputs and their dynamic dimensions."""
    batch, queries, past = Dim("B", min=1, max=4096), Dim("Q", min=1, max=4096), Dim("S", max=4096)
    frames = torch.from_numpy(clips)
    ids, mask = (torch.from_numpy(array) for array in texts)
    with torch.inference_mode():
        visual = model.x_encoder(frames).clone()
        written = model.y_encoder(ids, mask).clone()
    length = model.config.query_length
    query_ids = torch.randint(3, model.config.predictor_config.vocab_size, (3, length))
    query_mask = (torch.arange(length)[None] < torch.tensor([[5], [length], [9]])).long()
    cache = torch.randn(*model.y_decoder.empty_cache(len(written)).shape[:3], 3,
                        model.y_decoder.width // model.y_decoder.heads)  # fmt: skip
    newest = torch.full((len(written), 1), 1)
    return {
        "x_encoder": (model.x_encoder, {"frames": frames}, {"frames": {0: batch}}),
        "predictor": (
            model.predictor,
            {"visual_tokens": visual, "query_ids": query_ids, "query_mask": query_mask},
            {"visual_tokens": {0: batch}, "query_ids": {0: queries}, "query_mask": {0: queries}},
        ),
        "y_encoder": (
            model.y_encoder, {"ids": ids, "mask": mask}, {"ids": {0: batch}, "mask": {0: batch}},
        ),
        "y_decoder": (
            model.y_decoder,
            {"embedding": written, "ids": newest, "past": cache},
            {"embedding": {0: batch}, "ids": {0: batch}, "past": {1: batch, 3: past}},
        ),
    }  # fmt: skip


def _export(
    network: nn.Module, inputs: dict[str, Tensor], outputs: list[str],
    dynamic: dict[str, dict[int, Any]], path: Path,
) -> None:  # fmt: skip
    program = torch.onnx.export(
        network, (), kwargs=inputs, input_names=list(inputs), dynamic_shapes=dynamic,
        dynamo=True, opset_version=OPSET, verbose=False,
    )  # fmt: skip
    proto = program.model_proto
    _name_outputs(proto.graph, outputs)
    for node in proto.graph.node:  # stack traces of the machine that exported
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for value in (*proto.graph.value_info, *proto.graph.initializer):
        value.ClearField("metadata_props")
    helper.set_model_props(proto, {"precision": "fp32"})
    onnx.checker.check_model(proto)
    onnx.save(proto, path)


def _name_outputs(graph: Any, outputs: list[str]) -> None:
    """Give a graph's outputs their names; what had such a name inside gets another."""
    renamed = {name: f"{name}_inner" for name in outputs}
    renamed.update(zip((value.name for value in graph.output), outputs, strict=True))
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    inner = {value.name for value in graph.input}
    for value in (*graph.output, *graph.value_info, *graph.initializer):
        if value.name not in inner:
            value.name = renamed.get(value.name, value.name)


def store_small(path: Path, tables: Collection[str] = (), but: np.ndarray | None = None) -> None:
    """Keep the matrices of a graph as fp16, and the named tables as int8 with a float scale a row.

    Engines undo it when they load, so the graph computes in fp32. With `but`, all matrices except
    that one (or its transpose) go to a file of their own, `<graph>.data`: as long as they are
    frozen it stays the same, and a new release of the bundle adds nothing for it to a repository.
    """
    proto = onnx.load(path)
    graph = proto.graph
    kept, nodes, moved = [], [], []
    for tensor in graph.initializer:
        weights, name = numpy_helper.to_array(tensor), tensor.name
        if weights.dtype != np.float32 or weights.ndim < 2 or weights.size < COMPRESSED:
            kept.append(tensor)
            continue
        if name in tables:
            scale = np.maximum(np.abs(weights).max(axis=1, keepdims=True), 1e-12) / 127
            small = np.round(weights / scale).astype(np.int8)
            kept += [_tensor_of(small, f"{name}_int8"), _tensor_of(scale, f"{name}_scale")]
            nodes += [
                helper.make_node("Cast", [f"{name}_int8"], [f"{name}_wide"], to=TensorProto.FLOAT),
                helper.make_node("Mul", [f"{name}_wide", f"{name}_scale"], [name]),
            ]
        else:
            kept.append(_tensor_of(weights.astype(np.float16), f"{name}_half"))
            nodes.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
        if but is not None and not _same(weights, but):
            moved.append(next(t for t in kept[::-1] if t.name in (f"{name}_int8", f"{name}_half")))
    del graph.initializer[:]
    graph.initializer.extend(kept)
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend(nodes + rest)
    _save(proto, path, {tensor.name for tensor in moved})


def _same(weights: np.ndarray, other: np.ndarray) -> bool:
    return any(np.array_equal(weights, way) for way in (other, other.T))


def _tensor_of(values: np.ndarray, name: str) -> TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(values), name)


def _save(proto: onnx.ModelProto, path: Path, moved: Collection[str]) -> None:
    if moved:
        data = path.with_suffix(".data")
        with data.open("wb") as file:
            for tensor in sorted(proto.graph.initializer, key=lambda t: t.name):
                if tensor.name in moved:
                    content, offset = tensor.raw_data, file.tell()
                    file.write(content)
                    set_external_data(tensor, data.name, offset, len(content))
                    tensor.ClearField("raw_data")
    onnx.save(proto, path)


def _spec(name: str, path: Path) -> GraphSpec:
    graph = onnx.load(path, load_external_data=False).graph
    return GraphSpec(
        name=name, path=path, sha256="",
        inputs={value.name: _tensor(value) for value in graph.input},
        outputs={value.name: _tensor(value) for value in graph.output},
    )  # fmt: skip


def _tensor(value: Any) -> TensorSpec:
    kind = value.type.tensor_type
    dtype = {TensorProto.FLOAT: "float32", TensorProto.INT64: "int64", TensorProto.UINT8: "uint8"}
    shape = [d.dim_param.replace(" ", "") or d.dim_value for d in kind.shape.dim]
    return TensorSpec(dtype[kind.elem_type], tuple(shape))


def _manifest_entry(spec: GraphSpec) -> dict[str, Any]:
    def described(tensors: dict[str, TensorSpec]) -> dict[str, Any]:
        return {n: {"dtype": t.dtype, "shape": list(t.shape)} for n, t in tensors.items()}

    return {
        "file": spec.path.name, "sha256": "",
        "inputs": described(spec.inputs), "outputs": described(spec.outputs),
    }  # fmt: skip


def _compare(network: nn.Module, inputs: dict[str, Tensor], spec: GraphSpec) -> dict[str, float]:
    """The least cosine and the largest difference between the graph and torch on the samples."""
    with torch.inference_mode():
        expected = network(**inputs)
    first = expected[0] if isinstance(expected, tuple) else expected
    engine = open_engine(spec, backend="onnxruntime-cpu")
    outputs = engine.run(**{name: value.numpy() for name, value in inputs.items()})
    got = outputs[OUTPUTS[spec.name][0]]
    engine.close()
    wanted = first.numpy().reshape(-1, first.shape[-1])
    given = got.reshape(wanted.shape)
    norms = np.linalg.norm(wanted, axis=1) * np.linalg.norm(given, axis=1)
    cosine = float(((wanted * given).sum(1) / norms).min())
    if not cosine >= TOLERANCE:
        raise ExportError(
            f"{spec.path} gives other numbers than torch: cosine {cosine:.5f}, "
            f"and {TOLERANCE} is the least; export with another opset or report this."
        )
    return {"cosine": round(cosine, 6), "largest_difference": float(np.abs(wanted - given).max())}


def _geometry(model: VLJepa) -> dict[str, Any]:
    """The sections of the manifest that follow from the networks."""
    config, vision = model.config, model.config.x_encoder_config
    return {
        "embedding_dim": config.embedding_dim,
        "clip": {
            "frames": vision.frames_per_clip, "image_size": vision.crop_size,
            "tubelet": vision.tubelet_size, "sample_rate": float(config.sample_rate),
        },
        "preprocess": {"resize": "shorter_side", "crop": "centre"},
        "query": {
            "default": config.default_query, "length": config.query_length,
            "tokenizer": "tokenizer.json",
        },
        "y_encoder": {
            "length": config.text_length, "tokenizer": "y_tokenizer.json",
            "prompt": config.text_prompt,
        },
        "decoder": {
            "length": 32, "tokenizer": "tokenizer.json", "begin": 1, "end": 2,
            "layers": len(model.y_decoder.layers), "heads": model.y_decoder.heads,
            "head_dim": model.y_decoder.width // model.y_decoder.heads, "empty_text": "",
        },
        "templates": {"classify": "{}"},
    }  # fmt: skip
