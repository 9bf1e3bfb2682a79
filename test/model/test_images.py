"""Public image encoders as X-encoders, against transformers' own forward and processors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import MANIFEST, scramble, tiny_config
from PIL import Image
from transformers import (
    AutoModel,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    EfficientNetConfig,
    SiglipConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.efficientnet.image_processing_pil_efficientnet import (
    EfficientNetImageProcessorPil,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.inference.verify import verify_bundle
from vljepa_ros.model.config import VLJepaConfig
from vljepa_ros.model.export import images, storage
from vljepa_ros.model.export.bundle import export_bundle
from vljepa_ros.model.export.public import PublicError
from vljepa_ros.model.networks import VLJepa
from vljepa_ros.model.restore import _load
from vljepa_ros.training.base import VLJepaError, resized

SIZE, FRAMES = 32, 4
LAYERS = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip
PATCHES = {**LAYERS, "patch_size": 8}
CONFIGS: dict[str, Any] = {
    "dinov2": Dinov2Config(**PATCHES, image_size=56),  # its positions are spread over fewer patches
    "dinov2_with_registers": Dinov2WithRegistersConfig(
        **PATCHES, image_size=SIZE, num_register_tokens=3
    ),
    "dinov3_vit": DINOv3ViTConfig(**PATCHES, image_size=SIZE, num_register_tokens=2),
    "siglip": SiglipConfig(
        text_config={**LAYERS, "vocab_size": 20}, vision_config={**PATCHES, "image_size": SIZE}
    ),
    "efficientnet": EfficientNetConfig(image_size=64, width_coefficient=0.25, depth_coefficient=0.1,
                                       hidden_dim=320),
}  # fmt: skip
BARE = {"do_resize": False, "do_center_crop": False}
PROCESSORS = {"siglip": SiglipImageProcessorPil, "efficientnet": EfficientNetImageProcessorPil}


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "SIZE", SIZE)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("images")
    for kind, config in CONFIGS.items():
        model = scramble(AutoModel.from_config(config))
        if kind == "efficientnet":  # without its own statistics nothing gets through it
            for part in model.modules():
                if isinstance(part, torch.nn.BatchNorm2d):
                    part.weight.data += 1
            model.train()(torch.randn(16, 3, SIZE, SIZE))
        model.save_pretrained(root / kind)
        PROCESSORS.get(kind, CLIPImageProcessorPil)(**BARE).save_pretrained(root / kind)
    return {kind: root / kind for kind in CONFIGS}


@pytest.fixture(params=CONFIGS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def config_of(folder: Path) -> VLJepaConfig:
    vision = images.image_config(folder)
    vision.frames_per_clip = FRAMES
    return tiny_config(x_encoder_config=vision, visual_merge=1)


def model_of(folder: Path) -> VLJepa:
    model = scramble(VLJepa(config_of(folder)))
    images.load_image_encoder(model.x_encoder, folder)
    return model


def clips() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (2, FRAMES, SIZE, SIZE, 3), dtype=np.uint8)


def reference(folder: Path, kind: str) -> np.ndarray:
    """The patch tokens of every frame by itself `[2, FRAMES, n, hidden]`."""
    processor = PROCESSORS.get(kind, CLIPImageProcessorPil).from_pretrained(folder)
    pixels = [
        processor(Image.fromarray(frame)).pixel_values[0]
        for frame in clips().reshape(-1, SIZE, SIZE, 3)
    ]
    model = AutoModel.from_pretrained(folder).eval()
    model = model.vision_model if kind == "siglip" else model
    with torch.inference_mode():
        states = model(torch.from_numpy(np.stack(pixels)).float()).last_hidden_state
    if states.ndim == 4:
        states = states.flatten(2).transpose(1, 2)
    before = {"dinov2": 1, "dinov2_with_registers": 4, "dinov3_vit": 3}.get(kind, 0)
    return states[:, before:].unflatten(0, (2, FRAMES)).numpy()


def test_tokens_are_those_of_transformers(folders: dict[str, Path], kind: str):
    wanted, model = reference(folders[kind], kind), model_of(folders[kind])
    tokens = model.config.visual_tokens
    assert wanted.shape[1] * wanted.shape[2] == tokens
    model.train()  # an image encoder runs as it was published even then
    with torch.inference_mode():
        got = model.x_encoder(torch.from_numpy(clips())).numpy()
    assert got.shape == (2, tokens, wanted.shape[3])
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(got / scale, wanted.reshape(got.shape) / scale, atol=1e-5)
    assert np.abs(np.diff(wanted / scale, axis=1)).max() > 1e-2


def test_a_configuration_is_read_again(folders: dict[str, Path], kind: str, tmp_path: Path):
    model = model_of(folders[kind])
    model.config.to_json_file(str(tmp_path / "config.json"), use_diff=False)
    again = VLJepa(VLJepaConfig.from_json_file(str(tmp_path / "config.json"))).eval()
    again.load_state_dict(model.state_dict())
    frames = torch.from_numpy(clips())
    with torch.inference_mode():
        assert torch.equal(again.x_encoder(frames), model.x_encoder(frames))
    assert (again.config.chunk, again.config.visual_tokens) == (1, model.config.visual_tokens)


@pytest.mark.slow
@pytest.mark.timeout(600)  # a busy machine exports for minutes
@pytest.mark.parametrize("kind", ["dinov2", "efficientnet"])
def test_a_bundle_sees_each_frame_by_itself(
    kind: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(storage, "COMPRESSED", 500)
    from bundles import _tokenizer

    files = {name: tmp_path / name for name in ("tokenizer.json", "y_tokenizer.json")}
    for file in files.values():
        _tokenizer(file, begin=False)
    model = model_of(folders[kind])
    texts = (np.full((2, 12), 5), np.ones((2, 12), np.int64))
    out = export_bundle(model, tmp_path / "bundle", MANIFEST, files, clips(), texts)
    assert verify_bundle(out) == []
    bundle = load_bundle(out)
    assert (bundle.clip.frames, bundle.clip.chunk, bundle.clip.tubelet) == (FRAMES, 1, 1)
    runtime = Runtime(bundle, "onnxruntime-cpu", threads=1)
    tokens = np.stack([np.asarray(one) for one in runtime.encode(clips())])
    wanted = reference(folders[kind], kind).reshape(tokens.shape)
    cosines = (tokens * wanted).sum(-1) / np.linalg.norm(tokens, axis=-1)
    assert (cosines / np.linalg.norm(wanted, axis=-1)).min() >= bundle.tolerance
    runtime.close()
    if kind == "dinov2":  # an EfficientNet's statistics are folded into its weights
        again, frames = VLJepa(config_of(folders[kind])).x_encoder, torch.from_numpy(clips()[:, :1])
        _load(again.eval(), bundle.graphs["x_encoder"].path, {"frames": frames})
        with torch.inference_mode():
            got = again(torch.from_numpy(clips())).numpy()
        np.testing.assert_allclose(got, tokens, atol=np.abs(tokens).max() * 1e-3)


def test_folders_that_are_no_image_encoder_are_refused(folders: dict[str, Path], tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(PublicError, match="type 'bert', not 'dinov2'"):
        images.image_config(tmp_path)
    CONFIGS["dinov3_vit"].save_pretrained(tmp_path)
    with pytest.raises(PublicError, match="holds no processor"):
        images.image_config(tmp_path)
    CLIPImageProcessorPil(**BARE).save_pretrained(tmp_path)
    model = VLJepa(config_of(tmp_path))
    with pytest.raises(PublicError, match="holds no weights"):
        images.load_image_encoder(model.x_encoder, tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "patch_size": 5}))
    with pytest.raises(PublicError, match="patches of 5 pixels do not divide"):
        images.image_config(tmp_path)


def test_weights_that_are_missing_are_named(folders: dict[str, Path], tmp_path: Path):
    theirs = AutoModel.from_pretrained(folders["dinov2"])
    state = theirs.state_dict()
    del state["layernorm.bias"]
    theirs.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(PublicError, match=r"layernorm\.bias \(missing\)"):
        images.load_image_encoder(VLJepa(config_of(folders["dinov2"])).x_encoder, tmp_path)


def test_its_pictures_keep_their_size(folders: dict[str, Path]):
    with pytest.raises(VLJepaError, match="pictures of a dinov2 stay 32 pixels a side"):
        resized(model_of(folders["dinov2"]), 48)
