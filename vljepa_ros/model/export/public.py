"""Public checkpoints into this package's networks: Open-VLJEPA, and V-JEPA 2 encoders.

Invariant: a model comes back only if each of its weights came from the files that were named and
none of theirs was left over; an error names every key.
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import metadata_load
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, VJEPA2Model

from vljepa_ros.bundle.locate import shipped_phrases
from vljepa_ros.bundle.manifest import sha256_of
from vljepa_ros.errors import VLJepaError
from vljepa_ros.inference.text import TextTokenizer

from ..config import VLJepaConfig, open_vljepa
from ..networks import VLJepa, XEncoder
from .bundle import export_bundle

PAD = "<|finetune_right_pad_id|>"  # Llama 3's reserved token 128004
PHRASES = "phrases.txt"
SENTENCES = ("a man is cooking", "two dogs run across a field and jump over a small stream")
# Where a folder's README does not say it.
LICENCES = {
    "x_encoder": "MIT (V-JEPA 2)",
    "predictor": "Llama 3.2 Community License (Llama-3.2-1B)",
    "y_encoder": "Gemma Terms of Use (EmbeddingGemma-300M)",
}
LICENCE_FILES = ("LICENSE*", "NOTICE*", "USE_POLICY*")
DESCRIPTION_FILES = ("*.json", "*.model", "README.md", *LICENCE_FILES)  # all but the weights
TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("*.model",))
WEIGHT_FILES = ("*.safetensors",)


class PublicError(VLJepaError):
    """A public checkpoint is not what its name says, or does not fit the other folders."""


@dataclass(frozen=True)
class Public:
    """A model from public files, its tokenizers by file name, and what the manifest says of it.

    `licences`: the licence by graph; `licence_files`: the licence texts that go with the bundle.
    """

    model: VLJepa
    tokenizers: dict[str, Tokenizer]
    licences: dict[str, str]
    licence_files: dict[str, Path]
    source: dict[str, Any]
    temperature: float


def load_open_vljepa(checkpoint: Path, x_encoder: Path, llama: Path, gemma: Path) -> Public:
    """Open-VLJEPA from its `best.pt` and the folders of the three models that it was made of.

    The X-encoder's weights come from `x_encoder`, all others from the checkpoint; `llama` and
    `gemma` give configurations and tokenizers. All weights become fp32. Raises PublicError.
    """
    content = _read_checkpoint(checkpoint)
    recipe = content["config"]
    if not recipe["predictor"].get("disable_causal_mask", True):
        raise PublicError(f"{checkpoint} was trained with a causal mask, which is not supported.")
    model = VLJepa(_open_vljepa_config(recipe, x_encoder, llama, gemma))
    assert isinstance(model.x_encoder, XEncoder)  # by its configuration
    load_x_encoder(model.x_encoder, x_encoder)
    trained = nn.ModuleDict({"predictor": model.predictor, "y_encoder": model.y_encoder})
    load_named(trained, content["model_state_dict"], checkpoint)
    parts = {"x_encoder": x_encoder, "predictor": llama, "y_encoder": gemma}
    return Public(
        model=model.eval(),
        tokenizers={
            "tokenizer.json": read_tokenizer(llama),
            "y_tokenizer.json": read_tokenizer(gemma),
        },
        licences={part: licence_of(folder, LICENCES[part]) for part, folder in parts.items()},
        licence_files={
            f"{part}-{file.name}": file
            for part, folder in parts.items()
            for pattern in LICENCE_FILES
            for file in sorted(folder.glob(pattern))
        },
        source={
            "weights": "the public Open-VLJEPA checkpoint (cun-bjy/open-vljepa) with the "
            "V-JEPA 2 encoder that it was trained on; built with Llama",
            "checkpoint_sha256": sha256_of(checkpoint),
            "epoch": content.get("epoch"),
        },
        temperature=float(recipe.get("training", {}).get("temperature", 0.07)),
    )


def export_public(public: Public, out: Path, version: str, storage: str = "fp16") -> Path:
    """Write the bundle of a public model into `out` and return it.

    Its thresholds are guesses until they are calibrated, and the manifest says so. It has no
    Y-decoder, and says the shipped phrases of everyday events. `storage`: how weights are kept,
    fp16, bf16 or fp32.
    """
    config = public.model.config
    vision = config.x_encoder_config
    shape = (2, vision.frames_per_clip, vision.crop_size, vision.crop_size, 3)
    clips = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    manifest = {
        "name": "open-vljepa",
        "version": version,
        "preprocess": {"resize": "shorter_side", "crop": "centre", "resample": "bilinear"},
        "phrases": {"file": PHRASES},
        "temperature": public.temperature,
        "thresholds": {"gate": 1.5, "change": 0.25, "watch": 0.3},
        "change": {"candidate": 2, "min_segment": 2, "hysteresis": 0.8},
        "source": {
            **public.source,
            "licence": "; ".join(public.licences.values()),
            "licences": public.licences,
            "thresholds": "not calibrated",
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / name for name in public.tokenizers}
        for name, tokenizer in public.tokenizers.items():
            tokenizer.save(str(files[name]))
        files[PHRASES] = shipped_phrases("events")
        texts = TextTokenizer(files["y_tokenizer.json"], config.text_length)(SENTENCES)
        return export_bundle(
            public.model, out, manifest, {**files, **public.licence_files}, clips, texts, storage
        )


def load_x_encoder(x_encoder: XEncoder, folder: Path) -> None:
    """Fill the X-encoder with the encoder's weights of the V-JEPA 2 model in `folder`, as fp32.

    V-JEPA 2's own predictor is left aside. Raises PublicError.
    """
    try:
        theirs, found = VJEPA2Model.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise PublicError(f"{folder} holds no V-JEPA 2 model: {line(error)}") from error
    missing = [key for key in found["missing_keys"] if not key.startswith("predictor.")]
    refuse(folder, missing, found["unexpected_keys"], [])
    load_named(x_encoder.encoder, theirs.encoder.state_dict(), folder)


def load_named(module: nn.Module, state: Mapping[str, Tensor], file: Path) -> None:
    """Load `state` into `module`; PublicError names every key that is missing, extra or unfit."""
    wanted = module.state_dict()
    unfit = [
        f"{key} {list(state[key].shape)} instead of {list(value.shape)}"
        for key, value in wanted.items()
        if key in state and state[key].shape != value.shape
    ]
    refuse(file, wanted.keys() - state.keys(), state.keys() - wanted.keys(), unfit)
    module.load_state_dict(state)


def refuse(file: Path, missing: Any, unexpected: Any, unfit: list[str]) -> None:
    """PublicError where weights are missing, left over or of another shape; it names each."""
    groups = {
        "missing": sorted(missing),
        "unexpected": sorted(unexpected),
        "of another shape": unfit,
    }
    said = [f"{', '.join(keys)} ({what})" for what, keys in groups.items() if keys]
    if said:
        raise PublicError(
            f"The weights in {file} do not fit the configuration: {'; '.join(said)}; give the "
            "folders of the models that it was trained with."
        )


def read_config(folder: Path, *kinds: str) -> Any:
    """The configuration in `folder`, which must be of one of the model types `kinds`."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise PublicError(f"{folder} holds no configuration: {line(error)}") from error
    if config.model_type not in kinds:
        known = " or ".join(f"'{kind}'" for kind in kinds)
        raise PublicError(f"{folder} holds a model of type '{config.model_type}', not {known}.")
    return config


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in `folder` as the checkpoint was trained with it.

    Special tokens are added as `transformers` adds them. A tokenizer without a padding token pads
    with Llama 3's reserved one (128004), or with the end of the text where there is none.
    """
    # Of a folder without these files `transformers` makes a tokenizer that knows no words.
    if not any(all(any(folder.glob(file)) for file in files) for files in TOKENIZER_FILES):
        raise PublicError(f"{folder} holds no tokenizer: no {TOKENIZER_FILES[0][0]}.")
    try:
        wrapped = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise PublicError(f"{folder} holds no tokenizer: {line(error)}") from error
    pad = wrapped.pad_token
    if pad is None:
        pad = PAD if PAD in wrapped.get_vocab() else wrapped.eos_token
    tokenizer: Tokenizer = wrapped.backend_tokenizer
    tokenizer.no_truncation()
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(pad), pad_token=pad)
    return tokenizer


def licence_of(folder: Path, otherwise: str) -> str:
    """The licence that the model card in `folder` names, else `otherwise`."""
    card = folder / "README.md"
    facts = (metadata_load(card) if card.is_file() else None) or {}
    return str(facts.get("license_name") or facts.get("license") or otherwise)


def _read_checkpoint(file: Path) -> dict[str, Any]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise PublicError(f"There is no checkpoint {file}.") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise PublicError(
            f"{file} is no checkpoint of tensors and plain values alone, and is not read: "
            f"{line(error)}"
        ) from error
    for key, parts in (("model_state_dict", ()), ("config", ("encoder", "predictor", "y_encoder"))):
        found = content.get(key) if isinstance(content, dict) else None
        if not isinstance(found, dict) or any(part not in found for part in parts):
            raise PublicError(
                f"{file} is no Open-VLJEPA checkpoint: it lacks '{key}' or part of it."
            )
    return content


def _open_vljepa_config(
    recipe: Mapping[str, Any], x_encoder: Path, llama: Path, gemma: Path
) -> VLJepaConfig:
    """The configuration of a checkpoint with the configuration `recipe`."""
    preset, data = open_vljepa(), recipe.get("data", {})
    vision = read_config(x_encoder, "vjepa2")
    vision.frames_per_clip = int(data.get("num_frames", 8))
    vision.crop_size = int(data.get("image_size", vision.crop_size))
    blocks = read_config(llama, "llama")
    blocks.num_hidden_layers = int(recipe["predictor"].get("n_keep_layers", 8))
    return VLJepaConfig(
        x_encoder_config=vision,
        predictor_config=blocks,
        y_encoder_config=read_config(gemma, "gemma3_text"),
        embedding_dim=int(recipe["predictor"]["proj_dim"]),
        sample_rate=preset.sample_rate,
        query_length=int(data.get("max_query_len", preset.query_length)),
        text_length=int(data.get("max_caption_len", preset.text_length)),
        default_query=preset.default_query,
    )


def line(error: Exception) -> str:
    """An error's message as one line that ends with a full stop."""
    return " ".join(str(error).split())[:300].rstrip(".") + "."
