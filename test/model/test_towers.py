"""Public two-tower models at reduced width, against transformers' own models, processors and ids.

The folders are saved as the models are published: with `save_pretrained`, a tokenizer each.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import scramble
from PIL import Image
from transformers import (
    AutoModel,
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
)
from transformers.convert_slow_tokenizer import import_protobuf
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from typer.testing import CliRunner

from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.cli.app import app
from vljepa_ros.inference.preprocess import prepare
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.inference.text import TextTokenizer
from vljepa_ros.inference.verify import verify_bundle
from vljepa_ros.model.export import spiece, storage, towers
from vljepa_ros.model.export.public import PublicError
from vljepa_ros.model.towers import ImageTower, NewestMean, TextTower

SIZE, LENGTH, DIM = 32, 12, 24
WORDS = "a man cooks the red cube dog photo of".split()
TEXTS = [
    "a man cooks",
    "The red CUBE, a dog",
    "dog",
    "a photo of the red cube of the man of the dog",
]
MODELS = {"clip": "clip", "clip-old-end": "clip", "siglip": "siglip", "siglip2": "siglip"}


def vocabulary(special: list[str]) -> dict[str, int]:
    letters = sorted(set("".join(WORDS)))
    return {token: index for index, token in enumerate([*special, *letters])}


def save_clip(folder: Path, end: int) -> None:
    """`end`: the configuration's `eos_token_id`; 2 is what the first CLIPs have, whatever is so."""
    letters = sorted({*"abcdefghijklmnopqrstuvwxyz,.-"})
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "ma", "man</w>", "re", "red</w>"]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    merges = [("m", "a"), ("ma", "n</w>"), ("r", "e"), ("re", "d</w>")]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH)
    layers = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }  # fmt: skip
    config = CLIPConfig(
        text_config={
            **layers, "vocab_size": len(vocab), "max_position_embeddings": LENGTH,
            "bos_token_id": len(vocab) - 2, "eos_token_id": end or len(vocab) - 1,
        },
        vision_config={**layers, "image_size": SIZE, "patch_size": 8},
        projection_dim=DIM,
    )  # fmt: skip
    model = scramble(CLIPModel(config))
    model.logit_scale.data.fill_(4.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    sizes = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    CLIPImageProcessorPil(**sizes).save_pretrained(folder)


def save_siglip(folder: Path, second: bool) -> None:
    layers = {
        "hidden_size": DIM, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }  # fmt: skip
    config = SiglipConfig(
        text_config={**layers, "vocab_size": 64, "max_position_embeddings": LENGTH},
        vision_config={**layers, "image_size": SIZE, "patch_size": 8},
    )
    model = scramble(SiglipModel(config))
    model.logit_scale.data.fill_(3.0)
    model.logit_bias.data.fill_(-4.0)
    model.save_pretrained(folder)
    SiglipImageProcessorPil(
        size={"height": SIZE, "width": SIZE}, resample=2 if second else 3
    ).save_pretrained(folder)
    if second:
        save_gemma_words(folder)
    else:
        (folder / "spiece.model").write_bytes(sentencepieces())
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "SiglipTokenizer"}')


def save_gemma_words(folder: Path) -> None:
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *sorted(set("".join(WORDS)))]
    tokens += ["ma", "man", "re", "red"]
    merges = [("m", "a"), ("ma", "n"), ("r", "e"), ("re", "d")]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Siglip2Tokenizer(vocab=vocab, merges=merges, padding_side="right")
    tokenizer.save_pretrained(folder)


def sentencepieces() -> bytes:
    """A model of sentencepiece as SigLIP has one, its pieces by hand."""
    proto = import_protobuf().ModelProto()
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -6.0)]
    pieces += [(f"▁{word}", -3.0 - index / 7) for index, word in enumerate(WORDS)]
    pieces += [("ma", -4.1), ("n", -4.2), ("co", -4.3), ("ok", -4.4)]
    pieces += [(letter, -7.0 - index / 9) for index, letter in enumerate("acdegkmorstuz")]
    for index, (name, score) in enumerate(pieces):
        kind = {2: 2, 0: 3, 1: 3}.get(index, 1)  # unknown, control, normal
        proto.pieces.add(piece=name, score=score, type=kind)
    proto.trainer_spec.model_type = 1
    proto.trainer_spec.unk_id, proto.trainer_spec.eos_id = 2, 1
    proto.trainer_spec.pad_id, proto.trainer_spec.bos_id = 0, -1
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.remove_extra_whitespaces = True
    proto.normalizer_spec.add_dummy_prefix = True
    proto.normalizer_spec.escape_whitespaces = True
    return proto.SerializeToString()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("towers")
    made = {name: root / name for name in MODELS}
    save_clip(made["clip"], 0)
    save_clip(made["clip-old-end"], 2)
    save_siglip(made["siglip"], second=False)
    save_siglip(made["siglip2"], second=True)
    (made["clip"] / "README.md").write_text("---\nlicense: mit\n---\n# A CLIP\n")
    (made["clip"] / "LICENSE").write_text("the licence\n")
    return made


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def loaded(folders: dict[str, Path], name: str) -> towers.Towers:
    return towers.load_towers(MODELS[name], folders[name])


# The reference: transformers' own forward


def pictures() -> list[np.ndarray]:
    """Pictures of a camera, smooth enough that no filter reaches black or white."""
    rng = np.random.default_rng(7)
    small = rng.integers(40, 216, (3, 6, 8, 3), dtype=np.uint8)
    return [np.asarray(Image.fromarray(one).resize((64, 48), 3)) for one in small]


def pixels(folder: Path, name: str, images: list[np.ndarray]) -> torch.Tensor:
    kind = CLIPImageProcessorPil if MODELS[name] == "clip" else SiglipImageProcessorPil
    processor = kind.from_pretrained(folder)
    found = [processor(Image.fromarray(image)).pixel_values[0] for image in images]
    return torch.from_numpy(np.stack(found)).float()


def ids_of(folder: Path, name: str, texts: list[str]) -> dict[str, torch.Tensor]:
    """As the models' pages say: SigLIP's are padded to the length, and get no mask."""
    if name == "siglip":
        return {"input_ids": torch.tensor([padded(by_hand(text), 1) for text in texts])}
    if name == "siglip2":
        found = Siglip2Tokenizer.from_pretrained(folder, padding_side="right")(
            [text.lower() for text in texts], padding="max_length", max_length=LENGTH,
            truncation=True, return_tensors="pt",
        )  # fmt: skip
        return {"input_ids": found["input_ids"]}
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    return dict(tokenizer(texts, padding=True, truncation=True, max_length=LENGTH,
                          return_tensors="pt"))  # fmt: skip


def padded(ids: list[int], pad: int) -> list[int]:
    return ids[:LENGTH] + [pad] * (LENGTH - len(ids))


def by_hand(text: str) -> list[int]:
    """Ids of SigLIP: canonical, the likeliest pieces (found by trying all), cut, the end."""
    proto = import_protobuf().ModelProto.FromString(sentencepieces())
    scores = {piece.piece: (piece.score, index) for index, piece in enumerate(proto.pieces)}
    least = min(score for score, _ in scores.values()) - 10.0
    plain = "".join(c for c in f"▁{text}".lower() if c not in "!,.-?()'")
    rest = "▁".join(plain.split())  # transformers puts its space before all others
    best: list[tuple[float, list[int]]] = [(0.0, [])]
    for end in range(1, len(rest) + 1):
        ways = []
        for start in range(end):
            piece = rest[start:end]
            if piece in scores or end - start == 1:
                score, index = scores.get(piece, (least, 2))
                ways.append((best[start][0] + score, [*best[start][1], index]))
        best.append(max(ways))
    ids = [i for n, i in enumerate(best[-1][1]) if not (i == 2 and n and best[-1][1][n - 1] == 2)]
    return [*ids[: LENGTH - 1], 1]


def reference(
    folder: Path, name: str, images: list[np.ndarray], texts: list[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit embeddings of pictures and texts, and the logits of each pair."""
    model = AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        found = model(pixel_values=pixels(folder, name, images), **ids_of(folder, name, texts))
    return found.image_embeds.numpy(), found.text_embeds.numpy(), found.logits_per_image.numpy()


def frames_of(found: towers.Towers, images: list[np.ndarray]) -> np.ndarray:
    how = found.preprocess
    return np.stack([prepare(image, SIZE, how["resample"], how["resize"]) for image in images])


# Loaded


def test_embeddings_are_those_of_transformers(folders: dict[str, Path], name: str, tmp_path: Path):
    found = loaded(folders, name)
    images, texts, logits = reference(folders[name], name, pictures(), TEXTS)
    see = ImageTower(found.model, found.mean, found.deviation).eval()
    read = TextTower(found.model, found.pad).eval()
    found.tokenizer.save(str(tmp_path / "tokenizer.json"))
    ids, mask = TextTokenizer(tmp_path / "tokenizer.json", LENGTH)(TEXTS)
    with torch.inference_mode():
        seen = see(torch.from_numpy(frames_of(found, pictures())[:, None]))[:, 0].numpy()
        said = read(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
    np.testing.assert_allclose(seen, images, atol=1e-5)
    np.testing.assert_allclose(said, texts, atol=1e-5)
    assert np.abs(np.diff(images, axis=0)).max() > 0.01 < np.abs(np.diff(texts, axis=0)).max()
    manifest = towers._manifest(found, SIZE, LENGTH)
    bias = logits - seen @ said.T / manifest["temperature"]
    np.testing.assert_allclose(bias, -4.0 if MODELS[name] == "siglip" else 0.0, atol=1e-4)


def test_ids_are_those_of_transformers(folders: dict[str, Path], name: str, tmp_path: Path):
    texts = [*TEXTS, "  A  man-cooks ! ", "zebra", "Red, red. RED", "a " * 40]
    loaded(folders, name).tokenizer.save(str(tmp_path / "tokenizer.json"))
    ids, mask = TextTokenizer(tmp_path / "tokenizer.json", LENGTH)(texts)
    wanted = ids_of(folders[name], name, texts)["input_ids"].numpy()
    np.testing.assert_array_equal(ids[:, : wanted.shape[1]], wanted)
    assert (mask.sum(1) <= LENGTH).all() and mask[-1].all()


def test_siglips_ids_are_those_of_sentencepiece(folders: dict[str, Path]):
    pytest.importorskip("sentencepiece", reason="sentencepiece, to compare with, is not installed")
    from transformers import SiglipTokenizer

    theirs = SiglipTokenizer(str(folders["siglip"] / "spiece.model"))
    ours = spiece.read_siglip(folders["siglip"] / "spiece.model")
    for text in [
        *TEXTS,
        "  two   SPACES ",
        "! dog",
        "What's (this)?",
        "dog zzz 日本 dog",
        "a\tdog\n",
    ]:
        assert ours.encode(text).ids == theirs(text).input_ids


def test_what_is_newer_weighs_more():
    frames = torch.eye(8)[None]
    with torch.inference_mode():
        weights = NewestMean(8)(frames)[0, 0]
        same = NewestMean(8)(frames[:, :1].expand(-1, 8, -1))[0, 0]
    assert weights.norm() == pytest.approx(1.0)
    assert weights[7] / weights[5] == pytest.approx(2.0)  # a quarter of the clip younger
    assert (weights.diff() > 0).all() and (weights > 0).all()
    assert same.tolist() == frames[0, 0].tolist()


# Refused


def altered(folders: dict[str, Path], name: str, at: Path) -> Path:
    return shutil.copytree(folders[name], at / name)


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def refusal(kind: str, folder: Path) -> str:
    with pytest.raises(PublicError) as caught:
        towers.load_towers(kind, folder)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_folders_of_other_classes_are_refused(folders: dict[str, Path], tmp_path: Path):
    assert "type 'siglip'; use --from siglip." in refusal("clip", folders["siglip"])
    assert "type 'clip'; use --from clip." in refusal("siglip", folders["clip"])
    vision = SiglipVisionConfig(hidden_size=32, image_size=SIZE)
    vision.save_pretrained(tmp_path)
    assert "type 'siglip_vision_model', not 'clip' or 'siglip'" in refusal("siglip", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "siglip2"}')
    assert "NaFlex" in refusal("siglip", tmp_path)
    assert "holds no configuration" in refusal("clip", tmp_path / "none")


def test_what_a_folder_lacks_is_named(folders: dict[str, Path], tmp_path: Path):
    folder = altered(folders, "clip", tmp_path)
    (folder / "preprocessor_config.json").rename(folder / "kept.json")
    assert "holds no processor" in refusal("clip", folder)
    (folder / "kept.json").rename(folder / "preprocessor_config.json")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    assert "holds no tokenizer" in refusal("clip", folder)
    (folder / "model.safetensors").unlink()
    assert "holds no weights" in refusal("clip", folder)


def test_a_tokenizer_of_another_model_is_refused(folders: dict[str, Path], tmp_path: Path):
    folder = altered(folders, "siglip2", tmp_path)
    tokenizer = Siglip2Tokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"word{index}" for index in range(40)])
    tokenizer.save_pretrained(folder)
    assert "its model knows 64" in refusal("siglip", folder)


def test_weights_that_do_not_fit_are_named(folders: dict[str, Path], tmp_path: Path):
    folder = altered(folders, "siglip", tmp_path)
    model = SiglipModel.from_pretrained(folder)
    state = model.state_dict()
    del state["vision_model.head.probe"]
    state["extra"] = torch.zeros(1)
    model.save_pretrained(folder, state_dict=state)
    said = refusal("siglip", folder)
    assert "vision_model.head.probe (missing)" in said and "extra (unexpected)" in said


@pytest.mark.parametrize("changed", [
    {"size": {"shortest_edge": 40}}, {"crop_size": {"height": 40, "width": 40}},
    {"do_center_crop": False}, {"resample": 1}, {"image_mean": 0.5}, {"image_std": None},
], ids=lambda changed: next(iter(changed)))  # fmt: skip
def test_processors_that_do_not_fit_are_refused(
    changed: dict[str, Any], folders: dict[str, Path], tmp_path: Path
):
    folder = altered(folders, "clip", tmp_path)
    edit(folder / "preprocessor_config.json", **changed)
    assert f"The processor in {folder}" in refusal("clip", folder)


def test_a_damaged_sentencepiece_model_is_refused(folders: dict[str, Path], tmp_path: Path):
    folder = altered(folders, "siglip", tmp_path)
    (folder / "spiece.model").write_bytes(b"\xff" * 40)
    assert "no sentencepiece model" in refusal("siglip", folder)


def test_a_siglip_without_its_head_is_refused(folders: dict[str, Path], tmp_path: Path):
    folder = altered(folders, "siglip", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["vision_use_head"] = False
    (folder / "config.json").write_text(json.dumps(config))
    assert "pooling head" in refusal("siglip", folder)


def test_processors_of_other_versions_are_read(folders: dict[str, Path], tmp_path: Path):
    """Old ones have plain numbers for sizes; transformers 5 nests them in a processor."""
    wanted = loaded(folders, "clip")
    folder = altered(folders, "clip", tmp_path)
    file = folder / "preprocessor_config.json"
    edit(file, size=SIZE, crop_size=SIZE)
    old = towers.load_towers("clip", folder)
    content = json.loads(file.read_text())
    file.unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": content}))
    new = towers.load_towers("clip", folder)
    for found in (old, new):
        assert found.preprocess == wanted.preprocess
        assert (found.mean, found.deviation) == (wanted.mean, wanted.deviation)


def test_the_command_names_what_is_not_given(tmp_path: Path):
    with pytest.raises(Exception, match="--from clip also needs --model"):
        CliRunner().invoke(
            app, ["export", "--from", "clip", "--out", str(tmp_path)], catch_exceptions=False
        )


# The bundle, made by the command


@pytest.fixture(scope="module", params=["clip", "siglip2"])
def bundle(
    request: pytest.FixtureRequest, folders: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, Path]:  # fmt: skip
    name = request.param
    out = tmp_path_factory.mktemp("bundles") / name
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "COMPRESSED", 500)  # as small as these matrices are
        done = CliRunner().invoke(
            app,
            ["export", "--from", MODELS[name], "--model", str(folders[name]), "--out", str(out)],
            catch_exceptions=False,
        )
    assert done.exit_code == 0
    return name, out


@pytest.mark.slow
@pytest.mark.timeout(600)  # a busy machine exports for minutes
def test_the_bundle_gives_what_transformers_does(
    bundle: tuple[str, Path], folders: dict[str, Path]
):
    name, path = bundle
    assert verify_bundle(path) == []
    found = load_bundle(path)
    images, texts, _ = reference(folders[name], name, pictures(), TEXTS)
    model = Runtime(found, "onnxruntime-cpu", threads=1)
    frames = np.stack([prepare(p, SIZE, found.resample, found.resize) for p in pictures()])
    shown = [[0] * 8, [1] * 8, [2] * 8, [0, 1, 2, 2, 1, 0, 0, 1]]  # still pictures, and a change
    weights = 0.5 ** (np.arange(7, -1, -1) / 2)
    wanted = np.stack([weights @ images[numbers] for numbers in shown])
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(wanted[:3], images, atol=1e-5)
    seen = model.predict(model.encode(frames[shown]), [found.default_query])
    said = model.embed_text(TEXTS)
    assert ((seen[:, 0] * wanted).sum(1) >= found.tolerance).all()
    assert ((said * texts).sum(1) >= found.tolerance).all()
    model.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_bundle_says_what_it_is(bundle: tuple[str, Path]):
    name, path = bundle
    found = load_bundle(path)
    assert (found.name, found.query, found.decoder) == (name, None, None)
    clip = found.clip
    assert (clip.frames, clip.chunk, clip.tubelet, clip.image_size) == (8, 1, 1, SIZE)
    assert found.embedding_dim == DIM
    assert "guesses" in found.source["thresholds"]
    if name == "clip":
        assert (found.resize, found.resample) == ("shorter_side", "bicubic")
        assert found.temperature == pytest.approx(np.exp(-4.0))
        assert found.label_template == "a photo of {}."
        assert found.source["licence"] == "mit"
        assert (path / "LICENSE").read_text() == "the licence\n"
    else:
        assert found.resize == "squash"
        assert found.resample == "pil_bilinear"
        assert found.temperature == pytest.approx(np.exp(-3.0))
        assert found.thresholds.watch == pytest.approx(4.0 * np.exp(-3.0))
        assert found.label_template == "This is a photo of {}."
