"""The fused networks give the numbers of those of transformers, and give their weights back."""

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from networks import WIDTH, scramble, tiny_config
from transformers import LlamaConfig, VJEPA2Config

from vljepa_ros.inference.backends import open_engine
from vljepa_ros.model.config import VLJepaConfig, open_vljepa, tabletop
from vljepa_ros.model.export.bundle import export_graph, predictor_inputs
from vljepa_ros.model.fused import FusedPredictor, FusedXEncoder, fused
from vljepa_ros.model.networks import Predictor, XEncoder


def reduced_open_vljepa() -> VLJepaConfig:
    """Grouped queries, llama3 positions, heads of other sizes, no merging; shallow and narrow."""
    config = open_vljepa()
    vision, blocks = config.x_encoder_config, config.predictor_config
    vision.update({"hidden_size": 132, "num_attention_heads": 3, "num_hidden_layers": 2,
                   "crop_size": 64})  # fmt: skip
    blocks.update({"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 8,
                   "num_key_value_heads": 2, "head_dim": 24, "intermediate_size": 160,
                   "vocab_size": 100, "pad_token_id": 0})  # fmt: skip
    config.query_length = 16
    return config


CONFIGS = {
    "tabletop": tabletop, "open-vljepa, reduced": reduced_open_vljepa, "tiny": tiny_config,
    "chunks": lambda: tiny_config(x_encoder_chunk=2), "biases": lambda: tiny_config(
        predictor_config=LlamaConfig(
            vocab_size=60, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=64, attention_bias=True, mlp_bias=True,
        ),
    ),
    "no biases, another activation": lambda: tiny_config(
        x_encoder_config=VJEPA2Config(
            crop_size=32, patch_size=8, frames_per_clip=4, tubelet_size=2, hidden_size=WIDTH,
            num_hidden_layers=2, num_attention_heads=2, qkv_bias=False, hidden_act="gelu_new",
        ),
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS)
def config(request: pytest.FixtureRequest) -> VLJepaConfig:
    return request.param()


def clips(config: VLJepaConfig, count: int = 2) -> torch.Tensor:
    vision = config.x_encoder_config
    size = (count, vision.frames_per_clip, vision.crop_size, vision.crop_size, 3)
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8))


def asked(config: VLJepaConfig) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    width = config.x_encoder_config.hidden_size
    tokens = torch.randn(2, config.visual_tokens, width, generator=generator)
    torch.manual_seed(5)
    return predictor_inputs(config, tokens)


def assert_close(given: torch.Tensor, wanted: torch.Tensor) -> None:
    assert given.shape == wanted.shape
    assert float((given - wanted).abs().max()) <= 1e-5 * max(1.0, float(wanted.abs().max()))


def test_x_encoder_gives_the_same(config: VLJepaConfig):
    network = scramble(XEncoder(config), seed=1)
    with torch.no_grad():
        assert_close(fused(network, {})(clips(config)), network(clips(config)))


def test_predictor_gives_the_same_for_queries_of_any_length(config: VLJepaConfig):
    network, inputs = scramble(Predictor(config), seed=2), asked(config)
    other = fused(network, inputs)
    with torch.no_grad():
        assert_close(other(**inputs), network(**inputs))
        words = {name: inputs[name][:1, :5] for name in ("query_ids", "query_mask")}
        short = {**inputs, **words}  # what is cut off was padding
        padded = {**inputs, **{name: inputs[name][:1] for name in words}}
        assert int(padded["query_mask"].sum()) == 5
        assert_close(other(**short), network(**padded))


def test_weights_come_back(config: VLJepaConfig):
    encoder, predictor = scramble(XEncoder(config), seed=1), scramble(Predictor(config), seed=2)
    for network, other in (
        (encoder, FusedXEncoder(copy.deepcopy(encoder))),
        (predictor, FusedPredictor(copy.deepcopy(predictor), config.visual_tokens, 7)),
    ):
        state, back = network.state_dict(), other.unpacked()
        assert back.keys() == state.keys()
        for name, value in state.items():
            torch.testing.assert_close(back[name], value, rtol=1e-6, atol=1e-6, msg=name)


def test_what_has_no_fused_form_stays():
    network = torch.nn.Linear(2, 2)
    assert fused(network, {}) is network


def test_the_exported_graph_is_as_short_as_it_is_meant_to_be(tmp_path: Path):
    config = tiny_config()
    encoder = scramble(XEncoder(config), seed=1)
    export_graph("x_encoder", encoder, {"frames": clips(config)}, tmp_path)
    graph = onnx.load(tmp_path / "x_encoder.onnx").graph
    kinds = [node.op_type for node in graph.node]
    layers = config.x_encoder_config.num_hidden_layers
    assert kinds.count("Gemm") == 1 + 4 * layers  # patches; then qkv, proj, up, down
    assert kinds.count("MatMul") == 3 * layers  # positions, scores, values
    assert not {"Conv", "Slice", "Neg", "Concat", "Squeeze", "Unsqueeze"} & set(kinds)
    assert {o.domain for o in onnx.load(tmp_path / "x_encoder.onnx").opset_import} == {""}


def test_the_exported_predictor_takes_shorter_queries(tmp_path: Path):
    config = reduced_open_vljepa()
    network, inputs = scramble(Predictor(config), seed=2), asked(config)
    spec, _ = export_graph("predictor", network, inputs, tmp_path, storage="fp32")
    assert spec.inputs["query_ids"].shape == spec.inputs["query_mask"].shape == ("Q", "L")
    engine = open_engine(spec, "onnxruntime-cpu", threads=1)
    for rows, length in ((1, 1), (1, 5), (3, 9), (5, config.query_length)):
        ids = inputs["query_ids"][:1].expand(rows, -1)[:, :length]
        mask = torch.ones_like(ids)
        given = engine.run(
            visual_tokens=inputs["visual_tokens"].numpy(), query_ids=ids.numpy(),
            query_mask=mask.numpy(),
        )["embedding"]  # fmt: skip
        with torch.no_grad():
            wanted = network(inputs["visual_tokens"], ids, mask)
        assert_close(torch.from_numpy(given), wanted)
    engine.close()
