"""The predictor of a site's own words: a few Llama blocks over the tokens of a clip's frames.

Invariant: it sees tokens through a fixed linear map that the recordings gave (their directions of
most variance, whitened), and their differences from the clip's mean, so that what moves weighs as
much as what is there; a few examples would else be known by their backgrounds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from vljepa_ros.model.networks import ATTENTION

DIRECTIONS = 32  # of most variance that are kept
FLOOR, NOISE = 0.05, 0.1  # added to deviations: what hardly varies is not blown up
MOTION = 2.0  # weight of the differences from the clip's mean


@dataclass(frozen=True)
class Sizes:
    """`tokens`: numbers `Dv` of a visual token; `frames` of a clip; `embedding_dim`."""

    tokens: int
    frames: int
    embedding_dim: int
    directions: int
    width: int = 96
    layers: int = 2
    heads: int = 4


class SitePredictor(nn.Module):
    """Visual tokens of a clip's frames, one chunk a frame, to the clip's meaning."""

    mean: Tensor
    whiten: Tensor

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.sizes = sizes
        blocks = LlamaConfig(
            vocab_size=1, bos_token_id=0, eos_token_id=0,
            hidden_size=sizes.width, intermediate_size=2 * sizes.width,
            num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads,
            max_position_embeddings=sizes.frames, attn_implementation=ATTENTION,
        )  # fmt: skip
        self.register_buffer("mean", torch.zeros(sizes.tokens))
        self.register_buffer("whiten", torch.zeros(sizes.tokens, sizes.directions))
        self.vis_proj = nn.Linear(2 * sizes.directions, sizes.width)
        self.layers = nn.ModuleList(LlamaDecoderLayer(blocks, k) for k in range(sizes.layers))
        self.norm = LlamaRMSNorm(sizes.width)
        self.out_proj = nn.Linear(sizes.width, sizes.embedding_dim)
        self.rotary = LlamaRotaryEmbedding(blocks)

    def forward(self, visual_tokens: Tensor) -> Tensor:
        """`[B, T·n, Dv]`, oldest frame first, to `[B, 1, E]`, unit length."""
        frames = visual_tokens.unflatten(1, (self.sizes.frames, -1)).mean(2)
        return self.answer(self.project(frames))[:, None]

    def project(self, frames: Tensor) -> Tensor:
        """Tokens of frames `[B, T, Dv]` in the directions that vary `[B, T, K]`."""
        return (frames - self.mean) @ self.whiten

    def answer(self, states: Tensor) -> Tensor:
        """The meaning, `[B, E]`, of projected frames `[B, T, K]`."""
        moved = states - states.mean(1, keepdim=True)
        states = self.vis_proj(torch.cat([states, MOTION * moved], dim=-1))
        rotary = self.rotary(states, torch.arange(states.shape[1], device=states.device)[None])
        for layer in self.layers:
            states = layer(states, position_embeddings=rotary)
        return F.normalize(self.out_proj(self.norm(states).mean(1)).float(), dim=-1)

    def predict(self, tokens: np.ndarray) -> np.ndarray:
        """Embeddings, float32 `[B, E]`, of the tokens of clips, `[B, T, Dv]`."""
        with torch.inference_mode():
            return np.asarray(self(torch.from_numpy(tokens))[:, 0])


def fitted(tokens: np.ndarray, frames: int, embedding_dim: int) -> SitePredictor:
    """An untrained predictor that sees `tokens`, float32 `[n, Dv]`, whitened."""
    mean, deviation = tokens.mean(0), tokens.std(0) + FLOOR
    _, strengths, directions = np.linalg.svd((tokens - mean) / deviation, full_matrices=False)
    kept = min(DIRECTIONS, len(strengths))
    scale = strengths[:kept] / np.sqrt(len(tokens)) + NOISE
    predictor = SitePredictor(Sizes(tokens.shape[1], frames, embedding_dim, kept))
    predictor.mean.copy_(torch.from_numpy(mean))
    predictor.whiten.copy_(torch.from_numpy((directions[:kept] / deviation).T / scale))
    return predictor
