"""What a VL-JEPA computes, counted from its configuration.

Invariant: counted are the multiplications and additions (two FLOP) of matrix products and of the
patches' convolution; norms, softmax and activations are left out, as torch's counter leaves them.
"""

from __future__ import annotations

from typing import Any


def step(config: Any, cameras: int = 1, queries: int = 1) -> int:
    """FLOP of one step: the clips of all cameras encoded, every query answered for each."""
    return cameras * (x_encoder(config) + predictor(config, queries))


def x_encoder(config: Any) -> int:
    """FLOP of one clip; `config` is a `VLJepaConfig`, here and below."""
    vision = config.x_encoder_config
    tokens, width = config.visual_tokens, vision.hidden_size
    patch = 3 * vision.tubelet_size * vision.patch_size**2
    inner = int(width * vision.mlp_ratio)
    layer = 4 * _product(tokens, width, width)
    layer += _attention(tokens, tokens // config.chunks, width)
    layer += 2 * _product(tokens, width, inner)
    return _product(tokens, patch, width) + vision.num_hidden_layers * layer


def predictor(config: Any, queries: int = 1) -> int:
    """FLOP of one clip's visual tokens with so many queries."""
    blocks, width = config.predictor_config, config.predictor_config.hidden_size
    merged = config.visual_tokens // config.visual_merge**2
    seen = config.x_encoder_config.hidden_size * config.visual_merge**2
    tokens = merged + config.query_length
    answer = blocks.num_hidden_layers * _gated_layer(blocks, tokens)
    answer += _product(1, width, config.embedding_dim)
    return _product(merged, seen, width) + queries * answer


def y_encoder(config: Any) -> int:
    """FLOP of one text, padded to its full length."""
    text, tokens = config.y_encoder_config, config.text_length
    width = text.hidden_size
    if text.model_type == "bert":
        layer = 4 * _product(tokens, width, width) + _attention(tokens, tokens, width)
        layer += 2 * _product(tokens, width, text.intermediate_size)
    else:
        layer = _gated_layer(text, tokens)
    return text.num_hidden_layers * layer + _product(1, width, config.embedding_dim)


def y_decoder(config: Any, past: int) -> int:
    """FLOP of one token after `past` others; 0 where the model has no decoder."""
    blocks = config.y_decoder_config
    if blocks is None:
        return 0
    width = blocks.hidden_size
    layer = 4 * _product(1, width, width) + _attention(1, past + 1, width)
    layer += 2 * _product(1, width, blocks.intermediate_size)
    ends = _product(1, config.embedding_dim, width) + _product(1, width, blocks.vocab_size)
    return blocks.num_hidden_layers * layer + ends


def _product(rows: int, inner: int, columns: int) -> int:
    return 2 * rows * inner * columns


def _attention(queries: int, keys: int, width: int) -> int:
    """Scores and mixture of all heads, `width` numbers together."""
    return 2 * _product(queries, width, keys)


def _gated_layer(blocks: Any, tokens: int) -> int:
    """A layer of Llama or Gemma: grouped keys and values, and a gated inner layer."""
    width = blocks.hidden_size
    size = getattr(blocks, "head_dim", None) or width // blocks.num_attention_heads
    heads, shared = blocks.num_attention_heads * size, blocks.num_key_value_heads * size
    return (
        2 * _product(tokens, width, heads) + 2 * _product(tokens, width, shared)
        + _attention(tokens, tokens, heads) + 3 * _product(tokens, width, blocks.intermediate_size)
    )  # fmt: skip
