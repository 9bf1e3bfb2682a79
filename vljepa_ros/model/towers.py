"""Public two-tower models (CLIP, SigLIP, SigLIP 2 of a fixed size) as the networks of a bundle.

Invariant: with one frame in every place of the clip, a clip's embedding and a text's have the
cosine that transformers' own forward gives the picture and the text. Shapes: B clips or texts, T
frames, S pixels, L text tokens, D numbers in an embedding.

X-encoder: the image tower, a frame a chunk. Predictor: what a clip's frames mean together, without
a weight to learn. Y-encoder: the text tower. The towers' layers are transformers'.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, SiglipModel

from .networks import MASKED

HALVED = 0.25  # of the clip's frames: how much older a frame is that counts half as much


class ImageTower(nn.Module):
    """Frames uint8 `[B, 1, S, S, 3]` to their embeddings `[B, 1, D]`, unit length.

    `mean` and `deviation` are what the model's processor normalises pixels of 0 to 1 with.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: CLIPModel | SiglipModel, mean: Sequence[float],
                 deviation: Sequence[float]):  # fmt: skip
        super().__init__()
        self.tower = model.vision_model
        self.projection = getattr(model, "visual_projection", None)
        spread = torch.tensor(deviation)
        self.register_buffer("scale", 1 / (255 * spread), persistent=False)
        self.register_buffer("shift", -torch.tensor(mean) / spread, persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        pixels = frames.flatten(0, 1).float() * self.scale + self.shift
        states = self.tower.embeddings(pixels.permute(0, 3, 1, 2))
        if self.projection is None:  # SigLIP
            states = _through(self.tower.encoder.layers, states, None)
            picture = self.tower.head(self.tower.post_layernorm(states))
        else:
            states = _through(self.tower.encoder.layers, self.tower.pre_layrnorm(states), None)
            picture = self.projection(self.tower.post_layernorm(states[:, 0]))
        return F.normalize(picture, dim=-1)[:, None]


class TextTower(nn.Module):
    """Text ids and mask `[B, L]` int64 to embeddings `[B, D]`, unit length.

    CLIP reads a text up to its end, the last token that the mask shows. SigLIP reads all L tokens,
    the padding, too, as it was trained with: `pad` is the token that the mask's zeros stand for.
    """

    bias: Tensor | None

    def __init__(self, model: CLIPModel | SiglipModel, pad: int):
        super().__init__()
        self.tower, self.pad = model.text_model, pad
        self.projection = getattr(model, "text_projection", None)
        length = model.config.text_config.max_position_embeddings
        later = torch.ones(length, length).triu(1) * MASKED
        self.register_buffer("bias", None if self.projection is None else later, persistent=False)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        states = self.tower.embeddings(torch.where(mask > 0, ids, self.pad))
        states = _through(self.tower.encoder.layers, states, self.bias)
        states = self.tower.final_layer_norm(states)
        if self.projection is None:
            text = self.tower.head(states[:, -1])
        else:
            last = (mask - F.pad(mask[:, 1:], (0, 1))).to(states.dtype)  # 1 where the mask ends
            text = self.projection((last[:, None] @ states)[:, 0])
        return F.normalize(text, dim=-1)


class NewestMean(nn.Module):
    """The meaning of a clip, `[B, 1, D]` of unit length, of its frames' embeddings `[B, T, D]`.

    A mean in which a frame counts half as much as one that is a quarter of the clip younger.
    """

    weights: Tensor

    def __init__(self, frames: int):
        super().__init__()
        age = torch.arange(frames - 1, -1, -1, dtype=torch.float32)
        weights = 0.5 ** (age / (HALVED * frames))
        self.register_buffer("weights", weights / weights.sum(), persistent=False)

    def forward(self, visual_tokens: Tensor) -> Tensor:
        return F.normalize(self.weights @ visual_tokens, dim=-1)[:, None]


def _through(layers: Any, states: Tensor, bias: Tensor | None) -> Tensor:
    for layer in layers:
        states = layer(states, attention_mask=bias)
    return states
