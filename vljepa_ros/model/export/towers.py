"""A public two-tower model (CLIP, SigLIP, SigLIP 2 of a fixed size) into a bundle.

Invariant: a bundle is made only of a folder that holds all of the model: weights for every key of
its configuration and none besides, the processor that it was trained with, a tokenizer that gives
transformers' ids. What is missing or of another class is one sentence.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import CLIPModel, SiglipModel

from vljepa_ros.bundle.locate import find_folder
from vljepa_ros.inference.text import TextTokenizer

from ..towers import ImageTower, NewestMean, TextTower
from . import public, spiece
from .bundle import export_networks
from .processors import colours_of, processor_of, section_of

FRAMES, RATE = 8, 4.0  # a clip of 1.75 s
CLASSES = {"clip": CLIPModel, "siglip": SiglipModel}
TOKENIZER = "tokenizer.json"
TEMPLATES = {"clip": "a photo of {}.", "siglip": "This is a photo of {}."}
FILES = (*public.DESCRIPTION_FILES, "merges.txt")


@dataclass(frozen=True)
class Towers:
    """A two-tower model of `kind` (CLASSES) and what its folder says beside its weights.

    `preprocess`: the section of the manifest; `mean` and `deviation` normalise pixels of 0 to 1;
    `pad`: the id of the token that texts are padded with.
    """

    kind: str
    folder: Path
    model: CLIPModel | SiglipModel
    preprocess: dict[str, str]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    tokenizer: Tokenizer
    pad: int


def find_towers(source: str) -> Path:
    """A local folder, or the files of a Hub id; weights as safetensors where there are any."""
    folder = find_folder(source, (*FILES, *public.WEIGHT_FILES))
    if Path(source).expanduser().is_dir() or any(folder.glob("*.safetensors")):
        return folder
    return find_folder(source, (*FILES, "pytorch_model*.bin"))


def load_towers(kind: str, folder: Path) -> Towers:
    """The model of `kind` in a folder as transformers saves it; weights become fp32.

    Raises PublicError.
    """
    config = _config(kind, folder)
    try:
        model, found = CLASSES[kind].from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, local_files_only=True,
            attn_implementation="eager",
        )  # fmt: skip
    except (OSError, RuntimeError, ValueError) as error:
        raise public.PublicError(
            f"{folder} holds no weights of its model: {public.line(error)}"
        ) from error
    public.refuse(folder, found["missing_keys"], found["unexpected_keys"], [])
    processor, tokenizer = processor_of(folder), _tokenizer(kind, folder)
    words = config.text_config.vocab_size
    if tokenizer.get_vocab_size() > words:
        raise public.PublicError(
            f"The tokenizer in {folder} has {tokenizer.get_vocab_size()} tokens, and its model "
            f"knows {words}; fetch both from the same place."
        )
    return Towers(
        kind, folder, model.eval().requires_grad_(False),
        section_of(folder, processor, config.vision_config.image_size),
        colours_of(folder, processor, "image_mean"), colours_of(folder, processor, "image_std"),
        tokenizer, tokenizer.padding["pad_id"],  # type: ignore[index]  # both kinds have one
    )  # fmt: skip


def export_towers(
    towers: Towers, out: Path, name: str, version: str, storage: str = "fp16"
) -> Path:
    """Write the bundle of a two-tower model into `out` and return it.

    Its thresholds are guesses until they are calibrated, and the manifest says so. `storage`: how
    weights are kept, fp16, bf16 or fp32. Raises ExportError where a graph differs from torch.
    """
    config, size = towers.model.config, towers.model.config.vision_config.image_size
    length = config.text_config.max_position_embeddings
    networks = {
        "x_encoder": ImageTower(towers.model, towers.mean, towers.deviation).eval(),
        "predictor": NewestMean(FRAMES).eval(),
        "y_encoder": TextTower(towers.model, towers.pad).eval(),
    }
    clips = np.random.default_rng(0).integers(0, 256, (2, FRAMES, size, size, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / TOKENIZER
        towers.tokenizer.save(str(file))
        texts = TextTokenizer(file, length)(public.SENTENCES)
        return export_networks(
            networks, out, {"name": name, "version": version, **_manifest(towers, size, length)},
            {TOKENIZER: file, **_licence_files(towers.folder)}, clips, texts, {}, storage,
        )  # fmt: skip


def _manifest(towers: Towers, size: int, length: int) -> dict[str, Any]:
    scale = math.exp(float(towers.model.logit_scale))
    dim = (
        towers.model.config.projection_dim
        if towers.kind == "clip"
        else towers.model.config.text_config.projection_size
    )
    return {
        "embedding_dim": dim,
        "clip": {
            "frames": FRAMES, "image_size": size, "tubelet": 1, "sample_rate": RATE, "chunk": 1,
        },
        "preprocess": towers.preprocess,
        "y_encoder": {"length": length, "tokenizer": TOKENIZER, "prompt": "{}"},
        "templates": {"classify": TEMPLATES[towers.kind]},
        "temperature": 1 / scale,
        "thresholds": {"gate": 1.5, "change": 0.15, "watch": _watch(towers, scale)},
        "change": {"candidate": 3, "min_segment": 2, "hysteresis": 0.8},
        "source": {
            "weights": f"a {type(towers.model).__name__} as it was published",
            "licence": public.licence_of(towers.folder, "not said by its model card"),
            "thresholds": "not calibrated: guesses, but for SigLIP's watch, which is where the "
            "model gives a picture and a text one half",
        },
    }  # fmt: skip


def _watch(towers: Towers, scale: float) -> float:
    """The cosine at which SigLIP says that a text fits with probability 1/2; for CLIP, a guess."""
    if towers.kind == "siglip":
        return -float(towers.model.logit_bias) / scale
    return 0.26


def _config(kind: str, folder: Path) -> Any:
    """The configuration in `folder`, of a class that can be a bundle."""
    config = public.read_config(folder, *CLASSES, "siglip2")
    if config.model_type == "siglip2":
        raise public.PublicError(
            f"{folder} holds a SigLIP 2 of the NaFlex kind, whose pictures have no fixed size; "
            "take one of a fixed size, e.g. google/siglip2-base-patch16-224."
        )
    if config.model_type != kind:
        raise public.PublicError(
            f"{folder} holds a model of type '{config.model_type}'; use --from {config.model_type}."
        )
    vision = config.vision_config
    if kind == "siglip" and not vision.vision_use_head:
        raise public.PublicError(
            f"{folder} holds a SigLIP without its pooling head ('vision_use_head' is false), which "
            "gives no embedding of a picture."
        )
    if type(vision.image_size) is not int:
        raise public.PublicError(
            f"{folder} holds a model for pictures of {vision.image_size} pixels, and a bundle's "
            "are square; take another one."
        )
    return config


def _tokenizer(kind: str, folder: Path) -> Tokenizer:
    """The tokenizer of a model's texts, with its padding: as transformers', as one file."""
    if kind == "siglip" and (folder / spiece.FILE).is_file():
        return spiece.read_siglip(folder / spiece.FILE)
    tokenizer = public.read_tokenizer(folder)
    return spiece.lowercased(tokenizer) if kind == "siglip" else tokenizer


def _licence_files(folder: Path) -> dict[str, Path]:
    return {
        file.name: file for pattern in public.LICENCE_FILES for file in sorted(folder.glob(pattern))
    }
