"""Public checkpoints, saved in the public layout at reduced width, against a forward by hand.

The references share no code with the loader or the networks: V-JEPA 2 and Gemma 3 are
transformers' own classes, the predictor is NumPy in float64.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from networks import scramble
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    Gemma3TextConfig,
    Gemma3TextModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    VJEPA2Config,
    VJEPA2Model,
)
from typer.testing import CliRunner

from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.cli.app import app
from vljepa_ros.errors import EngineError
from vljepa_ros.inference.preprocess import prepare
from vljepa_ros.inference.runtime import Runtime as Runtime
from vljepa_ros.inference.text import TextTokenizer
from vljepa_ros.inference.verify import verify_bundle
from vljepa_ros.model.config import open_vljepa
from vljepa_ros.model.export import public, storage

HIDDEN, DIM, QUERY, TEXT = 32, 40, 12, 14
WORDS = "describe the video . what do you see a man cooks ?".split()
QUERIES = ["describe the video .", "what do you see ?"]
TEXTS = ["a man cooks", "the man you see cooks what you see in the video . a man", "video"]
PAD = "<|finetune_right_pad_id|>"

Weights = dict[str, torch.Tensor]


# The public layout


def save_tokenizer(folder: Path, pad: str | None) -> None:
    """A word tokenizer that adds a beginning, as `transformers` saves it."""
    special = ["<unk>", "<bos>", "<eos>", PAD, "<pad>"]
    words = {word: index for index, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", None, [("<bos>", 1)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    if pad is not None:
        wrapped.pad_token = pad
    wrapped.save_pretrained(folder)


LLAMA = LlamaConfig(
    vocab_size=24, hidden_size=HIDDEN, intermediate_size=48, num_hidden_layers=4,
    num_attention_heads=4, num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-5,
    max_position_embeddings=256, tie_word_embeddings=True,
    rope_parameters={
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 40,
    },
)  # fmt: skip
GEMMA = Gemma3TextConfig(
    vocab_size=24, hidden_size=24, intermediate_size=32, num_hidden_layers=7,
    num_attention_heads=3, num_key_value_heads=1, head_dim=8, query_pre_attn_scalar=8,
    max_position_embeddings=64, sliding_window=6, use_bidirectional_attention=True, pad_token_id=4,
)  # fmt: skip
VISION = VJEPA2Config(
    crop_size=32, patch_size=8, frames_per_clip=64, hidden_size=HIDDEN, num_hidden_layers=2,
    num_attention_heads=2, pred_hidden_size=12, pred_num_hidden_layers=1,
    pred_num_attention_heads=2,
)  # fmt: skip
RECIPE = {
    "encoder": {"model_name": "facebook/vjepa2-vitl-fpc64-256", "output_dim": None},
    "y_encoder": {"model_name": "google/embeddinggemma-300m", "proj_dim": DIM},
    "predictor": {"n_keep_layers": 2, "proj_dim": DIM, "disable_causal_mask": True},
    "data": {"num_frames": 8, "image_size": 32, "max_query_len": QUERY, "max_caption_len": TEXT},
    "training": {"temperature": 0.05},
}


def weights() -> Weights:
    """`model_state_dict` of the checkpoint: the language models in bf16, the heads in fp32."""
    llama = scramble(LlamaForCausalLM(LLAMA), 1).model
    gemma = scramble(Gemma3TextModel(GEMMA), 2)
    found = {"predictor.embed_tokens.weight": llama.embed_tokens.weight}
    for index, layer in enumerate(llama.layers[-2:]):
        found |= {f"predictor.layers.{index}.{k}": v for k, v in layer.state_dict().items()}
    found["predictor.norm.weight"] = llama.norm.weight
    found |= {f"y_encoder.model.{name}": value for name, value in gemma.state_dict().items()}
    found = {name: value.detach().bfloat16() for name, value in found.items()}
    generator = torch.Generator().manual_seed(3)
    heads = {
        "predictor.vis_proj": (HIDDEN, HIDDEN), "predictor.out_proj": (DIM, HIDDEN),
        "y_encoder.projector": (DIM, 24),
    }  # fmt: skip
    for name, size in heads.items():
        found[f"{name}.weight"] = torch.randn(size, generator=generator) * size[1] ** -0.5
        found[f"{name}.bias"] = torch.randn(size[0], generator=generator) * 0.3
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("public")
    at = {name: root / name for name in ("vision", "llama", "gemma")}
    scramble(VJEPA2Model(VISION)).save_pretrained(at["vision"])
    LLAMA.save_pretrained(at["llama"])
    GEMMA.save_pretrained(at["gemma"])
    save_tokenizer(at["llama"], None)
    save_tokenizer(at["gemma"], "<pad>")
    (at["vision"] / "README.md").write_text("---\nlicense: apache-9\n---\n# V-JEPA 2\n")
    (at["llama"] / "LICENSE.txt").write_text("the agreement\n")
    save(root / "best.pt", weights())
    return {**at, "checkpoint": root / "best.pt"}


def save(file: Path, state: Weights) -> Path:
    content = {"epoch": 7, "model_state_dict": state, "loss": 0.5, "config": RECIPE}
    torch.save(content, file)
    return file


def load(folders: dict[str, Path], **changed: Path) -> public.Public:
    at = {**folders, **changed}
    return public.load_open_vljepa(at["checkpoint"], at["vision"], at["llama"], at["gemma"])


@pytest.fixture(scope="module")
def loaded(folders: dict[str, Path]) -> public.Public:
    return load(folders)


# The forward pass by hand


def clips() -> np.ndarray:
    return np.random.default_rng(4).integers(0, 256, (2, 8, 32, 32, 3), dtype=np.uint8)


def visual_tokens(folders: dict[str, Path]) -> np.ndarray:
    pixels = (clips() / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    model = VJEPA2Model.from_pretrained(folders["vision"]).eval()
    video = torch.from_numpy(pixels.transpose(0, 1, 4, 2, 3)).float()
    with torch.inference_mode():
        return model(video, skip_predictor=True).last_hidden_state.numpy()


def frequencies() -> np.ndarray:
    """Llama 3's rotary frequencies `[head_dim / 2]`, one by one."""
    found = []
    for index in range(8):
        plain = 500000.0 ** (-index / 8)
        turns = 40 * plain / (2 * np.pi)  # in the original context length
        share = min(max((turns - 1.0) / (4.0 - 1.0), 0.0), 1.0)
        found.append(share * plain + (1 - share) * plain / 32.0)
    return np.array(found)


def predicted(state: Weights, visual: np.ndarray, ids: list[int]) -> np.ndarray:
    """The embedding `[DIM]` of one clip's visual tokens `[N, HIDDEN]` and one unpadded query."""
    w = {k.removeprefix("predictor."): v.double().numpy() for k, v in state.items()}

    def norm(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale

    seen = visual.astype(np.float64) @ w["vis_proj.weight"].T + w["vis_proj.bias"]
    x = np.concatenate([seen, w["embed_tokens.weight"][ids]])
    angle = np.arange(len(x))[:, None] * frequencies()
    cos, sin = np.cos(angle), np.sin(angle)

    def turn(y: np.ndarray) -> np.ndarray:
        a, b = y[:, :8], y[:, 8:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=1)

    for layer in range(2):
        p = {k.removeprefix(f"layers.{layer}."): v for k, v in w.items()}
        h = norm(x, p["input_layernorm.weight"])
        q, k, v = (h @ p[f"self_attn.{name}_proj.weight"].T for name in "qkv")
        mixed = []
        for head in range(4):
            one, shared = slice(16 * head, 16 * head + 16), head // 2  # two heads share a key
            both = slice(16 * shared, 16 * shared + 16)
            scores = np.exp(turn(q[:, one]) @ turn(k[:, both]).T / 4.0)
            mixed.append(scores / scores.sum(1, keepdims=True) @ v[:, both])
        x = x + np.concatenate(mixed, axis=1) @ p["self_attn.o_proj.weight"].T
        h = norm(x, p["post_attention_layernorm.weight"])
        gate = h @ p["mlp.gate_proj.weight"].T
        x = x + gate / (1 + np.exp(-gate)) * (h @ p["mlp.up_proj.weight"].T) @ (
            p["mlp.down_proj.weight"].T
        )
    out = w["out_proj.weight"] @ norm(x, w["norm.weight"]).mean(0) + w["out_proj.bias"]
    return out / np.linalg.norm(out)


def written(state: Weights, ids: list[int]) -> np.ndarray:
    """The embedding `[DIM]` of one unpadded text."""
    model = Gemma3TextModel(GEMMA).eval()
    prefix = "y_encoder.model."
    model.load_state_dict(
        {k.removeprefix(prefix): v.float() for k, v in state.items() if k.startswith(prefix)}
    )
    with torch.inference_mode():
        states = model(input_ids=torch.tensor([ids])).last_hidden_state[0].double().numpy()
    weight, bias = (state[f"y_encoder.projector.{n}"].double().numpy() for n in ("weight", "bias"))
    out = weight @ states.mean(0) + bias
    return out / np.linalg.norm(out)


def ids_of(text: str) -> list[int]:
    known = {word: 5 + index for index, word in enumerate(WORDS)}
    return [1, *(known.get(word, 0) for word in text.split())]


def padded(texts: list[str], length: int, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [ids_of(text)[:length] for text in texts]
    ids = [row + [pad] * (length - len(row)) for row in rows]
    mask = [[1] * len(row) + [0] * (length - len(row)) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)


# Loaded


def test_visual_tokens_are_those_of_v_jepa_2(loaded: public.Public, folders: dict[str, Path]):
    with torch.inference_mode():
        got = loaded.model.x_encoder(torch.from_numpy(clips())).numpy()
    assert got.shape == (2, 4 * 4 * 4, HIDDEN)
    np.testing.assert_allclose(got, visual_tokens(folders), atol=1e-5)


def test_predictor_is_the_forward_by_hand(loaded: public.Public, folders: dict[str, Path]):
    visual = visual_tokens(folders)
    with torch.inference_mode():
        got = loaded.model.predictor(torch.from_numpy(visual), *padded(QUERIES, QUERY, 3)).numpy()
    for clip in range(2):
        for query, text in enumerate(QUERIES):
            wanted = predicted(weights(), visual[clip], ids_of(text))
            np.testing.assert_allclose(got[clip, query], wanted, atol=1e-5)
    assert np.abs(got[0, 0] - got[0, 1]).max() > 1e-2
    assert np.abs(got[0] - got[1]).max() > 1e-2


def test_y_encoder_is_gemma_with_a_masked_mean(loaded: public.Public):
    with torch.inference_mode():
        got = loaded.model.y_encoder(*padded(TEXTS, TEXT, 4)).numpy()
    for row, text in enumerate(TEXTS):
        wanted = written(weights(), ids_of(text)[:TEXT])
        np.testing.assert_allclose(got[row], wanted, atol=1e-5)


def test_gemma_looks_both_ways(loaded: public.Public):
    """Else a first token would not change where a later one does."""
    ids, mask = padded(TEXTS[:1], TEXT, 4)
    other = ids.clone()
    other[0, 3] = 7
    with torch.inference_mode():
        states = [loaded.model.y_encoder.model(i, mask).last_hidden_state for i in (ids, other)]
    assert (states[0][0, 0] - states[1][0, 0]).abs().max() > 1e-3


def test_configuration_is_the_checkpoints(loaded: public.Public):
    config = loaded.model.config
    vision = config.x_encoder_config
    assert (vision.frames_per_clip, vision.crop_size, config.visual_tokens) == (8, 32, 64)
    assert (config.query_length, config.text_length, config.embedding_dim) == (QUERY, TEXT, DIM)
    assert (config.visual_merge, config.y_decoder_config) == (1, None)
    assert len(loaded.model.predictor.layers) == 2
    assert loaded.temperature == 0.05


# Prompt, padding, preprocessing


def test_prompt_and_padding_are_those_of_training(loaded: public.Public, tmp_path: Path):
    assert loaded.model.config.default_query == "Describe the video."
    assert loaded.model.config.text_prompt == "{}"
    for name, pad, length, text, wanted in (
        ("tokenizer.json", 3, QUERY, "describe the video .", [1, 5, 6, 7, 8, 3, 3, 3, 3, 3, 3, 3]),
        ("y_tokenizer.json", 4, 6, "a man cooks", [1, 13, 14, 15, 4, 4]),
    ):
        loaded.tokenizers[name].save(str(tmp_path / name))
        ids, mask = TextTokenizer(tmp_path / name, length)([text])
        assert ids[0].tolist() == wanted
        assert mask[0].tolist() == [int(token != pad) for token in wanted]


def test_preset_is_the_public_checkpoint():
    config = open_vljepa()
    vision, blocks, text = config.x_encoder_config, config.predictor_config, config.y_encoder_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads) == (
        1024,
        24,
        16,
    )
    assert (vision.patch_size, vision.tubelet_size, vision.crop_size) == (16, 2, 256)
    assert (vision.frames_per_clip, config.visual_tokens) == (8, 4 * 16 * 16)
    assert (blocks.hidden_size, blocks.intermediate_size, blocks.num_hidden_layers) == (
        2048,
        8192,
        8,
    )
    assert (blocks.num_attention_heads, blocks.num_key_value_heads, blocks.head_dim) == (32, 8, 64)
    assert (blocks.vocab_size, blocks.pad_token_id, blocks.rms_norm_eps) == (128256, 128004, 1e-5)
    assert blocks.rope_parameters == {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    assert (text.hidden_size, text.num_hidden_layers, text.vocab_size) == (768, 24, 262144)
    assert text.use_bidirectional_attention
    assert (config.embedding_dim, config.query_length, config.text_length) == (1536, 64, 64)
    assert (config.default_query, config.visual_merge) == ("Describe the video.", 1)


@pytest.mark.parametrize(
    "size", [(48, 64), (97, 40), (33, 45), (20, 31), (32, 32)], ids=lambda s: f"{s[1]}x{s[0]}"
)
def test_pictures_are_prepared_as_in_training(size: tuple[int, int]):
    """`Resize(32, antialias=True)` and `CenterCrop(32)` of torchvision, in torch's own words."""
    image = np.random.default_rng(5).integers(0, 256, (*size, 3), dtype=np.uint8)
    height, width = (int(32 * length / min(size)) for length in size)
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None].float(), (height, width), mode="bilinear",
        antialias=True,
    )[0].permute(1, 2, 0)  # fmt: skip
    top, left = round((height - 32) / 2.0), round((width - 32) / 2.0)
    wanted = resized[top : top + 32, left : left + 32].numpy()
    got = prepare(image, 32, "bilinear")
    assert got.shape == (32, 32, 3) and got.dtype == np.uint8
    assert np.abs(got - wanted).max() <= 0.501  # rounded to whole grey levels


# Refused


def test_missing_and_unexpected_keys_are_all_named(folders: dict[str, Path], tmp_path: Path):
    state = weights()
    for name in ("predictor.layers.1.mlp.up_proj.weight", "y_encoder.projector.bias"):
        del state[name]
    state["x_encoder.projector.weight"] = state["predictor.extra"] = torch.zeros(1)
    state["predictor.norm.weight"] = torch.zeros(3)
    with pytest.raises(public.PublicError) as refusal:
        load(folders, checkpoint=save(tmp_path / "best.pt", state))
    said = str(refusal.value)
    assert said.startswith(f"The weights in {tmp_path / 'best.pt'} do not fit")
    assert (
        "predictor.layers.1.mlp.up_proj.weight, y_encoder.projector.bias (missing); "
        "predictor.extra, x_encoder.projector.weight (unexpected); "
        "predictor.norm.weight [3] instead of [32] (of another shape)"
    ) in said


def test_an_x_encoder_that_lacks_a_key_is_refused(folders: dict[str, Path], tmp_path: Path):
    model = scramble(VJEPA2Model(VISION))
    state = model.state_dict()
    del state["encoder.layer.1.attention.value.bias"]
    state["encoder.layer.9.norm"] = torch.zeros(1)
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(public.PublicError) as refusal:
        load(folders, vision=tmp_path)
    assert "encoder.layer.1.attention.value.bias (missing)" in str(refusal.value)
    assert "encoder.layer.9.norm (unexpected)" in str(refusal.value)


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this must never run",)


def test_a_file_that_would_run_code_is_not_read(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    torch.save({"model_state_dict": {}, "config": Trap()}, tmp_path / "best.pt")
    with pytest.raises(public.PublicError, match="no checkpoint of tensors and plain values"):
        load(folders, checkpoint=tmp_path / "best.pt")
    assert "never run" not in capsys.readouterr().out


def test_folders_of_other_models_are_refused(folders: dict[str, Path], tmp_path: Path):
    with pytest.raises(public.PublicError, match="type 'gemma3_text', not 'llama'"):
        load(folders, llama=folders["gemma"])
    with pytest.raises(public.PublicError, match="holds no configuration"):
        load(folders, gemma=tmp_path)
    torch.save({"model_state_dict": {}, "config": {"encoder": {}}}, tmp_path / "other.pt")
    with pytest.raises(public.PublicError, match="lacks 'config' or part of it"):
        load(folders, checkpoint=tmp_path / "other.pt")
    with pytest.raises(public.PublicError, match="There is no checkpoint"):
        load(folders, checkpoint=tmp_path / "none.pt")


def test_a_causal_predictor_is_refused(folders: dict[str, Path], tmp_path: Path):
    recipe = copy.deepcopy(RECIPE)
    recipe["predictor"]["disable_causal_mask"] = False
    torch.save({"model_state_dict": weights(), "config": recipe}, tmp_path / "best.pt")
    with pytest.raises(public.PublicError, match="causal mask"):
        load(folders, checkpoint=tmp_path / "best.pt")


# The bundle, made by the command


@pytest.fixture(scope="module")
def bundle(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    out = tmp_path_factory.mktemp("bundles") / "open-vljepa"
    names = {"checkpoint": "checkpoint", "x-encoder": "vision", "llama": "llama", "gemma": "gemma"}
    given = [part for name, at in names.items() for part in (f"--{name}", str(folders[at]))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "COMPRESSED", 500)  # as small as these matrices are
        patch.setattr(storage, "INLINE", 20_000)  # so that some graphs are large ones
        done = CliRunner().invoke(
            app, ["export", "--from", "open-vljepa", *given, "--out", str(out)],
            catch_exceptions=False,
        )  # fmt: skip
    assert done.exit_code == 0
    return out


@pytest.mark.slow
@pytest.mark.timeout(600)  # a busy machine exports for minutes
def test_bundle_gives_the_forward_by_hand(bundle: Path, folders: dict[str, Path]):
    found = load_bundle(bundle)
    model = Runtime(found, "onnxruntime-cpu", threads=1)
    visual = visual_tokens(folders)
    answers = model.predict(model.encode(clips()), QUERIES)
    for clip in range(2):
        for query, text in enumerate(QUERIES):
            wanted = predicted(weights(), visual[clip], ids_of(text))
            assert answers[clip, query] @ wanted >= found.tolerance
    for text, embedding in zip(TEXTS, model.embed_text(TEXTS), strict=True):
        assert embedding @ written(weights(), ids_of(text)[:TEXT]) >= found.tolerance
    model.close()


@pytest.mark.slow
@pytest.mark.timeout(600)  # a busy machine exports for minutes
def test_bundle_carries_licences_and_says_what_it_is(bundle: Path):
    assert verify_bundle(bundle) == []
    found = load_bundle(bundle)
    assert found.source["licences"] == {
        "x_encoder": "apache-9",
        "predictor": "Llama 3.2 Community License (Llama-3.2-1B)",
        "y_encoder": "Gemma Terms of Use (EmbeddingGemma-300M)",
    }
    assert (found.source["epoch"], found.source["thresholds"]) == (7, "not calibrated")
    assert re.fullmatch("[0-9a-f]{64}", found.source["checkpoint_sha256"])
    assert (bundle / "predictor-LICENSE.txt").read_text() == "the agreement\n"
    assert "predictor-LICENSE.txt" in yaml.safe_load((bundle / "bundle.yaml").read_text())["files"]
    assert found.resample == "bilinear"
    assert (found.query.default, found.query.length) == ("Describe the video.", QUERY)
    assert (found.temperature, found.clip.frames, found.clip.sample_rate) == (0.05, 8, 0.5)


@pytest.mark.slow
@pytest.mark.timeout(600)  # a busy machine exports for minutes
def test_weights_of_large_graphs_lie_beside_them(bundle: Path):
    names = {file.name for file in bundle.iterdir()}
    assert {"predictor.onnx", "predictor.data", "y_encoder.data", "x_encoder.data"} <= names
    assert not [name for name in names if name.endswith(".onnx.data")]
    assert (bundle / "predictor.data").stat().st_size > 20_000


@pytest.mark.slow
@pytest.mark.timeout(600)  # a busy machine exports for minutes
def test_bundle_without_a_decoder_says_so(bundle: Path):
    found = load_bundle(bundle)
    assert found.decoder is None and found.phrases is not None
    assert "a person opens a door" in found.phrases.file.read_text().splitlines()
    with pytest.raises(EngineError, match="has no 'y_decoder'; use a bundle that has one"):
        Runtime(found, "onnxruntime-cpu", parts=("y_decoder", "y_encoder"))


def test_the_command_names_what_is_not_given(tmp_path: Path):
    with pytest.raises(Exception, match="also needs --checkpoint, --llama, --gemma"):
        CliRunner().invoke(
            app, ["export", "--from", "open-vljepa", "--x-encoder", "x", "--out", str(tmp_path)],
            catch_exceptions=False,
        )  # fmt: skip
