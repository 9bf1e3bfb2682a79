"""Public image encoders into this package's: DINOv2, DINOv3, SigLIP's image tower, EfficientNet.

Invariant: each weight of the encoder came from the folder; of the folder's only those are left that
give no patch tokens (the text tower, pooling, a classifier).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel

from ..images import KINDS, ImageEncoder
from . import public
from .processors import colours_of, processor_of

SIZE = 224  # pixels, of encoders whose positions may be spread over fewer patches
STRIDE = 32  # of EfficientNet: pixels a cell
SPREAD = ("dinov2", "dinov2_with_registers", "dinov3_vit", "efficientnet")
UNUSED = ("text_model.", "logit_", "head.", "vision_model.head.", "classifier.", "pooler.")
POSITIONS = "embeddings.position_embeddings"


def image_config(folder: Path) -> Any:
    """The configuration of an `ImageEncoder` of the model in `folder`, but for `frames_per_clip`.

    Raises PublicError.
    """
    config = public.read_config(folder, *KINDS, "siglip")
    vision = config.vision_config if config.model_type == "siglip" else config
    kind = vision.model_type
    if type(vision.image_size) is not int or type(getattr(vision, "patch_size", 0)) is not int:
        raise public.PublicError(f"{folder} holds an encoder of pictures that are not square.")
    vision.crop_size = min(SIZE, vision.image_size) if kind in SPREAD else vision.image_size
    if kind == "efficientnet":
        vision.patch_size, vision.hidden_size = STRIDE, vision.hidden_dim
    if kind.startswith("dinov2"):
        vision.image_size = vision.crop_size
    vision.vision_use_head = False
    if vision.crop_size % vision.patch_size:
        raise public.PublicError(
            f"{folder} holds an encoder whose patches of {vision.patch_size} pixels do not divide "
            f"pictures of {vision.crop_size}."
        )
    vision.tubelet_size = 1
    processor = processor_of(folder)
    vision.image_mean = list(colours_of(folder, processor, "image_mean"))
    deviation = colours_of(folder, processor, "image_std")
    twice = kind == "efficientnet" and processor.get("include_top", True)  # it divides twice
    vision.image_std = [value**2 if twice else value for value in deviation]
    return vision


def load_image_encoder(encoder: ImageEncoder, folder: Path) -> None:
    """Fill the encoder with the weights of the model in `folder`, as fp32. Raises PublicError."""
    theirs = public.read_config(folder, *KINDS, "siglip")
    vision = theirs.vision_config if theirs.model_type == "siglip" else theirs
    vision.vision_use_head = False
    cls = type(encoder.encoder)
    try:
        model, found = cls.from_pretrained(
            folder, config=vision, dtype=torch.float32, output_loading_info=True,
            local_files_only=True,
        )  # fmt: skip
    except (OSError, RuntimeError, ValueError) as error:
        raise public.PublicError(f"{folder} holds no weights of its model: {public.line(error)}") \
            from error  # fmt: skip
    left = [key for key in found["unexpected_keys"] if not key.startswith(UNUSED)]
    public.refuse(folder, found["missing_keys"], left, [])
    state = model.state_dict()
    if POSITIONS in state and encoder.encoder.config.image_size != vision.image_size:
        state[POSITIONS] = _positions(model, encoder.encoder.config.image_size)
    public.load_named(encoder.encoder, state, folder)


def _positions(model: AutoModel, size: int) -> Tensor:
    """DINOv2's positions of pictures of `size` pixels, spread as it spreads them itself."""
    patches = (size // model.config.patch_size) ** 2
    shape = torch.zeros(1, patches + 1, model.config.hidden_size)
    with torch.no_grad():
        return model.embeddings.interpolate_pos_encoding(shape, size, size)
