"""One configuration object says everything about a VL-JEPA.

Invariant: a `VLJepaConfig` written as JSON and read again builds a model whose state dict has the
same names and shapes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, BertConfig, Gemma3TextConfig, LlamaConfig, VJEPA2Config
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

if TYPE_CHECKING:
    SubConfig = Any  # once a configuration is made, one of the classes below
else:
    SubConfig = dict | PreTrainedConfig | None  # what is accepted, and looked at when it is made

CONFIG = "config.json"
"""The file of a configuration, beside the weights of a training and in a bundle."""


@strict
class VLJepaConfig(PreTrainedConfig):
    """A VL-JEPA (arXiv 2512.10942, section 3): X-encoder, predictor, Y-encoder and Y-decoder.

    `x_encoder_config` is of V-JEPA 2 or of an image encoder (`images.KINDS`). It also carries the
    clip: `frames_per_clip` frames of `crop_size` pixels in tubelets of `tubelet_size`;
    `sample_rate` is in frames per second. `x_encoder_chunk`: frames that a V-JEPA 2 encodes by
    themselves, and then the predictor adds what it has learned of each tubelet's time; None: it
    encodes the whole clip, whose tokens know their time. `visual_merge` joins that many by that
    many neighbouring visual tokens of a tubelet before the predictor (1: none). `y_decoder_config`
    None: the model has no Y-decoder. `query_length` and `text_length` are in tokens; shorter texts
    are padded.
    """

    model_type = "vl_jepa"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "x_encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="vjepa2"),
        "predictor_config": SubConfigSpec(config_class=LlamaConfig),
        "y_encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="bert"),
        "y_decoder_config": SubConfigSpec(config_class=LlamaConfig, optional=True),
    }

    x_encoder_config: SubConfig = None
    predictor_config: SubConfig = None
    y_encoder_config: SubConfig = None
    y_decoder_config: SubConfig = None
    embedding_dim: int = 384
    sample_rate: float = 4.0
    x_encoder_chunk: int | None = None
    visual_merge: int = 1
    query_length: int = 64
    text_length: int = 64
    default_query: str = "What is happening?"
    text_prompt: str = "{}"

    @property
    def chunk(self) -> int:
        """Frames that the X-encoder looks at together: 1 of an image encoder."""
        vision = self.x_encoder_config
        if vision.model_type != "vjepa2":
            return 1
        return self.x_encoder_chunk or vision.frames_per_clip

    @property
    def chunks(self) -> int:
        """How many of them make a clip."""
        return self.x_encoder_config.frames_per_clip // self.chunk

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


def open_vljepa() -> VLJepaConfig:
    """The public Open-VLJEPA checkpoint: V-JEPA 2 ViT-L, Llama-3.2-1B, EmbeddingGemma-300M.

    The numbers are those of `facebook/vjepa2-vitl-fpc64-256`, the last 8 layers of
    `meta-llama/Llama-3.2-1B` and `google/embeddinggemma-300m`. It has no Y-decoder. It was trained
    on 8 frames spread evenly over clips of 10 to 30 s: at 0.5 frames per second they span 14 s.
    """
    vision = VJEPA2Config(
        patch_size=16, crop_size=256, frames_per_clip=8, tubelet_size=2, hidden_size=1024,
        num_attention_heads=16, num_hidden_layers=24, mlp_ratio=4.0,
    )  # fmt: skip
    blocks = LlamaConfig(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=8,
        num_attention_heads=32, num_key_value_heads=8, head_dim=64, rms_norm_eps=1e-5,
        max_position_embeddings=131072, tie_word_embeddings=True, bos_token_id=128000,
        eos_token_id=128001, pad_token_id=128004,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
    )  # fmt: skip
    text = Gemma3TextConfig(
        vocab_size=262144, hidden_size=768, intermediate_size=1152, num_hidden_layers=24,
        num_attention_heads=3, num_key_value_heads=1, head_dim=256, query_pre_attn_scalar=256,
        max_position_embeddings=2048, sliding_window=512, use_bidirectional_attention=True,
    )  # fmt: skip
    return VLJepaConfig(
        x_encoder_config=vision,
        predictor_config=blocks,
        y_encoder_config=text,
        embedding_dim=1536,
        sample_rate=0.5,
        query_length=64,
        text_length=64,
        default_query="Describe the video.",
    )


def paper() -> VLJepaConfig:
    """VL-JEPA as the paper has it (arXiv 2512.10942, sections 3.1 and 4.1): 1.6e9 parameters.

    The networks of `open_vljepa`, which follow it, with queries and texts of up to 512 tokens.
    8 frames, as in most of its video training (it ends with 32 frames, and version 1 of the paper
    has 16: set `frames_per_clip`). The paper does not give the Y-decoder's size; this one is ours.
    """
    config = open_vljepa()
    config.query_length = config.text_length = 512
    config.y_decoder_config = LlamaConfig(
        vocab_size=128256, hidden_size=512, intermediate_size=2048, num_hidden_layers=6,
        num_attention_heads=8, max_position_embeddings=512, bos_token_id=128000,
        eos_token_id=128001, pad_token_id=128004,
    )  # fmt: skip
    return config


PRESETS = {"tabletop": tabletop, "open-vljepa": open_vljepa, "paper": paper}
