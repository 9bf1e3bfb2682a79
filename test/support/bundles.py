"""A tiny but real model bundle for tests: every graph of the contract, with random weights.

It may take its frames in chunks, and need no query.

Its embeddings depend on the pictures and the question, its decoder has a key-value cache and
says a few words that depend on the embedding. The same seed gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from vljepa_ros.bundle.manifest import read_manifest, write_manifest

TEXT = (
    "what is happening the a an red green blue yellow cube ball block falls rolls stands lies "
    "moves turns stops hand arm picks puts drops table floor on off left right up down nothing "
    "video of describe one two ?"
)
WORDS = TEXT.split()
SPECIAL = ["[PAD]", "[BOS]", "[EOS]", "[UNK]"]
VOCABULARY = len(SPECIAL) + len(WORDS)


class _Graph:
    """Collects nodes and weights; each op returns the name of its output."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def op(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        out = out or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [out], **attributes))
        return out

    def const(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def shape(self, *sizes: int) -> str:
        return self.const(sizes, np.int64)

    def weight(self, *shape: int) -> str:
        return self.const(self.random.normal(0, shape[0] ** -0.5, shape))

    def save(self, path: Path, inputs: dict[str, Any], outputs: dict[str, Any]) -> dict[str, Any]:
        """Write the model; return its graph section of the manifest."""
        types = {"float32": T.FLOAT, "int64": T.INT64, "uint8": T.UINT8}
        infos = [
            [helper.make_tensor_value_info(n, types[d], s) for n, (d, s) in side.items()]
            for side in (inputs, outputs)
        ]
        graph = helper.make_graph(self.nodes, path.stem, infos[0], infos[1], self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        onnx.checker.check_model(model)
        path.write_bytes(model.SerializeToString(deterministic=True))
        return {
            "file": path.name,
            "inputs": {n: {"dtype": d, "shape": s} for n, (d, s) in inputs.items()},
            "outputs": {n: {"dtype": d, "shape": s} for n, (d, s) in outputs.items()},
        }


def make_bundle(
    folder: Path,
    *,
    name: str = "tiny",
    version: str = "1.0.0",
    frames: int = 4,
    image_size: int = 32,
    sample_rate: float = 4.0,
    embedding_dim: int = 32,
    decoder: bool = True,
    chunk: int | None = None,
    query: bool = True,
    work: int = 0,
    seed: int = 0,
    **sections: Any,
) -> Path:
    """Write a bundle into `folder` (made if missing) and return `folder`.

    `frames` must be even and `image_size` a multiple of 8. `chunk`: 1, or an even divisor of
    `frames`, None: the whole clip; `query`: whether the predictor is asked. `work` adds that many
    512 x 512 matrix products to the X-encoder, to make it slow on purpose. `sections` replace
    top-level sections of the manifest, e.g. `thresholds={...}`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tubelet, width = 1 if chunk == 1 else 2, 16
    tokens = (frames // tubelet) * (image_size // 8) ** 2
    graphs = {
        "x_encoder": _x_encoder(folder, chunk or frames, tubelet, image_size, width, work, seed),
        "predictor": _predictor(folder, tokens, width, embedding_dim, query, seed + 1),
        "y_encoder": _y_encoder(folder, embedding_dim, seed + 2),
    }
    if decoder:
        graphs["y_decoder"] = _y_decoder(folder, embedding_dim, seed + 3)
    _tokenizer(folder / "tokenizer.json", begin=False)
    _tokenizer(folder / "y_tokenizer.json", begin=True)
    manifest: dict[str, Any] = {
        "schema": 1,
        "name": name,
        "version": version,
        "embedding_dim": embedding_dim,
        "clip": {
            "frames": frames,
            "image_size": image_size,
            "tubelet": tubelet,
            "sample_rate": sample_rate,
        },
        "preprocess": {"resize": "shorter_side", "crop": "centre"},
        "query": {"default": "What is happening?", "length": 12, "tokenizer": "tokenizer.json"},
        "y_encoder": {"length": 16, "tokenizer": "y_tokenizer.json", "prompt": "{}"},
        "decoder": {
            "length": 8, "tokenizer": "tokenizer.json", "begin": 1, "end": 2,
            "layers": 1, "heads": 2, "head_dim": 8, "empty_text": "nothing",
        },
        "templates": {"classify": "a video of {}"},
        "temperature": 0.07,
        "thresholds": {"gate": 3.0, "change": 0.5, "watch": 0.5},
        "change": {"candidate": 3, "min_segment": 4, "hysteresis": 0.7},
        "tolerance": {"cosine": 0.999},
        "graphs": graphs,
        "files": {"tokenizer.json": "", "y_tokenizer.json": ""},
        "source": {"weights": "random", "licence": "Apache-2.0", "seed": seed, "data": "none"},
        "evaluation": {},
    }  # fmt: skip
    if not decoder:
        del manifest["decoder"]
    if not query:
        del manifest["query"]
    if chunk is not None:
        manifest["clip"]["chunk"] = chunk
    write_manifest(folder, {**manifest, **sections})
    return folder


def with_phrases(folder: Path, phrases: Sequence[str], **thresholds: float) -> Path:
    """Give a bundle phrases, and when they are said (`cosine`, `margin`, `same`)."""
    (folder / "phrases.txt").write_text("\n".join(phrases))
    manifest, _ = read_manifest(folder)
    manifest["files"]["phrases.txt"] = ""
    manifest["phrases"] = {"file": "phrases.txt", **thresholds}
    write_manifest(folder, manifest)
    return folder


def _x_encoder(
    folder: Path, frames: int, tubelet: int, size: int, width: int, work: int, seed: int
) -> dict[str, Any]:
    g, cells = _Graph(seed), size // 8
    x = g.op("Cast", "frames", to=T.FLOAT)
    x = g.op("Mul", x, g.const(4 / 255))
    x = g.op("Sub", x, g.const(2))
    # Tubelets of 1 or 2 frames and 8 x 8 pixels, as means of 4 x 4 pixels.
    tubelets, values = frames // tubelet, tubelet * 12
    x = g.op("Reshape", x, g.shape(-1, tubelets, tubelet, cells, 2, 4, cells, 2, 4, 3))
    x = g.op("ReduceMean", x, g.shape(5, 8), keepdims=0)
    x = g.op("Transpose", x, perm=[0, 1, 3, 5, 2, 4, 6, 7])  # B, t, row, column, 1 or 2, 2, 2, 3
    x = g.op("Reshape", x, g.shape(-1, tubelets * cells * cells, values))
    x = g.op("MatMul", x, g.weight(values, width))
    if work:  # a factor of 1e-30 keeps the result and still has to be computed
        y = g.op("ReduceMean", x, g.shape(1, 2), keepdims=1)
        y = g.op("Mul", y, g.weight(512, 512))
        for _ in range(work):
            y = g.op("MatMul", y, g.weight(512, 512))
        y = g.op("ReduceMean", y, g.shape(1, 2), keepdims=1)
        x = g.op("Add", x, g.op("Mul", y, g.const(1e-30)))
    g.op("Tanh", x, out="visual_tokens")
    return g.save(
        folder / "x_encoder.onnx",
        {"frames": ("uint8", ["B", frames, size, size, 3])},
        {"visual_tokens": ("float32", ["B", tubelets * cells * cells, width])},
    )


def _predictor(
    folder: Path, tokens: int, width: int, dim: int, query: bool, seed: int
) -> dict[str, Any]:
    g = _Graph(seed)
    v = g.op("Reshape", "visual_tokens", g.shape(-1, 1, tokens * width))
    v = g.op("MatMul", v, g.weight(tokens * width, dim))
    inputs: dict[str, Any] = {"visual_tokens": ("float32", ["B", tokens, width])}
    if query:
        q = _masked_sum(g, "query_ids", "query_mask", dim)
        q = g.op("Mul", q, g.const(0.3))
        v = g.op("Add", v, q)
        inputs |= {"query_ids": ("int64", ["Q", 12]), "query_mask": ("int64", ["Q", 12])}
    _unit(g, v)
    outputs = {"embedding": ("float32", ["B", "Q" if query else 1, dim])}
    return g.save(folder / "predictor.onnx", inputs, outputs)


def _y_encoder(folder: Path, dim: int, seed: int) -> dict[str, Any]:
    g = _Graph(seed)
    _unit(g, _masked_sum(g, "ids", "mask", dim))
    return g.save(
        folder / "y_encoder.onnx",
        {"ids": ("int64", ["B", 16]), "mask": ("int64", ["B", 16])},
        {"embedding": ("float32", ["B", dim])},
    )


def _y_decoder(folder: Path, dim: int, seed: int) -> dict[str, Any]:
    """One attention layer of 2 heads of 8; the longer the text, the likelier its end."""
    g, heads, size = _Graph(seed), 2, 8
    width = heads * size
    x = g.op("Gather", g.weight(VOCABULARY, width), "ids")  # B, 1, width
    e = g.op("MatMul", "embedding", g.weight(dim, width))
    x = g.op("Add", x, g.op("Unsqueeze", g.op("Mul", e, g.const(3)), g.shape(1)))
    split = g.shape(0, 1, heads, size)
    q, k, v = (
        g.op(
            "Transpose",
            g.op("Reshape", g.op("MatMul", x, g.weight(width, width)), split),
            perm=[0, 2, 1, 3],
        )
        for _ in range(3)
    )  # B, heads, 1, size
    new = g.op("Concat", *(g.op("Unsqueeze", t, g.shape(0)) for t in (k, v)), axis=0)
    g.op("Concat", "past", new, axis=3, out="present")
    keys = g.op("Gather", "present", g.const(0, np.int64), axis=0)
    values = g.op("Gather", "present", g.const(1, np.int64), axis=0)
    scores = g.op("MatMul", q, g.op("Transpose", keys, perm=[0, 1, 3, 2]))
    y = g.op("MatMul", g.op("Softmax", scores, axis=-1), values)
    y = g.op("Reshape", g.op("Transpose", y, perm=[0, 2, 1, 3]), g.shape(0, width))
    y = g.op("Add", y, g.op("Squeeze", x, g.shape(1)))
    logits = g.op("MatMul", y, g.weight(width, VOCABULARY))
    bias = np.full(VOCABULARY, 0.0)
    bias[[0, 1, 3]] = -1e4  # never a special token other than the end
    logits = g.op("Add", logits, g.const(bias))
    length = g.op("Cast", g.op("Shape", "past", start=3, end=4), to=T.FLOAT)
    towards_end = np.zeros(VOCABULARY)
    towards_end[2] = 0.8
    g.op("Add", logits, g.op("Mul", length, g.const(towards_end)), out="logits")
    cache = [2, "B", heads, "S", size]
    return g.save(
        folder / "y_decoder.onnx",
        {
            "embedding": ("float32", ["B", dim]),
            "ids": ("int64", ["B", 1]),
            "past": ("float32", cache),
        },
        {
            "logits": ("float32", ["B", VOCABULARY]),
            "present": ("float32", [2, "B", heads, "S1", size]),
        },
    )


def _masked_sum(g: _Graph, ids: str, mask: str, dim: int) -> str:
    rows = g.op("Gather", g.weight(VOCABULARY, dim), ids)
    weights = g.op("Unsqueeze", g.op("Cast", mask, to=T.FLOAT), g.shape(-1))
    return g.op("ReduceSum", g.op("Mul", rows, weights), g.shape(1), keepdims=0)


def _unit(g: _Graph, x: str) -> None:
    norm = g.op("ReduceL2", x, g.shape(-1), keepdims=1)
    g.op("Div", x, g.op("Max", norm, g.const(1e-6)), out="embedding")


def _tokenizer(path: Path, begin: bool) -> None:
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.normalizer = normalizers.Lowercase()
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 1), ("[EOS]", 2)]
        )
    tokenizer.save(str(path))
