"""The contenders of `vljepa bench engines` that need torch: eager, compiled, and saccadic.

Invariant: they run the weights of the bundle, restored from its graphs, in fp32; where torch has
a CUDA device, in fp16 autocast there.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import nn

from vljepa_ros.bundle.spec import Bundle
from vljepa_ros.errors import EngineError
from vljepa_ros.inference.tensors import stacked
from vljepa_ros.model.networks import IMAGENET_DEVIATION, IMAGENET_MEAN, VLJepa, XEncoder
from vljepa_ros.model.restore import restore, restore_networks

from .contender import Clips

# V-JEPA 2's attention: torch's fused one gains nothing on a CPU, and much on a GPU.
ATTENTION = {"cpu": "eager", "cuda": "sdpa"}


def open_contender(kind: str, bundle: Bundle, threads: int) -> Any:
    """The contender `torch`, `compile` or `saccadic`. EngineError, or RestoreError, a sentence."""
    if threads:
        torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "saccadic" and find_spec("saccade") is None:
        raise EngineError("saccadic is not installed: pip install --no-deps saccadic PyYAML.")
    if kind == "saccadic":
        return Saccadic(restore(bundle.path), device)
    return Torch(restore_networks(bundle.path), device, compiled=kind == "compile")


class Torch:
    """The networks as `vljepa_ros.model` has them, eager or through torch.compile."""

    def __init__(
        self, networks: dict[str, nn.Module], device: str, *, compiled: bool = False
    ) -> None:
        self.notes: list[str] = []
        self._device = torch.device(device)
        precision = "fp16 autocast" if device == "cuda" else "fp32"
        if isinstance(networks["x_encoder"], XEncoder):
            networks["x_encoder"].encoder.config._attn_implementation = ATTENTION[device]
        moved = {name: network.to(self._device) for name, network in networks.items()}
        self._networks: dict[str, Any] = {
            name: torch.compile(network) if compiled else network for name, network in moved.items()
        }
        self.parts = dict.fromkeys(self._networks, f"{precision}, {device}")

    def encode(self, clips: Clips) -> Any:
        return self._run("x_encoder", stacked(clips))

    def fetch(self, tokens: Any) -> np.ndarray:
        return tokens.float().cpu().numpy()  # type: ignore[no-any-return]

    def predict(self, tokens: Any, *query: np.ndarray) -> np.ndarray:
        if isinstance(tokens, list):  # of clips, in chunks
            tokens = torch.stack([torch.cat(list(clip.parts)) for clip in tokens])
        return self.fetch(self._run("predictor", tokens, *query))

    def embed_text(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return self.fetch(self._run("y_encoder", ids, mask))

    def decode(self, embedding: np.ndarray, ids: np.ndarray, past: np.ndarray) -> np.ndarray:
        return self.fetch(self._run("y_decoder", embedding, ids, past)[0])

    def _run(self, part: str, *inputs: Any) -> Any:
        half = self._device.type == "cuda"
        with torch.inference_mode(), torch.autocast(self._device.type, torch.float16, half):
            return self._networks[part](
                *(torch.as_tensor(value).to(self._device) for value in inputs)
            )


class Saccadic(Torch):
    """V-JEPA 2 as saccadic runs it, on the bundle's weights; it has no predictor for questions.

    It takes normalised float clips `[B, T, 3, S, S]`: made here, and timed, as every contender
    begins with uint8 pictures. V-JEPA 2's own predictor, which saccadic runs after the encoder and
    does not use, is spared it.
    """

    def __init__(self, model: VLJepa, device: str) -> None:
        from transformers import VJEPA2Config, VJEPA2Model

        settings = import_module("saccade.config")
        vision: Any = model.config.x_encoder_config
        own = VJEPA2Config(**{**vision.to_dict(), "attn_implementation": "sdpa"})  # as it loads it
        backbone = VJEPA2Model(own).eval()
        backbone.encoder.load_state_dict(model.x_encoder.encoder.state_dict())
        backbone.forward = partial(backbone.forward, skip_predictor=True)
        dtype = "float16" if device == "cuda" else "float32"
        asked = settings.ModelConfig(
            frames=model.config.chunk, resolution=own.crop_size, device=device, dtype=dtype
        )
        spec = settings.CheckpointSpec(
            "bundle", "", 0.0, model.config.chunk, own.crop_size, own.hidden_size,
            patch_size=own.patch_size, tubelet_size=own.tubelet_size,
        )  # fmt: skip
        self._encoder = import_module("saccade.model").FrozenEncoder(
            backbone.to(device, getattr(torch, dtype)), spec, asked
        )
        mean, deviation = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_DEVIATION)
        self._device = torch.device(device)
        self._scale = (1 / (255 * deviation)).to(device)
        self._shift = (-mean / deviation).to(device)
        self.parts = {"x_encoder": f"{dtype.replace('float', 'fp')}, {device}"}
        self.notes = ["saccadic has a V-JEPA 2 encoder, and nothing to measure beside the rest."]

    def encode(self, clips: Clips) -> Any:
        frames = torch.from_numpy(stacked(clips)).to(self._device)
        with torch.inference_mode():
            pixels = frames.float() * self._scale + self._shift
            return self._encoder(pixels.permute(0, 1, 4, 2, 3))
