"""Training on two devices: every process learns from the texts of both, and they stay equal."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from networks import scramble, tiny_config
from safetensors.torch import load_file, save_file

from vljepa_ros.model.networks import YEncoder
from vljepa_ros.tabletop import store
from vljepa_ros.tabletop.sim.episode import simulate
from vljepa_ros.training.texts import sentence_encoder_folder

SCRIPT = Path(__file__).with_name("two_devices.py")


@pytest.mark.timeout(600)
def test_two_processes_share_their_negatives_and_end_with_the_same_weights(tmp_path: Path):
    store.save_episode(tmp_path / "data" / "train" / "00000000.npz", simulate(0, 6.0))
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    network = scramble(YEncoder(tiny_config(text_vocabulary=30522, text_length=64)).model)
    save_file(network.state_dict(), str(encoder / "model.safetensors"))
    (encoder / "tokenizer.json").write_bytes(
        (sentence_encoder_folder() / "tokenizer.json").read_bytes()
    )
    command = [sys.executable, str(SCRIPT), str(tmp_path / "data"), str(encoder)]
    done = subprocess.run(
        [*command, str(tmp_path / "run")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(tmp_path / "run" / f"rank{rank}.pt") for rank in (0, 1)]
    # three clips with three questions each a process: two steps of images, two of video and stills
    assert ranks[0]["seen"] == [(18, 0, 9)] * 6
    assert ranks[1]["seen"] == [(18, 9, 18)] * 6
    assert len(ranks[0]["last"]) == 5  # four stages and the whole
    assert ranks[0]["last"] == ranks[1]["last"]
    weights = load_file(tmp_path / "run" / "weights.safetensors")
    total = sum(float(value.double().abs().sum()) for value in weights.values())
    assert total == pytest.approx(ranks[0]["last"][-1])
