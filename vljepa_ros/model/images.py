"""Public image encoders as X-encoders: each frame by itself, its patches as visual tokens.

Invariant: the tokens of a frame are those of transformers' own forward, whatever frames stand
beside it in the clip. Time enters in the predictor (paper, section 4.5).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel

KINDS = ("dinov2", "dinov2_with_registers", "dinov3_vit", "siglip_vision_model", "efficientnet")
"""Model types of transformers whose configuration may be a model's `x_encoder_config`.

Beside their own fields such a configuration has those of a V-JEPA 2 that the package reads
(`frames_per_clip`, `tubelet_size` 1, `crop_size`, `patch_size`, `hidden_size`), and `image_mean`
and `image_std`, of pixels of 0 to 1.
"""


class ImageEncoder(nn.Module):
    """uint8 frames `[B, T, S, S, 3]` to visual tokens `[B, T·n, hidden]`, n patches a frame.

    Tokens that stand for no patch (class, registers) are left out. It always runs as it was
    published, without dropout and with its own statistics, while its weights may learn.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, vision: Any, attention: str):
        super().__init__()
        vision._attn_implementation = attention
        self.encoder = AutoModel.from_config(vision, dtype=torch.float32)
        self.patches = (vision.crop_size // vision.patch_size) ** 2
        self.convolves = vision.model_type == "efficientnet"
        spread = torch.tensor(vision.image_std)
        self.register_buffer("scale", 1 / (255 * spread), persistent=False)
        self.register_buffer("shift", -torch.tensor(vision.image_mean) / spread, persistent=False)

    def train(self, mode: bool = True) -> ImageEncoder:
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, frames: Tensor) -> Tensor:
        pixels = frames.flatten(0, 1).float() * self.scale + self.shift
        states = self._states(pixels.permute(0, 3, 1, 2))
        return states.reshape(-1, frames.shape[1] * self.patches, states.shape[-1])

    def _states(self, pixels: Tensor) -> Tensor:
        if self.convolves:
            cells = self.encoder.encoder(self.encoder.embeddings(pixels)).last_hidden_state
            return cells.flatten(2).transpose(1, 2)
        return self.encoder(pixel_values=pixels).last_hidden_state[:, -self.patches :]
