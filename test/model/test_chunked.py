"""A V-JEPA 2 that encodes tubelet by tubelet, from torch to a stream: each is encoded once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from bundles import _tokenizer
from networks import MANIFEST, scramble, tiny_config

from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.inference.verify import verify_bundle
from vljepa_ros.model.export.bundle import export_bundle
from vljepa_ros.model.export.quantise import add_int8
from vljepa_ros.model.networks import VLJepa
from vljepa_ros.model.restore import restore
from vljepa_ros.perception.perceiver import Perceiver
from vljepa_ros.perception.settings import Settings

SIZE, FRAMES, QUERY = 32, 4, "what is happening"
UNGATED = Settings(gate_threshold=0)
PERIOD = 250_000_000
pytestmark = pytest.mark.timeout(600)  # a busy machine exports for minutes


def pictures(count: int, seed: int = 1) -> np.ndarray:
    size = (count, SIZE, SIZE, 3)
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("chunked")
    files = {name: root / name for name in ("tokenizer.json", "y_tokenizer.json")}
    for file in files.values():
        _tokenizer(file, begin=False)
    config = tiny_config(x_encoder_chunk=2)
    config.y_encoder_config.max_position_embeddings = 1024  # the exporter folds tiny tables away
    model = scramble(VLJepa(config))
    texts = (np.full((2, 12), 5), np.ones((2, 12), np.int64))
    clips = pictures(2 * FRAMES).reshape(2, FRAMES, SIZE, SIZE, 3)
    return export_bundle(model, root / "bundle", MANIFEST, files, clips, texts)


@pytest.fixture(scope="module")
def runtime(folder: Path) -> Runtime:
    return Runtime(load_bundle(folder), "onnxruntime-cpu", threads=1, precision="fp32")


def test_the_bundle_takes_a_tubelet_and_says_what_torch_says(folder: Path, runtime: Runtime):
    assert verify_bundle(folder) == []
    clip, graphs = runtime.bundle.clip, runtime.bundle.graphs
    assert (clip.frames, clip.chunk, clip.tubelet) == (FRAMES, 2, 2)
    assert graphs["x_encoder"].inputs["frames"].shape == ("B", 2, SIZE, SIZE, 3)
    assert graphs["predictor"].inputs["visual_tokens"].shape[1:] == (2 * 16, 32)
    model = restore(folder)  # which compares graph by graph
    assert (model.config.chunk, bool(model.predictor.embed_times.any())) == (2, True)
    clips = pictures(3 * FRAMES, seed=2).reshape(3, FRAMES, SIZE, SIZE, 3)
    ids, mask = (torch.from_numpy(array) for array in runtime._query_tokenizer([QUERY]))
    with torch.inference_mode():
        wanted = model.predictor(model.x_encoder(torch.from_numpy(clips)), ids, mask).numpy()
    got = runtime.predict(runtime.encode(clips), [QUERY])
    np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_a_stream_encodes_each_chunk_once_and_answers_as_whole_clips(runtime: Runtime):
    """Of two cameras in one batch: a step a frame, and a clip takes every second chunk."""
    perceiver = Perceiver(runtime, ["left", "right"], UNGATED)
    seen = {name: pictures(12, seed) for seed, name in enumerate(perceiver.cameras)}
    steps = []
    for number in range(12):
        due = [
            name
            for name, frames in seen.items()
            if perceiver.take(name, 10**9 + number * PERIOD, "", frames[number])
        ]
        steps += perceiver.step(due) if due else []
    assert [step.encoded for step in steps if step.camera == "left"] == [2, 2, *[1] * 7]
    ends = [round((step.stamp_ns - 10**9) / PERIOD) + 1 for step in steps]
    clips = np.stack([
        seen[step.camera][end - FRAMES : end] for step, end in zip(steps, ends, strict=True)
    ])  # fmt: skip
    asked = [runtime.bundle.default_query]
    whole = np.concatenate([runtime.predict(runtime.encode(clip[None]), asked) for clip in clips])
    np.testing.assert_allclose([s.embedding for s in steps], whole[:, 0], atol=1e-5)
    assert np.ptp(whole[:, 0], axis=0).max() > 0.1


def test_it_is_quantised_from_chunks(folder: Path, runtime: Runtime):
    clips = pictures(8 * FRAMES, seed=3).reshape(8, FRAMES, SIZE, SIZE, 3)
    found = add_int8(folder, clips, [QUERY] * len(clips))
    variants = load_bundle(folder).graphs["x_encoder"].variants
    assert found.keys() == {"x_encoder", "predictor"} and "int8" in variants
