"""X-encoder and predictor as they are exported: the same numbers in fewer and bigger operations.

Invariant: a fused network has the outputs of the one that it was made from, and `unpacked` gives
back that one's weights. The networks of transformers stay the truth; these are only exported.

What differs: patches enter a single matrix product as grey levels less 128, which holds scaling and
normalisation; query and key come from one product; rotary positions are a product with a signed
permutation and two tables, which also hold the scale of the softmax; keys and values of grouped
queries are not repeated. Matrices are kept as `[in, out]`, which the exporter leaves as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import GELUActivation
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2Layer

from .networks import MASKED, Predictor, XEncoder

CENTRE = 128  # grey level; what is left fits an int8
State = dict[str, Tensor]


class Product(nn.Module):
    """`x @ weight + bias` with a weight `[in, out]`, of linear layers laid side by side."""

    def __init__(self, *layers: nn.Linear):
        super().__init__()
        self.sizes = [layer.out_features for layer in layers]
        weights: list[Tensor] = [layer.weight for layer in layers]
        self.weight = nn.Parameter(torch.cat(weights).T.contiguous())
        biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
        self.bias = nn.Parameter(torch.cat(biases)) if biases else None

    def forward(self, states: Tensor) -> Tensor:
        if self.bias is None:
            return states @ self.weight
        if states.ndim == 2:
            return torch.addmm(self.bias, states, self.weight)
        return states @ self.weight + self.bias

    def unpacked(self, *names: str) -> State:
        """Weights and biases of the linear layers that this was made from, under their names."""
        state: State = {}
        weights = self.weight.split(self.sizes, dim=1)
        for name, weight in zip(names, weights, strict=True):
            state[f"{name}.weight"] = weight.T
        if self.bias is not None:
            for name, bias in zip(names, self.bias.split(self.sizes), strict=True):
                state[f"{name}.bias"] = bias
        return state


class Rotary(nn.Module):
    """Turns heads `[B, heads, positions, head_dim]`: `x * cos + (x @ swap) * sin`.

    The tables are fp32, `[positions, head_dim]`. They also hold the root of the softmax's scale, as
    queries and keys are both turned. `swap` is `[head_dim, head_dim]`.
    """

    cos: Tensor
    sin: Tensor
    swap: Tensor

    def __init__(self, cos: Tensor, sin: Tensor, swap: Tensor, scale: float):
        super().__init__()
        self.register_buffer("cos", cos * scale**0.5, persistent=False)
        self.register_buffer("sin", sin * scale**0.5, persistent=False)
        self.register_buffer("swap", swap, persistent=False)

    def forward(self, heads: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        cos, sin = tables
        return heads * cos + (heads @ self.swap) * sin


def pairs(head_dim: int) -> Tensor:
    """V-JEPA 2's: of neighbours (a, b) to (-b, a)."""
    swap = torch.zeros(head_dim, head_dim)
    even = torch.arange(0, head_dim, 2)
    swap[even + 1, even], swap[even, even + 1] = -1.0, 1.0
    return swap


def halves(head_dim: int) -> Tensor:
    """Llama's: of halves (a, b) to (-b, a)."""
    half = torch.eye(head_dim // 2)
    zero = torch.zeros_like(half)
    return torch.cat([torch.cat([zero, half], 1), torch.cat([-half, zero], 1)])


def gelu(states: Tensor) -> Tensor:
    """GELU in the order of operations that ONNX Runtime knows as one."""
    return states * (torch.erf(states / math.sqrt(2)) + 1) * 0.5


class Block(nn.Module):
    """A layer of V-JEPA 2 on states `[B·N, width]`."""

    def __init__(self, layer: VJEPA2Layer, rotary: Rotary):
        super().__init__()
        attention, mlp = layer.attention, layer.mlp
        self.heads, self.head_dim = attention.num_attention_heads, attention.attention_head_size
        self.rotary = rotary
        self.norm1, self.norm2 = layer.norm1, layer.norm2
        self.qkv = Product(attention.query, attention.key, attention.value)
        self.proj = Product(attention.proj)
        self.up, self.down = Product(mlp.fc1), Product(mlp.fc2)
        self.activation = gelu if isinstance(mlp.activation, GELUActivation) else mlp.activation

    def forward(self, states: Tensor) -> Tensor:
        tokens, heads = self.rotary.cos.shape[0], self.heads
        qkv = self.qkv(self.norm1(states)).reshape(-1, tokens, 3 * heads, self.head_dim)
        turned, value = qkv.transpose(1, 2).split([2 * heads, heads], dim=1)
        query, key = self.rotary(turned, (self.rotary.cos, self.rotary.sin)).split(heads, dim=1)
        mixed = (query @ key.transpose(2, 3)).softmax(-1) @ value
        mixed = mixed.transpose(1, 2).reshape(-1, heads * self.head_dim)
        states = states + self.proj(mixed)
        return states + self.down(self.activation(self.up(self.norm2(states))))

    def unpacked(self, name: str) -> State:
        attention = f"{name}.attention"
        return {
            **self.qkv.unpacked(*(f"{attention}.{part}" for part in ("query", "key", "value"))),
            **self.proj.unpacked(f"{attention}.proj"),
            **self.up.unpacked(f"{name}.mlp.fc1"), **self.down.unpacked(f"{name}.mlp.fc2"),
            **_named(f"{name}.norm1", self.norm1), **_named(f"{name}.norm2", self.norm2),
        }  # fmt: skip


class FusedXEncoder(nn.Module):
    """uint8 frames `[B, T, H, W, 3]` to visual tokens `[B, N, hidden]`; T: of whole chunks."""

    scale: Tensor
    shift: Tensor

    def __init__(self, source: XEncoder):
        super().__init__()
        encoder, vision = source.encoder, source.encoder.config
        attention = encoder.layer[0].attention
        self.patch, self.tubelet = vision.patch_size, vision.tubelet_size
        self.side = vision.crop_size // vision.patch_size
        rotary = Rotary(
            source.rotary.cos, source.rotary.sin, pairs(attention.attention_head_size),
            attention.scaling,
        )  # fmt: skip
        conv = encoder.embeddings.patch_embeddings.proj
        self.register_buffer("scale", source.scale, persistent=False)
        self.register_buffer("shift", source.shift + CENTRE * source.scale, persistent=False)
        weight = conv.weight.permute(2, 3, 4, 1, 0)  # tubelet, row, column, colour, width
        self.patch_weight = nn.Parameter((weight * self.scale[:, None]).flatten(0, 3))
        self.patch_bias = nn.Parameter(conv.bias + self._shifted(weight))
        self.blocks = nn.ModuleList(Block(layer, rotary) for layer in encoder.layer)
        self.norm = encoder.layernorm

    def _shifted(self, weight: Tensor) -> Tensor:
        return (weight.double().sum((0, 1, 2)).T @ self.shift.double()).float()

    def forward(self, frames: Tensor) -> Tensor:
        side, patch, tubelet = self.side, self.patch, self.tubelet
        tubes = frames.shape[1] // tubelet
        grid = frames.reshape(-1, tubelet, side, patch, side, patch * 3)
        patches = grid.permute(0, 2, 4, 1, 3, 5).reshape(-1, tubelet * patch * patch * 3)
        states = torch.addmm(self.patch_bias, patches.float() - CENTRE, self.patch_weight)
        for block in self.blocks:
            states = block(states)
        return self.norm(states).reshape(-1, tubes * side * side, states.shape[-1])

    def unpacked(self) -> State:
        """The state dict of the XEncoder that this was made from."""
        sizes = (self.tubelet, self.patch, self.patch, 3)
        weight = self.patch_weight.unflatten(0, sizes) / self.scale[:, None]
        name = "encoder.embeddings.patch_embeddings.proj"
        state = {
            f"{name}.weight": weight.permute(4, 3, 0, 1, 2),
            f"{name}.bias": self.patch_bias - self._shifted(weight),
            **_named("encoder.layernorm", self.norm),
        }
        for index, block in enumerate(cast("list[Block]", self.blocks)):
            state |= block.unpacked(f"encoder.layer.{index}")
        return state


class Norm(nn.Module):
    """RMS normalisation in the words that engines know as one operation."""

    def __init__(self, source: LlamaRMSNorm):
        super().__init__()
        self.weight, self.epsilon = source.weight, source.variance_epsilon

    def forward(self, states: Tensor) -> Tensor:
        deviation = torch.sqrt(states.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return states / deviation * self.weight


class Answerer(nn.Module):
    """A Llama block, which looks both ways, on states `[B, S, width]`."""

    def __init__(self, layer: LlamaDecoderLayer, rotary: Rotary):
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.head_dim, self.groups = attention.head_dim, attention.num_key_value_groups
        self.heads = attention.q_proj.out_features // self.head_dim
        self.rotary = rotary
        self.norm1, self.norm2 = Norm(layer.input_layernorm), Norm(layer.post_attention_layernorm)
        self.qkv = Product(attention.q_proj, attention.k_proj, attention.v_proj)
        self.proj = Product(attention.o_proj)
        self.up, self.down = Product(mlp.gate_proj, mlp.up_proj), Product(mlp.down_proj)
        self.activation = mlp.act_fn

    def forward(self, states: Tensor, bias: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        """`bias` `[B, 1, S]` is added to the scores of each query; `tables` are the rotary's."""
        batch, length, _ = states.shape
        keys = self.heads // self.groups
        qkv = self.qkv(self.norm1(states)).reshape(batch, length, -1, self.head_dim)
        turned, value = qkv.transpose(1, 2).split([self.heads + keys, keys], dim=1)
        query, key = self.rotary(turned, tables).split([self.heads, keys], dim=1)
        if self.groups > 1:  # one key for the queries of a group, one after the other
            query = query.reshape(batch, keys, -1, self.head_dim)
        scores = query @ key.transpose(2, 3) + bias[:, None]
        mixed = scores.softmax(-1) @ value
        if self.groups > 1:
            mixed = mixed.reshape(batch, self.heads, length, self.head_dim)
        states = states + self.proj(mixed.transpose(1, 2).reshape(batch, length, -1))
        gate, up = self.up(self.norm2(states)).chunk(2, dim=-1)
        return states + self.down(self.activation(gate) * up)

    def unpacked(self, name: str) -> State:
        attention, mlp = f"{name}.self_attn", f"{name}.mlp"
        return {
            **self.qkv.unpacked(*(f"{attention}.{part}_proj" for part in "qkv")),
            **self.proj.unpacked(f"{attention}.o_proj"),
            **self.up.unpacked(f"{mlp}.gate_proj", f"{mlp}.up_proj"),
            **self.down.unpacked(f"{mlp}.down_proj"),
            f"{name}.input_layernorm.weight": self.norm1.weight,
            f"{name}.post_attention_layernorm.weight": self.norm2.weight,
        }


class FusedPredictor(nn.Module):
    """Visual tokens `[B, N, C]` and queries `[Q, L]` to unit embeddings `[B, Q, D]`.

    N is `visual_tokens`; L any length up to `query_length`.
    """

    def __init__(self, source: Predictor, visual_tokens: int, query_length: int):
        super().__init__()
        attention: Any = source.layers[0].self_attn
        positions = torch.arange(visual_tokens // source.merge**2 + query_length)[None]
        cos, sin = source.rotary(torch.zeros(1), positions)
        self.rotary = Rotary(cos[0], sin[0], halves(attention.head_dim), attention.scaling)
        self.merged, self.tubelets = source.merged, visual_tokens // source.side**2
        # Laid out as they are added: else the exporter would do it, and lose the name.
        times = source.embed_times
        self.embed_times = None if times is None else nn.Parameter(times.detach()[:, None].clone())
        self.vis_proj, self.out_proj = Product(source.vis_proj), Product(source.out_proj)
        self.embed_tokens, self.norm = source.embed_tokens, Norm(source.norm)
        self.blocks = nn.ModuleList(Answerer(layer, self.rotary) for layer in source.layers)

    def forward(self, visual_tokens: Tensor, query_ids: Tensor, query_mask: Tensor) -> Tensor:
        vision = self._seen(visual_tokens)
        text = self.embed_tokens(query_ids)
        (batch, tokens, _), (queries, length) = vision.shape, query_ids.shape
        states = torch.cat(
            [vision[:, None].expand(-1, queries, -1, -1), text[None].expand(batch, -1, -1, -1)], 2
        ).flatten(0, 1)
        mask = F.pad(query_mask.float(), (tokens, 0), value=1.0)
        mask = mask[None].expand(batch, -1, -1).reshape(batch * queries, 1, tokens + length)
        bias = (1 - mask) * MASKED
        tables = self.rotary.cos[: tokens + length], self.rotary.sin[: tokens + length]
        for block in self.blocks:
            states = block(states, bias, tables)
        mean = (mask @ self.norm(states))[:, 0] / mask.sum(-1)
        return F.normalize(self.out_proj(mean), dim=-1).unflatten(0, (batch, queries))

    def _seen(self, visual_tokens: Tensor) -> Tensor:
        vision = self.vis_proj(self.merged(visual_tokens))
        if self.embed_times is None:
            return vision
        return (vision.unflatten(1, (self.tubelets, -1)) + self.embed_times).flatten(1, 2)

    def unpacked(self) -> State:
        """The state dict of the Predictor that this was made from."""
        state = {
            **self.vis_proj.unpacked("vis_proj"), **self.out_proj.unpacked("out_proj"),
            "embed_tokens.weight": self.embed_tokens.weight, "norm.weight": self.norm.weight,
        }  # fmt: skip
        if self.embed_times is not None:
            state["embed_times"] = self.embed_times[:, 0]
        for index, block in enumerate(cast("list[Answerer]", self.blocks)):
            state |= block.unpacked(f"layers.{index}")
        return state


def fused(network: nn.Module, inputs: Mapping[str, Tensor]) -> nn.Module:
    """The fused form of a network that has one, else the network itself.

    A predictor's takes as many visual tokens, and queries as long, as are in `inputs`.
    """
    if isinstance(network, XEncoder):
        return FusedXEncoder(network).eval()
    if isinstance(network, Predictor):
        tokens, length = inputs["visual_tokens"].shape[1], inputs["query_ids"].shape[1]
        return FusedPredictor(network, tokens, length).eval()
    return network


def _named(name: str, norm: nn.LayerNorm) -> State:
    return {f"{name}.weight": norm.weight, f"{name}.bias": norm.bias}
