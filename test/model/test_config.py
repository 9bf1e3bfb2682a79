"""The configuration of the networks."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from networks import tiny_config

from vljepa_ros.model.config import PRESETS, VLJepaConfig, tabletop
from vljepa_ros.model.networks import VLJepa


def shapes(config: VLJepaConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: value.shape for name, value in VLJepa(config).state_dict().items()}


CONFIGS = {"tiny": tiny_config, "no decoder": lambda: tiny_config(y_decoder_config=None),
           "chunks": lambda: tiny_config(x_encoder_chunk=2), **PRESETS}  # fmt: skip


@pytest.mark.parametrize("make", CONFIGS.values(), ids=CONFIGS)
def test_json_round_trip_builds_the_same_model(make: Callable[[], VLJepaConfig], tmp_path: Path):
    config, file = make(), tmp_path / "config.json"
    config.to_json_file(str(file), use_diff=False)
    read = VLJepaConfig.from_json_file(str(file))
    assert read.to_dict() == config.to_dict()
    assert shapes(read) == shapes(config)
    for field in ("embedding_dim", "sample_rate", "visual_merge", "query_length", "text_length",
                  "default_query", "text_prompt", "visual_tokens", "chunk", "chunks"):  # fmt: skip
        assert getattr(read, field) == getattr(config, field), field


def test_tabletop_is_the_clip_that_is_shipped():
    config = tabletop()
    vision = config.x_encoder_config
    assert (vision.frames_per_clip, vision.crop_size, vision.tubelet_size) == (8, 96, 2)
    assert (config.sample_rate, config.embedding_dim, config.query_length) == (4.0, 384, 24)
    assert config.visual_tokens == 4 * 6 * 6
    assert (config.chunk, config.chunks) == (8, 1)
    assert config.predictor_config.vocab_size == config.y_decoder_config.vocab_size == 2048


def test_large_presets_are_the_papers_size():
    paper, public = (shapes(PRESETS[name]()) for name in ("paper", "open-vljepa"))
    count = {part: sum(s.numel() for n, s in paper.items() if n.startswith(part)) for part in (
        "x_encoder", "predictor.layers", "y_encoder")}  # fmt: skip
    assert round(count["x_encoder"] / 1e6) == 304
    assert round(count["predictor.layers"] / 1e6) == 487  # with its projections the paper's 490M
    assert round(count["y_encoder"] / 1e6) == 304  # EmbeddingGemma-300M and its head
    assert public == {n: s for n, s in paper.items() if not n.startswith("y_decoder")}
