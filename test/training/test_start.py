"""A start for a training of one's own, from a V-JEPA 2 folder of reduced width."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import scramble
from safetensors.torch import load_file
from transformers import Dinov2Config, Dinov2Model, VJEPA2Config, VJEPA2Model
from typer.testing import CliRunner

from vljepa_ros.cli.app import app
from vljepa_ros.inference.text import TextTokenizer
from vljepa_ros.model.networks import VLJepa
from vljepa_ros.training.base import load_checkpoint
from vljepa_ros.training.texts import BEGIN, END, PAD, sentence_encoder_folder, tokens

VISION = VJEPA2Config(
    crop_size=32, patch_size=8, frames_per_clip=64, hidden_size=32, num_hidden_layers=2,
    num_attention_heads=2, pred_hidden_size=12, pred_num_hidden_layers=1,
    pred_num_attention_heads=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("start")
    scramble(VJEPA2Model(VISION)).save_pretrained(root / "vision")
    (root / "vision" / "README.md").write_text("---\nlicense: mit\n---\n")
    done = CliRunner().invoke(
        app,
        ["export", "--from", "hf", "--x-encoder", str(root / "vision"), "--out", str(root / "run")],
        catch_exceptions=False,
    )
    assert done.exit_code == 0
    return root / "vision", root / "run"


@pytest.fixture(scope="module")
def model(folders: tuple[Path, Path]) -> VLJepa:
    return load_checkpoint(folders[1])


def test_encoders_are_the_public_ones(folders: tuple[Path, Path], model: VLJepa):
    clips = np.random.default_rng(0).integers(0, 256, (1, 8, 32, 32, 3), dtype=np.uint8)
    pixels = (clips / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    video = torch.from_numpy(pixels.transpose(0, 1, 4, 2, 3)).float()
    with torch.inference_mode():
        wanted = VJEPA2Model.from_pretrained(folders[0]).eval()(video, skip_predictor=True)
        got = model.x_encoder(torch.from_numpy(clips))
    torch.testing.assert_close(got, wanted.last_hidden_state, atol=1e-5, rtol=0)
    minilm = load_file(sentence_encoder_folder() / "model.safetensors")
    name = "encoder.layer.3.output.dense.weight"
    assert torch.equal(model.y_encoder.model.state_dict()[name], minilm[name])


def test_tokens_mark_where_an_answer_begins_and_ends(folders: tuple[Path, Path], model: VLJepa):
    config = model.config.y_decoder_config
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (PAD, BEGIN, END)
    tokenizer = TextTokenizer(folders[1] / "tokenizer.json", model.config.query_length)
    ids, mask = tokens(tokenizer, ["the drawer is open"])
    words = ids[mask == 1].tolist()
    assert not {PAD, BEGIN, END} & set(words)
    assert tokenizer.decode(words) == "the drawer is open"
    assert (ids[mask == 0] == PAD).all()


def test_the_start_says_what_is_not_trained(folders: tuple[Path, Path], model: VLJepa):
    recipe = json.loads((folders[1] / "recipe.json").read_text())
    assert recipe["untrained"] == ["predictor", "y_encoder.projector", "y_decoder"]
    assert recipe["x_encoder"] == {"from": "vision", "licence": "mit"}
    vision = model.config.x_encoder_config
    assert (vision.frames_per_clip, model.config.sample_rate) == (8, 4.0)


def test_an_image_encoder_is_a_start(tmp_path: Path):
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=7
    )
    scramble(Dinov2Model(config)).save_pretrained(tmp_path / "dinov2")
    processor = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    (tmp_path / "dinov2" / "preprocessor_config.json").write_text(json.dumps(processor))
    given = ["--x-encoder", str(tmp_path / "dinov2"), "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(app, ["export", "--from", "hf", *given], catch_exceptions=False)
    assert done.exit_code == 0
    model = load_checkpoint(tmp_path / "run")
    assert (model.config.chunk, model.config.visual_merge, model.config.visual_tokens) == (
        1,
        2,
        128,
    )
    clips = np.random.default_rng(0).integers(0, 256, (1, 8, 28, 28, 3), dtype=np.uint8)
    pixels = (clips[0] / 255.0 - processor["image_mean"]) / processor["image_std"]
    with torch.inference_mode():
        wanted = Dinov2Model.from_pretrained(tmp_path / "dinov2").eval()(
            torch.from_numpy(pixels.transpose(0, 3, 1, 2)).float()
        )
        got = model.x_encoder(torch.from_numpy(clips))
        ids, mask = torch.full((2, 5), 7), torch.ones(2, 5, dtype=torch.int64)
        answers = model.predictor(got, ids, mask)
    tokens = wanted.last_hidden_state[:, 1:].reshape(got.shape)  # all but the class
    torch.testing.assert_close(got, tokens, atol=1e-5, rtol=0)
    assert answers.shape == (1, 2, model.config.embedding_dim)
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert recipe["x_encoder"] == {"from": "dinov2", "licence": "not said by its model card"}
