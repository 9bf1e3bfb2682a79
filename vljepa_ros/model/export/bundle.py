"""From torch to a bundle: one ONNX graph a network, each compared with torch.

Invariant: a bundle is written only if every output of every graph has torch's numbers on the
samples to within the bundle's tolerance.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.export import Dim

from vljepa_ros.bundle.graphs import GraphSpec, TensorSpec, default_profile
from vljepa_ros.bundle.manifest import write_manifest
from vljepa_ros.errors import VLJepaError
from vljepa_ros.inference.backends import open_engine

from ..config import CONFIG, VLJepaConfig
from ..fused import fused
from ..networks import VLJepa, YDecoder, YEncoder
from .scores import note_scores
from .storage import TABLES, store_small

OPSET = 18
TOLERANCE = 0.999  # least cosine to torch

Inputs = dict[str, Tensor]


class ExportError(VLJepaError):
    """A graph that does not give torch's numbers."""


def export_bundle(
    model: VLJepa, folder: Path, manifest: Mapping[str, Any], files: Mapping[str, Path],
    clips: np.ndarray, texts: tuple[np.ndarray, np.ndarray],
    storage: str | Mapping[str, str] = "fp16",
) -> Path:  # fmt: skip
    """Write the bundle of `model` into `folder` and return it.

    `manifest` holds the sections that the networks do not know (name, thresholds, source, …), or
    that shall differ from what they imply; `files` what to copy under its name: tokenizers,
    licences; `clips` uint8 `[B, T, S, S, 3]` and `texts` (ids, mask), int64 `[B, L]`, are what the
    graphs are compared with torch on, B >= 2; `storage` is how matrices are kept (`store_small`),
    of all graphs or by their names. A model without a Y-decoder makes a bundle without one. Raises
    ExportError if a graph differs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = model.eval().float()
    manifest = {**_geometry(model.config), **manifest}
    networks: dict[str, nn.Module] = {
        "x_encoder": model.x_encoder, "predictor": model.predictor, "y_encoder": model.y_encoder,
    }  # fmt: skip
    if model.y_decoder is not None:
        networks["y_decoder"] = model.y_decoder
    model.config.to_json_file(str(folder / CONFIG), use_diff=False)  # what `restore` needs
    manifest["files"] = {CONFIG: ""}
    query = _queries(model.config)
    return export_networks(networks, folder, manifest, files, clips, texts, query, storage)


def export_networks(
    networks: Mapping[str, nn.Module], folder: Path, manifest: Mapping[str, Any],
    files: Mapping[str, Path], clips: np.ndarray, texts: tuple[np.ndarray, np.ndarray],
    query: Inputs, storage: str | Mapping[str, str] = "fp16",
) -> Path:  # fmt: skip
    """`export_bundle` of networks by the names of their graphs, with a manifest that is complete.

    It lacks only 'graphs', 'tolerance' and the names of `files`. Where it says `clip.chunk`, the
    X-encoder takes uint8 `[B, chunk, S, S, 3]`. `query`: the predictor's inputs beside the visual
    tokens, `query_ids` and `query_mask`; empty where the manifest has no section 'query'.
    `storage`: of all graphs, or by their names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    manifest = dict(manifest)
    ids, mask = (torch.from_numpy(array) for array in texts)
    chunk = manifest["clip"].get("chunk", clips.shape[1])
    chunks = torch.from_numpy(clips.reshape(-1, chunk, *clips.shape[2:]))
    with torch.no_grad():  # with inference_mode torch.export would fall back to its slow tracer
        visual = networks["x_encoder"](chunks)
    visual = visual.reshape(len(clips), -1, visual.shape[-1])
    samples = {
        "x_encoder": {"frames": chunks},
        "predictor": {"visual_tokens": visual, **query},
        "y_encoder": {"ids": ids, "mask": mask},
    }
    decoder = networks.get("y_decoder")
    if isinstance(decoder, YDecoder):
        with torch.no_grad():
            written = networks["y_encoder"](ids, mask)
        samples["y_decoder"] = _y_decoder_inputs(decoder, written)
    graphs, earned = {}, {}
    for name, network in networks.items():
        kept = storage if isinstance(storage, str) else storage[name]
        graphs[name], earned[name] = export_section(
            name, network, samples[name], folder, _longest(manifest), kept
        )  # fmt: skip
    for name, source in files.items():
        shutil.copyfile(source, folder / name)
    manifest["graphs"] = graphs
    data = [file.name for file in sorted(folder.glob("*.data"))]
    manifest["files"] = dict.fromkeys((*files, *manifest.get("files", {}), *data), "")
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
BATCH, QUERIES, PAST = Dim("B", min=1, max=4096), Dim("Q", min=1, max=4096), Dim("S", max=4096)


def _dynamic(name: str, inputs: Inputs) -> dict[str, dict[int, Any]]:
    """The open sizes of a graph; queries may be shorter than those in `inputs`, not longer."""
    if name == "predictor" and "query_ids" in inputs:
        length = Dim("L", min=1, max=inputs["query_ids"].shape[1])
        query = {0: QUERIES, 1: length}
        return {"visual_tokens": {0: BATCH}, "query_ids": query, "query_mask": query}
    if name == "y_decoder":
        return {"embedding": {0: BATCH}, "ids": {0: BATCH}, "past": {1: BATCH, 3: PAST}}
    return {key: {0: BATCH} for key in inputs}


def export_section(
    name: str, network: nn.Module, inputs: Inputs, folder: Path, longest: dict[str, int],
    storage: str = "fp16",
) -> tuple[dict[str, Any], dict[str, float]]:  # fmt: skip
    """`export_graph`, as the graph's section of the manifest; its figures.

    `longest`: the largest value of each open size that counts tokens (`read_graph`).
    """
    spec, earned = export_graph(name, network, inputs, folder, storage=storage)
    section = _manifest_entry(spec)
    profile = default_profile(name, spec.inputs, longest)
    section["profile"] = {size: list(bounds) for size, bounds in profile.items()}
    return section, earned


def export_graph(
    name: str, network: nn.Module, inputs: Inputs, folder: Path, compared: Inputs | None = None,
    storage: str = "fp16",
) -> tuple[GraphSpec, dict[str, float]]:  # fmt: skip
    """Write `folder`/`name`.onnx and compare it with torch: its spec and figures.

    `name` is one of the bundle's graphs; `inputs`, of batches above 1, are what it is traced with,
    and compared on unless `compared` is given. X-encoder and predictor are written in their fused
    form (see `fused`), and compared with the network as it is. Raises ExportError where the graph
    differs.
    """
    path = folder / f"{name}.onnx"
    written = fused(network, inputs)
    _export(written, inputs, OUTPUTS[name], _dynamic(name, inputs), path)
    head = network.projector.weight if isinstance(network, YEncoder) else None
    sizes = [tuple(value.shape) for value in written.parameters()]
    del written
    store_small(
        path, TABLES, None if head is None else head.detach().numpy(),
        {*sizes, *(size[::-1] for size in sizes)}, storage,
    )  # fmt: skip
    _raw(path).unlink(missing_ok=True)
    gc.collect()  # the exporter's programs refer to themselves, and to the weights
    spec, compared = _spec(name, path), compared or inputs
    note_scores(path, {key: value.numpy() for key, value in compared.items()})
    return spec, _compare(network, compared, spec)


def predictor_inputs(config: VLJepaConfig, visual_tokens: Tensor) -> Inputs:
    """Random queries, padded and full, for the predictor; `visual_tokens` `[B, N, C]`."""
    return {"visual_tokens": visual_tokens, **_queries(config)}


def _queries(config: VLJepaConfig) -> Inputs:
    length = config.query_length
    ids = torch.randint(3, config.predictor_config.vocab_size, (3, length))
    mask = (torch.arange(length)[None] < torch.tensor([[5], [length], [9]])).long()
    return {"query_ids": ids, "query_mask": mask}


def _y_decoder_inputs(decoder: YDecoder, embedding: Tensor) -> Inputs:
    """The newest of four tokens, after a random cache; `embedding` `[B, D]`."""
    sizes = decoder.empty_cache(len(embedding)).shape
    return {
        "embedding": embedding,
        "ids": torch.full((len(embedding), 1), 1),
        "past": torch.randn(*sizes[:3], 3, sizes[4]),
    }


def _raw(path: Path) -> Path:
    """Where the exporter leaves a graph's fp32 weights."""
    return path.with_name(f"{path.name}.data")


def _export(
    network: nn.Module, inputs: Inputs, outputs: list[str], dynamic: dict[str, dict[int, Any]],
    path: Path,
) -> None:  # fmt: skip
    program = torch.onnx.export(
        network, (), kwargs=inputs, input_names=list(inputs), dynamic_shapes=dynamic,
        dynamo=True, opset_version=OPSET, verbose=False,
    )  # fmt: skip
    assert program is not None  # only the exporter before dynamo gives none
    program.save(path, external_data=True)
    proto = onnx.load(path, load_external_data=False)
    _name_outputs(proto.graph, outputs)
    for node in proto.graph.node:  # stack traces of the machine that exported
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for value in (*proto.graph.value_info, *proto.graph.initializer):
        value.ClearField("metadata_props")
    helper.set_model_props(proto, {"precision": "fp32"})
    onnx.save(proto, path)
    onnx.checker.check_model(str(path))


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


def _longest(manifest: Mapping[str, Any]) -> dict[str, int]:
    """The largest value of each open size that counts tokens: of a query, and in the cache."""
    pairs = (("L", "query"), ("S", "decoder"))
    return {size: manifest[name]["length"] for size, name in pairs if name in manifest}


def _compare(network: nn.Module, inputs: Inputs, spec: GraphSpec) -> dict[str, float]:
    """The least cosine and the largest difference between the graph and torch, over all outputs.

    Cosines are of the vectors along each output's last dimension.
    """
    with torch.inference_mode():
        answer = network(**inputs)
    tensors = answer if isinstance(answer, tuple) else (answer,)
    wanted = dict(zip(OUTPUTS[spec.name], (tensor.numpy() for tensor in tensors), strict=True))
    engine = open_engine(spec, "onnxruntime-cpu")
    given = engine.run(**{name: tensor.numpy() for name, tensor in inputs.items()})
    engine.close()
    cosines, differences = [], []
    for output, torchs in wanted.items():
        one, other = (rows.reshape(-1, rows.shape[-1]) for rows in (torchs, given[output]))
        norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        cosine = float(((one * other).sum(1) / norms).min())
        if not cosine >= TOLERANCE:
            raise ExportError(
                f"{spec.path} gives other numbers than torch: '{output}' has cosine "
                f"{cosine:.5f}, and {TOLERANCE} is the least; export with another opset or "
                "report this."
            )
        cosines.append(cosine)
        differences.append(float(np.abs(one - other).max()))
    return {"cosine": round(min(cosines), 6), "largest_difference": max(differences)}


def _geometry(config: VLJepaConfig) -> dict[str, Any]:
    """The sections of the manifest that follow from the networks."""
    vision, decoder = config.x_encoder_config, config.y_decoder_config
    sections: dict[str, Any] = {
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
        "templates": {"classify": "{}"},
    }  # fmt: skip
    if config.chunk != vision.frames_per_clip:
        sections["clip"]["chunk"] = config.chunk
    if decoder is not None:
        sections["decoder"] = {
            "length": 32, "tokenizer": "tokenizer.json", "begin": decoder.bos_token_id,
            "end": decoder.eos_token_id, "layers": decoder.num_hidden_layers,
            "heads": decoder.num_attention_heads,
            "head_dim": decoder.hidden_size // decoder.num_attention_heads, "empty_text": "",
        }  # fmt: skip
    return sections
