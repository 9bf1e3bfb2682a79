"""The configuration of the networks."""

from pathlib import Path

import pytest
import torch
from networks import tiny_config

from vljepa_ros.model.config import VLJepaConfig, tabletop
from vljepa_ros.model.networks import VLJepa


def shapes(config: VLJepaConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: value.shape for name, value in VLJepa(config).state_dict().items()}


@pytest.mark.parametrize("config", [tiny_config(), tabletop(1234)], ids=["tiny", "tabletop"])
def test_json_round_trip_builds_the_same_model(config: VLJepaConfig, tmp_path: Path):
    file = tmp_path / "config.json"
    config.to_json_file(str(file), use_diff=False)
    read = VLJepaConfig.from_json_file(str(file))
    assert shapes(read) == shapes(config)
    for field in ("embedding_dim", "sample_rate", "visual_merge", "query_length", "text_length",
                  "default_query", "text_prompt", "visual_tokens"):  # fmt: skip
        assert getattr(read, field) == getattr(config, field), field


def test_tabletop_is_the_clip_of_the_design():
    config = tabletop()
    vision = config.x_encoder_config
    assert (vision.frames_per_clip, vision.crop_size, vision.tubelet_size) == (8, 96, 2)
    assert (config.sample_rate, config.embedding_dim, config.query_length) == (4.0, 384, 24)
    assert config.visual_tokens == 4 * 6 * 6
    assert config.predictor_config.vocab_size == config.y_decoder_config.vocab_size == 2048
