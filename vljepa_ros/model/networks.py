"""The four networks of VL-JEPA and the model that joins them.

Invariant: predicted and text embeddings live in one space and have unit length, so their dot
product is their cosine. Shapes: B clips, Q queries, T frames, N visual tokens, L text tokens,
D = `embedding_dim`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2Encoder, VJEPA2RopeAttention

from .config import VLJepaConfig
from .images import KINDS, ImageEncoder

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
ATTENTION = "eager"  # with torch's fused CPU attention a training step took 1.7 times as long
MASKED = -1e4  # added to attention scores of padding; finite in fp16 too


def rotary_tables(attention: VJEPA2RopeAttention, tokens: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[tokens, head_dim]`, fp32, of V-JEPA 2's rotary positions.

    V-JEPA 2 computes them anew in every layer and in the activations' dtype; here they are made
    once. A head is divided into thirds for time, height and width; what is left is not turned.
    """
    ids = torch.arange(tokens)
    side = attention.grid_size
    positions = (ids // (side * side), ids % (side * side) // side, ids % side)
    angles = []
    for position, width in zip(
        positions, (attention.d_dim, attention.h_dim, attention.w_dim), strict=True
    ):
        omega = 10000.0 ** -(torch.arange(width // 2, dtype=torch.float64) / (width / 2))
        angles.append((position[:, None] * omega).repeat(1, 2))
    rest = attention.attention_head_size - sum(angle.shape[1] for angle in angles)
    angles.append(torch.zeros(tokens, rest))
    table = torch.cat(angles, dim=1)
    return table.cos().float(), table.sin().float()


class BakedRotary(nn.Module):
    """The rotary positions of every X-encoder layer, from one pair of fp32 tables."""

    cos: Tensor
    sin: Tensor

    def __init__(self, attention: VJEPA2RopeAttention, tokens: int):
        super().__init__()
        cos, sin = rotary_tables(attention, tokens)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, states: Tensor, _positions: object = None) -> Tensor:
        """Turn queries or keys `[B, heads, N, head_dim]`; N may be any prefix of the tokens."""
        tokens = states.shape[2]
        cos, sin = self.cos[:tokens].to(states.dtype), self.sin[:tokens].to(states.dtype)
        first, second = states.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack((-second, first), dim=-1).flatten(-2)
        return states * cos + turned * sin


class XEncoder(nn.Module):
    """V-JEPA 2's encoder: uint8 frames `[B, T, H, W, 3]` to visual tokens `[B, N, hidden]`.

    Paper, section 3.1. Scaling to 0..1 and ImageNet normalisation happen inside. T is that of the
    clip, of some of its chunks, or less than a chunk; no chunk is looked at from another, and as
    V-JEPA 2's positions are relative, that is what a mask on attention would give.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, config: VLJepaConfig):
        super().__init__()
        vision = config.x_encoder_config
        vision._attn_implementation = ATTENTION
        self.chunk = config.chunk
        if vision.frames_per_clip % self.chunk or self.chunk % vision.tubelet_size:
            raise ValueError(
                f"a chunk of {self.chunk} frames is no multiple of the tubelet's "
                f"{vision.tubelet_size} that divides the clip's {vision.frames_per_clip}"
            )
        self.encoder = VJEPA2Encoder(vision)
        tokens = config.visual_tokens // config.chunks
        rotary = BakedRotary(self.encoder.layer[0].attention, tokens)
        for layer in self.encoder.layer:
            # The bound method: a module set as an attribute would not hide the class's own method.
            layer.attention.apply_rotary_embeddings = rotary.forward
        self.rotary = rotary
        mean, deviation = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_DEVIATION)
        self.register_buffer("scale", 1 / (255 * deviation), persistent=False)
        self.register_buffer("shift", -mean / deviation, persistent=False)
        _initialise(self, vision.initializer_range)

    def forward(self, frames: Tensor) -> Tensor:
        together = min(self.chunk, frames.shape[1])
        chunks = frames.reshape(-1, together, *frames.shape[2:])
        pixels = chunks.float() * self.scale + self.shift
        states = self.encoder(pixels.permute(0, 1, 4, 2, 3)).last_hidden_state
        return states.reshape(len(frames), -1, states.shape[-1])


class Predictor(nn.Module):
    """Llama blocks without the causal mask over visual and query tokens (paper, section 3.1).

    The output is averaged over all tokens but padding and projected to the shared space.
    """

    def __init__(self, config: VLJepaConfig):
        super().__init__()
        blocks, vision = config.predictor_config, config.x_encoder_config
        blocks._attn_implementation = ATTENTION
        self.merge = config.visual_merge
        self.side = vision.crop_size // vision.patch_size
        if self.side % self.merge:
            raise ValueError(
                f"visual_merge {self.merge} does not divide the {self.side} patches of a side"
            )
        self.vis_proj = nn.Linear(vision.hidden_size * self.merge**2, blocks.hidden_size)
        self.embed_tokens = nn.Embedding(blocks.vocab_size, blocks.hidden_size)
        self.embed_times: nn.Parameter | None = None
        if config.x_encoder_chunk is not None:
            times = vision.frames_per_clip // vision.tubelet_size
            self.embed_times = nn.Parameter(torch.zeros(times, blocks.hidden_size))
        self.layers = nn.ModuleList(
            LlamaDecoderLayer(blocks, index) for index in range(blocks.num_hidden_layers)
        )
        self.norm = LlamaRMSNorm(blocks.hidden_size, eps=blocks.rms_norm_eps)
        self.out_proj = nn.Linear(blocks.hidden_size, config.embedding_dim)
        self.rotary = LlamaRotaryEmbedding(blocks)
        _initialise(self, blocks.initializer_range)

    def merged(self, visual_tokens: Tensor) -> Tensor:
        """Join `merge` x `merge` neighbours of each tubelet: `[B, N, C]` to `[B, N/m², C·m²]`."""
        if self.merge == 1:
            return visual_tokens
        batch, _, width = visual_tokens.shape
        coarse, m = self.side // self.merge, self.merge
        grid = visual_tokens.reshape(batch, -1, coarse, m, coarse, m, width)
        return grid.permute(0, 1, 2, 4, 3, 5, 6).reshape(batch, -1, m * m * width)

    def seen(self, merged: Tensor) -> Tensor:
        """Joined visual tokens `[B, N/m², C·m²]` as the layers take them, `[B, N/m², width]`.

        Those of fewer tubelets than a clip has are the newest ones.
        """
        vision = self.vis_proj(merged)
        if self.embed_times is None:
            return vision
        tubelets = merged.shape[1] // (self.side // self.merge) ** 2
        times = self.embed_times[-tubelets:, None]
        return (vision.unflatten(1, (tubelets, -1)) + times).flatten(1, 2)

    def forward(self, visual_tokens: Tensor, query_ids: Tensor, query_mask: Tensor) -> Tensor:
        """Every clip with every query.

        `visual_tokens` `[B, N, C]`, `query_ids` and `query_mask` `[Q, L]` int64 (mask 1: a token)
        to `[B, Q, D]`, unit length.
        """
        vision = self.seen(self.merged(visual_tokens))
        batch, queries = vision.shape[0], query_ids.shape[0]
        text = self.embed_tokens(query_ids)
        vision = vision[:, None].expand(-1, queries, -1, -1).flatten(0, 1)
        text = text[None].expand(batch, -1, -1, -1).flatten(0, 1)
        mask = query_mask[None].expand(batch, -1, -1).flatten(0, 1)
        return self.answer(vision, text, mask).unflatten(0, (batch, queries))

    def paired(self, visual_tokens: Tensor, query_ids: Tensor, query_mask: Tensor) -> Tensor:
        """Clip i with query i, as in training: `[B, N, C]`, `[B, L]`, `[B, L]` to `[B, D]`."""
        vision = self.seen(self.merged(visual_tokens))
        return self.answer(vision, self.embed_tokens(query_ids), query_mask)

    def answer(self, vision: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        states = torch.cat([vision, text.to(vision.dtype)], dim=1)
        mask = torch.cat([mask.new_ones(vision.shape[:2]), mask], dim=1)
        bias = ((1 - mask) * MASKED).to(states.dtype)[:, None, None, :]
        positions = torch.arange(states.shape[1], device=states.device)[None]
        rotary = self.rotary(states, positions)
        for layer in self.layers:
            states = layer(states, attention_mask=bias, position_embeddings=rotary)
        return F.normalize(self.out_proj(masked_mean(self.norm(states), mask)).float(), dim=-1)


class YEncoder(nn.Module):
    """A sentence encoder with masked mean and a linear head (paper, section 3.1).

    `model` is what `AutoModel` makes of `y_encoder_config`: MiniLM, or Gemma 3 text, which looks
    both ways where its configuration says `use_bidirectional_attention`.
    """

    def __init__(self, config: VLJepaConfig):
        super().__init__()
        self.model = AutoModel.from_config(config.y_encoder_config, dtype=torch.float32)
        self.projector = nn.Linear(config.y_encoder_config.hidden_size, config.embedding_dim)

    def sentence(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Text ids and mask `[B, L]` int64 to the mean of the hidden states `[B, hidden]`."""
        states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return masked_mean(states, mask)

    def head(self, sentence: Tensor) -> Tensor:
        return F.normalize(self.projector(sentence).float(), dim=-1)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Text ids and mask `[B, L]` int64 to embeddings `[B, D]`, unit length."""
        return self.head(self.sentence(ids, mask))


class YDecoder(nn.Module):
    """A small causal transformer that turns one embedding into text (paper, section 3.1).

    The embedding is added to every token's input, so one step needs nothing but the cache.
    """

    def __init__(self, config: VLJepaConfig):
        super().__init__()
        blocks = config.y_decoder_config
        self.heads, self.width = blocks.num_attention_heads, blocks.hidden_size
        self.embed_tokens = nn.Embedding(blocks.vocab_size, blocks.hidden_size)
        self.embed_positions = nn.Embedding(blocks.max_position_embeddings, blocks.hidden_size)
        self.condition = nn.Linear(config.embedding_dim, blocks.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(blocks.hidden_size, self.heads, blocks.intermediate_size)
            for _ in range(blocks.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(blocks.hidden_size)
        _initialise(self, blocks.initializer_range)

    def forward(self, embedding: Tensor, ids: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Continue texts by their newest tokens.

        `embedding` `[B, D]`, `ids` `[B, S]` int64, `past` `[2·layers, B, heads, P, head_dim]` (P
        tokens decoded before, 0 at the start) to logits of the last token `[B, vocabulary]` and
        the cache grown by S.
        """
        states, present = self.states(embedding, ids, past)
        return self.logits(states[:, -1]), present

    def states(self, embedding: Tensor, ids: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        length, before = ids.shape[1], past.shape[3]
        places = torch.arange(length, device=ids.device) + before
        states = self.embed_tokens(ids) + self.embed_positions(places)
        states = states + self.condition(embedding)[:, None]
        visible = torch.arange(before + length, device=ids.device)[None] <= places[:, None]
        bias = torch.where(visible, 0.0, MASKED)
        present = []
        for index, layer in enumerate(self.layers):
            states, key, value = layer(states, past[2 * index], past[2 * index + 1], bias)
            present += [key, value]
        return self.norm(states), torch.stack(present)

    def logits(self, states: Tensor) -> Tensor:
        return F.linear(states, self.embed_tokens.weight)

    def empty_cache(self, batch: int) -> Tensor:
        head_dim = self.width // self.heads
        return self.condition.weight.new_zeros(2 * len(self.layers), batch, self.heads, 0, head_dim)


class DecoderLayer(nn.Module):
    """A pre-norm causal layer whose keys and values are handed in and out."""

    def __init__(self, width: int, heads: int, inner: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(
        self, states: Tensor, past_key: Tensor, past_value: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        qkv = self.qkv(self.norm1(states)).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        key = torch.cat([past_key.to(key.dtype), key], dim=2)
        value = torch.cat([past_value.to(value.dtype), value], dim=2)
        mixed = F.scaled_dot_product_attention(query, key, value, bias.to(query.dtype))
        states = states + self.proj(mixed.transpose(1, 2).flatten(2))
        return states + self.down(F.gelu(self.up(self.norm2(states)))), key, value


class VLJepa(nn.Module):
    """The whole model; its parts are exported one graph each.

    `y_decoder` is None where the configuration has none.
    """

    def __init__(self, config: VLJepaConfig):
        super().__init__()
        self.config = config
        vision = config.x_encoder_config
        images = vision.model_type in KINDS
        self.x_encoder = ImageEncoder(vision, ATTENTION) if images else XEncoder(config)
        self.predictor = Predictor(config)
        self.y_encoder = YEncoder(config)
        self.y_decoder = YDecoder(config) if config.y_decoder_config is not None else None


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """The mean of states `[B, L, C]` over the tokens where mask `[B, L]` is 1."""
    weights = mask[..., None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


def _initialise(module: nn.Module, deviation: float) -> None:
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Conv3d)):
            nn.init.trunc_normal_(part.weight, std=deviation)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=deviation)
