"""Tiny VL-JEPA networks for tests: every part of the real ones, one or two layers, 32 wide."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import BertConfig, LlamaConfig, VJEPA2Config

from vljepa_ros.model.config import VLJepaConfig

WIDTH, DIM, VOCABULARY, TEXT_VOCABULARY = 32, 48, 60, 80


def tiny_config(
    *,
    vocabulary: int = VOCABULARY,
    text_vocabulary: int = TEXT_VOCABULARY,
    image_size: int = 32,
    patch: int = 8,
    layers: int = 2,
    **sections: Any,
) -> VLJepaConfig:
    """Clips of 4 frames in tubelets of 2; `sections` replace fields of the configuration."""
    vision = VJEPA2Config(
        crop_size=image_size, patch_size=patch, frames_per_clip=4, tubelet_size=2,
        hidden_size=WIDTH, num_hidden_layers=layers, num_attention_heads=4,
    )  # fmt: skip
    blocks = {
        "vocab_size": vocabulary, "hidden_size": WIDTH, "intermediate_size": 80,
        "num_hidden_layers": layers, "num_attention_heads": 4, "max_position_embeddings": 64,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    text = BertConfig(
        vocab_size=text_vocabulary, hidden_size=WIDTH, intermediate_size=64,
        num_hidden_layers=1, num_attention_heads=4, max_position_embeddings=64,
    )  # fmt: skip
    fields: dict[str, Any] = {
        "x_encoder_config": vision, "predictor_config": LlamaConfig(**blocks),
        "y_encoder_config": text, "y_decoder_config": LlamaConfig(**blocks),
        "embedding_dim": DIM, "visual_merge": 2, "query_length": 10, "text_length": 12,
    }  # fmt: skip
    return VLJepaConfig(**{**fields, **sections})


def scramble(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter a random value of a size at which each one is felt in the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim > 1:
                embedding = "embed" in name and value.ndim == 2
                value.copy_(noise if embedding else noise * value[0].numel() ** -0.5)
            else:
                value.copy_(0.3 * noise + ("norm" in name.lower() and name.endswith("weight")))
    return module.eval()


MANIFEST = {
    "name": "tiny", "version": "0.1.0", "temperature": 0.07,
    "thresholds": {"gate": 3.0, "change": 0.5, "watch": 0.5},
    "change": {"candidate": 3, "min_segment": 4, "hysteresis": 0.7},
    "source": {"weights": "random", "licence": "Apache-2.0"},
}  # fmt: skip
"""The sections of a manifest that the networks do not know."""
