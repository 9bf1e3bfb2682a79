"""A start for a training of one's own: a public encoder under an untrained predictor.

Invariant: the folder that is made is laid out like a finished training, so whatever loads one can
go on from it, and its `recipe.json` says that only the encoders are trained.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_model
from transformers import BertConfig, LlamaConfig

from vljepa_ros.model.config import VLJepaConfig
from vljepa_ros.model.export.images import image_config, load_image_encoder
from vljepa_ros.model.export.public import (
    LICENCES,
    licence_of,
    load_named,
    load_x_encoder,
    read_config,
)
from vljepa_ros.model.images import KINDS, ImageEncoder
from vljepa_ros.model.networks import VLJepa

from .base import WEIGHTS
from .texts import BEGIN, END, PAD, sentence_encoder_folder


def start(x_encoder: Path, out: Path, seed: int = 0) -> Path:
    """Write a start for a training into `out` and return it.

    X-encoder: the V-JEPA 2 model or image encoder in `x_encoder`, on clips of 8 frames at 4 Hz.
    Y-encoder: all-MiniLM-L6-v2. The predictor, the Y-encoder's head and the Y-decoder are random;
    queries and answers share MiniLM's word pieces, which cover English. Raises PublicError.
    """
    torch.manual_seed(seed)
    minilm = sentence_encoder_folder()
    model = VLJepa(_config(x_encoder, minilm))
    if isinstance(model.x_encoder, ImageEncoder):
        load_image_encoder(model.x_encoder, x_encoder)
    else:
        load_x_encoder(model.x_encoder, x_encoder)
    state = load_file(minilm / "model.safetensors")
    state.pop("embeddings.position_ids", None)  # 0, 1, 2, …: not a weight
    load_named(model.y_encoder.model, state, minilm)
    out.mkdir(parents=True, exist_ok=True)
    model.config.to_json_file(str(out / "config.json"), use_diff=False)
    shutil.copyfile(minilm / "tokenizer.json", out / "tokenizer.json")
    recipe = {
        "seed": seed,
        "steps": 0,
        "x_encoder": {
            "from": x_encoder.name,
            "licence": licence_of(x_encoder, _licence(model)),
        },
        "untrained": ["predictor", "y_encoder.projector", "y_decoder"],
    }
    (out / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n")
    save_model(model, str(out / WEIGHTS))
    return out


def _licence(model: VLJepa) -> str:
    """Of an encoder whose model card says none."""
    images = isinstance(model.x_encoder, ImageEncoder)
    return "not said by its model card" if images else LICENCES["x_encoder"]


def _config(x_encoder: Path, minilm: Path) -> VLJepaConfig:
    vision = read_config(x_encoder, "vjepa2", "siglip", *KINDS)
    if vision.model_type != "vjepa2":
        vision = image_config(x_encoder)
    vision.frames_per_clip = 8
    even = vision.crop_size // vision.patch_size % 2 == 0
    text = BertConfig.from_pretrained(minilm)
    blocks = {
        "vocab_size": text.vocab_size, "hidden_size": 384, "intermediate_size": 1024,
        "num_hidden_layers": 4, "num_attention_heads": 6, "pad_token_id": PAD,
        "bos_token_id": BEGIN, "eos_token_id": END,
    }  # fmt: skip
    return VLJepaConfig(
        x_encoder_config=vision,
        predictor_config=LlamaConfig(**blocks, max_position_embeddings=2048),
        y_encoder_config=text,
        y_decoder_config=LlamaConfig(**blocks, max_position_embeddings=64),
        visual_merge=2 if even else 1,
        query_length=32,
    )
