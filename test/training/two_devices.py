"""Trains a tiny model on two processes; run by test_devices.py, which reads what each rank wrote.

Usage: two_devices.py DATA SENTENCE_ENCODER OUT
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import torch
from networks import tiny_config

from vljepa_ros.training import stages
from vljepa_ros.training import train as training

data, encoder, out = (Path(argument) for argument in sys.argv[1:])
training.tabletop = lambda vocabulary: tiny_config(
    vocabulary=vocabulary, text_vocabulary=30522, image_size=96, patch=32, layers=1,
    visual_merge=3, query_length=24, text_length=64,
)  # fmt: skip
training.sentence_encoder_folder = lambda: encoder
seen: list[tuple[int, slice]] = []
info_nce = stages.info_nce


def watched(predicted, texts, meanings, temperature, own):
    seen.append((len(predicted), own))
    return info_nce(predicted, texts, meanings, temperature, own)


stages.info_nce = watched
recipe = training.Recipe(
    text_steps=2, image_steps=2, video_steps=2, decoder_steps=1, text_batch=3, image_batch=3,
    video_batch=3, video_stills=3, decoder_batch=4, decoder_clips=4, workers=0, devices=2,
)  # fmt: skip
save = training.save
last: list[float] = []


def saved(model, folder):
    last.append(sum(float(p.double().abs().sum()) for p in model.parameters()))
    save(model, folder)


training.save = saved
training.train(data, out, recipe)
rank = int(os.environ.get("LOCAL_RANK", "0"))
torch.save({"seen": [(n, o.start, o.stop) for n, o in seen], "last": last}, out / f"rank{rank}.pt")
