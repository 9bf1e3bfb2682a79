"""One configuration object says everything about a VL-JEPA.

Invariant: a `VLJepaConfig` written as JSON and read again builds a model whose state dict has the
same names and shapes.
"""

from __future__ import annotations

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, BertConfig, LlamaConfig, VJEPA2Config
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec


@strict
class VLJepaConfig(PreTrainedConfig):
    """A VL-JEPA (arXiv 2512.10942, section 3): X-encoder, predictor, Y-encoder and Y-decoder.

    `x_encoder_config` also carries the clip: `frames_per_clip` frames of `crop_size` pixels in
    tubelets of `tubelet_size`; `sample_rate` is in frames per second. `visual_merge` joins that
    many by that many neighbouring visual tokens of a tubelet before the predictor (1: none).
    """

    model_type = "vl_jepa"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "x_encoder_config": SubConfigSpec(config_class=VJEPA2Config),
        "predictor_config": SubConfigSpec(config_class=LlamaConfig),
        "y_encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="bert"),
        "y_decoder_config": SubConfigSpec(config_class=LlamaConfig),
    }

    x_encoder_config: dict | PreTrainedConfig | None = None
    predictor_config: dict | PreTrainedConfig | None = None
    y_encoder_config: dict | PreTrainedConfig | None = None
    y_decoder_config: dict | PreTrainedConfig | None = None
    embedding_dim: int = 384
    sample_rate: float = 4.0
    visual_merge: int = 1
    query_length: int = 64
    text_length: int = 64
    default_query: str = "What is happening?"
    text_prompt: str = "{}"

    @property
    def visual_tokens(self) -> int:
        """Visual tokens that the X-encoder makes of one clip."""
        vision = self.x_encoder_config
        side = vision.crop_size // vision.patch_size
        return vision.frames_per_clip // vision.tubelet_size * side * side


def tabletop(vocab_size: int = 2048) -> VLJepaConfig:
    """The configuration of the bundle that ships with the package: 8 frames of 96 px at 4 Hz.

    `vocab_size` counts the tokens that the predictor's queries and the Y-decoder share.
    """
    vision = VJEPA2Config(
        crop_size=96, frames_per_clip=8, hidden_size=192, num_hidden_layers=6, num_attention_heads=6
    )
    blocks = LlamaConfig(
        vocab_size=vocab_size, hidden_size=192, intermediate_size=512, num_hidden_layers=4,
        num_attention_heads=6, max_position_embeddings=256, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    text = BertConfig(
        hidden_size=384, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=12,
    )  # fmt: skip
    return VLJepaConfig(
        x_encoder_config=vision,
        predictor_config=blocks,
        y_encoder_config=text,
        y_decoder_config=LlamaConfig(**{**blocks.to_dict(), "max_position_embeddings": 64}),
        visual_merge=2,
        query_length=24,
    )


PRESETS = {"tabletop": tabletop}
