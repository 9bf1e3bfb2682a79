"""Training in small from episodes to a bundle: the tabletop's recipe with tiny networks."""

import copy
import csv
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import lightning
import numpy as np
import onnx
import pytest
import torch
from networks import MANIFEST, scramble, tiny_config
from safetensors.torch import load_file, save_file

from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.errors import VLJepaError
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.inference.verify import verify_bundle
from vljepa_ros.model.export import bundle as export
from vljepa_ros.model.export import storage
from vljepa_ros.model.networks import VLJepa, YEncoder
from vljepa_ros.tabletop import store
from vljepa_ros.tabletop.clips import ClipDataset
from vljepa_ros.tabletop.sim.episode import simulate
from vljepa_ros.training import train as training
from vljepa_ros.training.base import load_base, load_checkpoint, rearranged, resized
from vljepa_ros.training.stages import DecoderStage, JointStage
from vljepa_ros.training.texts import sentence_encoder_folder
from vljepa_ros.training.train import Recipe

STEPS = 103  # checkpoints are kept every 100 steps
RECIPE = Recipe(
    text_steps=2, text_batch=4, image_steps=STEPS, video_steps=2, decoder_steps=2, image_batch=2,
    video_batch=2, video_stills=2,
    decoder_batch=4, decoder_clips=40, workers=0,
)  # fmt: skip
pytestmark = pytest.mark.timeout(600)  # a busy machine exports for minutes


class PowerCut(Exception):
    """What stops the training here."""


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def tiny(patch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny configuration and a tiny sentence encoder in the tabletop's place; its folder."""

    def config(vocabulary: int):
        return tiny_config(
            vocabulary=vocabulary, text_vocabulary=30522, image_size=96, patch=32, layers=1,
            visual_merge=3, query_length=24, text_length=64,
        )  # fmt: skip

    folder = tmp_path_factory.mktemp("sentence_encoder")
    encoder = scramble(YEncoder(config(10)).model)
    save_file(encoder.state_dict(), str(folder / "model.safetensors"))
    tokenizer = sentence_encoder_folder() / "tokenizer.json"
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    patch.setattr(training, "tabletop", config)
    patch.setattr(training, "sentence_encoder_folder", lambda: folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for seed in (0, 1):
        store.save_episode(root / "train" / f"{seed:08d}.npz", simulate(seed, 6.0))
    return root


@pytest.fixture(scope="module")
def losses() -> list[float]:
    """Of every step of the joint stages."""
    return []


@pytest.fixture(scope="module")
def steps(patch: pytest.MonkeyPatch, losses: list[float]) -> list[tuple[str, int]]:
    """The stage and the step of everything that is trained; a power cut at image step 101."""
    seen: list[tuple[str, int]] = []
    for stage in (JointStage, DecoderStage):

        def watched(self, batch, index, stage=stage, step=stage.training_step):
            seen.append((stage.__name__, self.global_step))
            if len(seen) == 102:
                raise PowerCut
            loss = step(self, batch, index)
            if stage is JointStage:
                assert not self.model.y_encoder.model.training  # dropout would change its vectors
                losses.append(loss.item())
            return loss

        patch.setattr(stage, "training_step", watched)
    return seen


@pytest.fixture(scope="module")
def trained(
    tiny: Path, data: Path, steps: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a training that was cut off once and went on."""
    out = tmp_path_factory.mktemp("run")
    with pytest.raises(PowerCut):
        training.train(data, out, RECIPE)
    assert [path.parent.name for path in out.rglob("*.safetensors")] == ["texts"]
    return training.train(data, out, RECIPE)


@pytest.fixture(scope="module")
def its_steps(trained: Path, steps: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """The steps of that training and of no later one."""
    return list(steps)


def test_training_goes_on_from_the_last_checkpoint(its_steps: list[tuple[str, int]]):
    images = [step for stage, step in its_steps if stage == "JointStage"]
    assert images == [*range(102), *range(100, STEPS), 0, 1]
    assert [step for stage, step in its_steps if stage == "DecoderStage"] == [0, 1]


def test_the_log_of_before_the_power_cut_is_kept(trained: Path):
    """Every 20th step is logged, and written every 100 steps."""
    rows = [
        row
        for file in (trained / "images" / "log").rglob("metrics.csv")
        for row in csv.DictReader(file.open())
    ]
    assert {19, 39, 59, 79, 99} <= {int(row["step"]) for row in rows if row["contrast"]}


def test_a_finished_training_is_not_run_again(
    trained: Path, data: Path, steps: list[tuple[str, int]]
):
    before, run = load_file(trained / "weights.safetensors"), len(steps)
    training.train(data, trained, RECIPE)
    assert len(steps) == run
    after = load_file(trained / "weights.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def changed(a: dict, b: dict, part: str) -> float:
    """The largest change of a weight of `part` between two checkpoints."""
    names = [name for name in a if name.startswith(part)]
    return max(float((a[name] - b[name]).abs().max()) for name in names)


def test_every_stage_builds_on_the_one_before(trained: Path, tiny: Path):
    lightning.seed_everything(RECIPE.seed, verbose=False)
    start = training.build(trained / "tokenizer.json").state_dict()
    texts, images, video, decoder = (
        load_file(trained / stage / "weights.safetensors")
        for stage in ("texts", "images", "video", "decoder")
    )

    for part in ("x_encoder.", "predictor.", "y_encoder.projector."):
        assert changed(start, images, part) > 0.01, part
        assert changed(video, decoder, part) == 0, part
    for part in ("x_encoder.", "predictor."):
        assert 0 < changed(images, video, part) < 0.01, part  # two steps of the warm-up
    assert changed(images, video, "y_encoder.projector.") > 0.01  # fitted at the end
    assert changed(images, video, "y_decoder.") == 0
    assert changed(video, decoder, "y_decoder.") > 0
    assert changed(start, texts, "y_encoder.model.encoder.") > 0
    for part in ("x_encoder.", "predictor.", "y_encoder.projector.", "y_decoder."):
        assert changed(start, texts, part) == 0, part
    words = "y_encoder.model.embeddings.word_embeddings."
    assert changed(start, texts, words) == 0
    assert changed(texts, decoder, "y_encoder.model.") == 0
    whole = load_file(trained / "weights.safetensors")
    assert all(torch.equal(whole[name], value) for name, value in decoder.items())


def test_learning_lowers_the_loss(trained: Path, losses: list[float]):
    assert np.mean(losses[90:100]) < 0.8 * np.mean(losses[:10])


def test_the_recipe_is_kept_with_the_number_of_episodes(trained: Path):
    kept = json.loads((trained / "recipe.json").read_text())
    assert kept.pop("episodes")["train"] > 0
    assert Recipe(**kept) == RECIPE


# Going on from what was trained

FURTHER = replace(RECIPE, head_steps=3)


@pytest.fixture(scope="module")
def further(
    trained: Path, its_steps: object, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("further")
    return training.train(data, out, FURTHER, load_base(str(trained)))


def test_going_on_from_a_model_fits_its_heads_and_then_trains_it(trained: Path, further: Path):
    whole = load_file(trained / "weights.safetensors")
    heads, video = (load_file(further / s / "weights.safetensors") for s in ("heads", "video"))
    assert all(torch.equal(heads[name], value) for name, value in whole.items())
    for part in ("x_encoder.", "predictor."):
        assert changed(heads, video, part) > 0, part
    assert changed(whole, load_file(further / "weights.safetensors"), "y_encoder.") == 0
    fitted, later = (torch.load(further / s / "heads.pt") for s in ("heads", "video"))
    before = torch.load(trained / "images" / "heads.pt")
    assert not torch.equal(fitted["log_temperature"], torch.tensor(0.07).log())
    weights = [one["state_head"]["linear.weight"] for one in (before, fitted, later)]
    assert (weights[2] - weights[1]).abs().max() < 0.01  # two steps of the warm-up, from there on
    assert (weights[2] - weights[0]).abs().max() > 0.01
    assert not (further / "texts").exists() and not (further / "images").exists()
    assert (further / "tokenizer.json").read_bytes() == (trained / "tokenizer.json").read_bytes()


def test_the_recipe_tells_where_it_went_on(trained: Path, further: Path):
    kept = json.loads((further / "recipe.json").read_text())
    assert kept["from"] == trained.name
    assert kept["before"] == json.loads((trained / "recipe.json").read_text())


def test_a_training_does_not_go_on_from_another_start(trained: Path, further: Path, data: Path):
    with pytest.raises(VLJepaError, match=f"{further} .* began from {trained.name}, .* nothing"):
        training.train(data, further, FURTHER)
    with pytest.raises(VLJepaError, match=f"{trained} .* began from nothing, .* {trained.name}"):
        training.train(data, trained, RECIPE, load_base(str(trained)))


def test_a_model_can_have_larger_pictures(trained: Path, tiny: Path):
    start = load_checkpoint(trained)
    larger = resized(start, 192)
    same = zip(start.state_dict().values(), larger.state_dict().values(), strict=True)
    assert all(torch.equal(before, after) for before, after in same)
    frames = torch.randint(256, (1, 4, 192, 192, 3), dtype=torch.uint8)
    ids = torch.ones(1, 24, dtype=torch.long)
    with torch.inference_mode():
        visual = larger.x_encoder(frames)
        assert larger.predictor(visual, ids, ids).isfinite().all()
    assert visual.shape[1] == larger.config.visual_tokens == 2 * 36
    assert start.config.visual_tokens == 2 * 9  # the start itself is as it was
    assert resized(start, 96) is resized(start, None) is start
    for size in (0, 128):
        with pytest.raises(VLJepaError, match=f"{size} pixels a side: give a multiple of 96"):
            resized(start, size)


def test_a_training_goes_on_with_larger_pictures(trained: Path, data: Path, tmp_path: Path):
    recipe = replace(FURTHER, image_size=192)
    out = training.train(data, tmp_path / "larger", recipe, load_base(str(trained)))
    assert load_checkpoint(out).config.x_encoder_config.crop_size == 192
    with pytest.raises(VLJepaError, match=f"began from {trained.name} at 192 px, .* --size"):
        training.train(data, out, FURTHER, load_base(str(trained)))


def answers(model: VLJepa, frames: torch.Tensor) -> torch.Tensor:
    ids = torch.ones(1, 24, dtype=torch.long)
    with torch.inference_mode():
        return model.predictor(model.x_encoder(frames), ids, ids)


def test_a_model_can_encode_in_chunks(trained: Path, tiny: Path):
    """With the same weights; what is new in the predictor changes nothing until it is trained."""
    start = load_checkpoint(trained)
    frames = torch.randint(256, (2, 4, 96, 96, 3), dtype=torch.uint8)
    assert rearranged(start, None, None) is start
    whole = rearranged(start, 4, 3)
    torch.testing.assert_close(answers(whole, frames), answers(start, frames))
    other = rearranged(start, 2, 3)
    assert other.config.predictor_config.num_hidden_layers == 3
    assert torch.equal(other.predictor.layers[2].mlp.up_proj.weight,
                       start.predictor.layers[0].mlp.up_proj.weight)  # fmt: skip
    with torch.inference_mode():
        alone = [start.x_encoder(frames[:, k : k + 2]) for k in (0, 2)]
        torch.testing.assert_close(other.x_encoder(frames), torch.cat(alone, dim=1))
    again = rearranged(other, None, 4)  # one that is rearranged stays in chunks
    assert (again.config.chunk, other.config.chunk, start.config.chunk) == (2, 2, 4)
    torch.testing.assert_close(answers(again, frames), answers(other, frames))
    for chunk in (1, 3, 8):
        with pytest.raises(VLJepaError, match=f"cannot be encoded {chunk} at a time: .* of 2"):
            rearranged(start, chunk, None)
    with pytest.raises(VLJepaError, match="the predictor has 3 layers, and none can be taken"):
        rearranged(other, None, 2)


def test_a_training_goes_on_in_chunks(
    trained: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What they take away is learnt from the start as it was; otherwise it has no teacher."""
    taught, apart = [], JointStage.apart
    monkeypatch.setattr(JointStage, "apart", lambda *told: taught.append(told[1]) or apart(*told))
    recipe = replace(FURTHER, chunk=2, predictor_layers=2)
    start = load_base(str(trained))
    before = copy.deepcopy(start.model.state_dict())
    out = training.train(data, tmp_path / "chunks", recipe, start)
    assert taught == [start.model] * FURTHER.video_steps
    assert all(torch.equal(value, before[n]) for n, value in start.model.state_dict().items())
    training.train(
        data, tmp_path / "more", replace(FURTHER, predictor_layers=2), load_base(str(out))
    )
    assert len(taught) == FURTHER.video_steps
    model = load_checkpoint(out)
    assert (model.config.chunk, len(model.predictor.layers)) == (2, 2)
    learned = [model.predictor.embed_times, model.predictor.layers[0].mlp.down_proj.weight]
    assert all(weight.any() for weight in learned)
    begun = f"began from {trained.name} in chunks of 2 with 2 layers in the predictor, .* --chunk"
    with pytest.raises(VLJepaError, match=begun):
        training.train(data, out, FURTHER, load_base(str(trained)))


def test_a_model_with_other_word_pieces_cannot_go_on(trained: Path, data: Path, tmp_path: Path):
    strange = replace(load_base(str(trained)), y_tokenizer=trained / "tokenizer.json")
    with pytest.raises(VLJepaError, match="cannot learn from the simulated table"):
        training.train(data, tmp_path / "out", FURTHER, strange)


# The bundle of what was trained


@pytest.fixture(scope="module")
def model(trained: Path) -> VLJepa:
    return load_checkpoint(trained)


@pytest.fixture(scope="module")
def clips(data: Path, model: VLJepa) -> np.ndarray:
    dataset = ClipDataset(data, training.clip_shape(model.config), 7)
    random = np.random.default_rng(0)
    return np.stack([dataset.draw(random)["frames"] for _ in range(3)])


@pytest.fixture(scope="module")
def bundle(
    model: VLJepa, trained: Path, tiny: Path, clips: np.ndarray, patch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:  # fmt: skip
    patch.setattr(storage, "COMPRESSED", 500)  # as small as these matrices are
    sentences = training.sentences_of(model)
    texts = sentences.tokenizer(["a ball rolls", "the gripper picks up the red cube"])
    tokenizers = {
        "tokenizer.json": trained / "tokenizer.json",
        "y_tokenizer.json": tiny / "tokenizer.json",
    }
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    return export.export_bundle(model, folder, MANIFEST, tokenizers, clips, texts)


@pytest.fixture(scope="module")
def runtime(bundle: Path) -> Iterator[Runtime]:
    parts = ("x_encoder", "predictor", "y_encoder", "y_decoder")
    runtime = Runtime(load_bundle(bundle), "onnxruntime-cpu", threads=1, parts=parts)
    yield runtime
    runtime.close()


QUERIES = ["What is happening?", "Is there a red cube?"]


def close(got: np.ndarray, wanted: torch.Tensor) -> None:
    """Cosine of at least 0.999 a row, and more: also of what sets the rows apart."""
    assert got.shape == wanted.shape
    a, b = got.reshape(-1, got.shape[-1]), wanted.numpy().reshape(-1, got.shape[-1])
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosine.min() >= 0.999
    spread = np.abs(b - b.mean(0)).max()
    assert np.abs(a - b).max() < 0.05 * spread


def test_the_bundle_is_whole(bundle: Path):
    assert verify_bundle(bundle) == []
    loaded = load_bundle(bundle)
    assert loaded.clip.frames == 4
    assert loaded.clip.image_size == 96
    assert "y_encoder.data" in loaded.manifest["files"]
    earned = loaded.evaluation["onnx_against_torch"]
    assert set(earned) == {"x_encoder", "predictor", "y_encoder", "y_decoder"}
    assert all(one["cosine"] >= 0.999 for one in earned.values())


def test_the_bundle_says_what_torch_says(model: VLJepa, runtime: Runtime, clips: np.ndarray):
    sentences = training.sentences_of(model)
    rows = sentences.rows(QUERIES, QUERIES)
    with torch.inference_mode():
        visual = model.x_encoder(torch.from_numpy(clips))
        tokenizer = runtime._query_tokenizer
        ids, mask = (torch.from_numpy(a) for a in tokenizer(QUERIES))
        predicted = model.predictor(visual, ids, mask)
        written = model.y_encoder.head(sentences.vectors[rows])
    tokens = runtime.encode(clips)
    close(tokens, visual)
    close(runtime.predict(tokens, QUERIES), predicted)
    close(runtime.embed_text(QUERIES), written)
    alone = runtime.predict(runtime.encode(clips[:1]), QUERIES[1:])  # one clip, one query
    np.testing.assert_allclose(alone, predicted[:1, 1:].numpy(), atol=1e-3)


def test_the_bundle_decodes_as_torch_does(model: VLJepa, runtime: Runtime):
    """Greedily, from no cache on, one token a step."""
    embedding = runtime.embed_text(["a ball rolls"])[0]
    decoder, token, said = model.y_decoder, 1, []
    past = decoder.empty_cache(1)
    with torch.inference_mode():
        while len(said) < 32:
            logits, past = decoder(torch.from_numpy(embedding)[None], torch.tensor([[token]]), past)
            token = int(logits.argmax())
            if token == 2:
                break
            said.append(token)
    assert runtime.decode(embedding) == runtime._decoder_tokenizer.decode(said)


NAMES = {
    "x_encoder": (["frames"], ["visual_tokens"]),
    "predictor": (["visual_tokens", "query_ids", "query_mask"], ["embedding"]),
    "y_encoder": (["ids", "mask"], ["embedding"]),
    "y_decoder": (["embedding", "ids", "past"], ["logits", "present"]),
}


@pytest.mark.parametrize("name", NAMES)
def test_graphs_have_the_names_and_open_sizes_of_the_contract(bundle: Path, name: str):
    graph = onnx.load(bundle / f"{name}.onnx", load_external_data=False).graph
    assert ([i.name for i in graph.input], [o.name for o in graph.output]) == NAMES[name]
    shapes = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*graph.input, *graph.output)
    }
    open_sizes = {n: [d for d in s if isinstance(d, str)] for n, s in shapes.items()}
    wanted = {
        "x_encoder": {"frames": ["B"], "visual_tokens": ["B"]},
        "predictor": {"visual_tokens": ["B"], "query_ids": ["Q", "L"], "query_mask": ["Q", "L"],
                      "embedding": ["B", "Q"]},
        "y_encoder": {"ids": ["B"], "mask": ["B"], "embedding": ["B"]},
        "y_decoder": {"embedding": ["B"], "ids": ["B"], "past": ["B", "S"], "logits": ["B"],
                      "present": ["B", "S + 1"]},
    }  # fmt: skip
    assert open_sizes == wanted[name]


def test_nothing_of_this_machine_is_in_the_bundle(bundle: Path):
    here = {str(Path(export.__file__).parents[3]), str(Path.home()), str(bundle.parent),
            str(Path(torch.__file__).parents[1]), os.path.sep + "site-packages"}  # fmt: skip
    for file in bundle.iterdir():
        if file.name.endswith("tokenizer.json"):
            continue
        content = file.read_bytes()
        for path in here - {os.path.sep}:
            assert path.encode() not in content, (file, path)
        assert b".py" not in content, file
        assert b"stack_trace" not in content, file


def test_the_frozen_weights_stay_the_same_bytes_when_only_the_head_changes(
    bundle: Path, model: VLJepa, tmp_path: Path
):
    head = model.y_encoder.projector.weight
    before, path = head.detach().clone(), tmp_path / "y_encoder.onnx"
    sentences = training.sentences_of(model)
    ids, mask = (torch.from_numpy(a) for a in sentences.tokenizer(["a ball", "a red cube"]))
    inputs = {"ids": ids, "mask": mask}
    try:
        with torch.no_grad():
            head.mul_(-0.5)
        export.export_graph("y_encoder", model.y_encoder, inputs, tmp_path)
    finally:
        with torch.no_grad():
            head.copy_(before)
    data = (bundle / "y_encoder.data").read_bytes()
    assert path.with_suffix(".data").read_bytes() == data
    assert path.read_bytes() != (bundle / "y_encoder.onnx").read_bytes()
    assert len(data) > 30522 * 32  # the table of words is in it, as int8


def test_a_graph_that_differs_from_torch_is_refused(
    bundle: Path, clips: np.ndarray, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    other = scramble(VLJepa(training.tabletop(2000)))

    def wrong(network, inputs, outputs, dynamic, path: Path) -> None:
        path.write_bytes((bundle / path.name).read_bytes())

    monkeypatch.setattr(export, "_export", wrong)
    monkeypatch.setattr(export, "store_small", lambda path, *_, **__: None)
    texts = np.full((2, 64), 7), np.ones((2, 64), np.int64)
    with pytest.raises(export.ExportError, match="gives other numbers than torch") as refusal:
        export.export_bundle(other, tmp_path / "wrong", MANIFEST, {}, clips, texts)
    assert str(tmp_path / "wrong" / "x_encoder.onnx") in str(refusal.value)
    assert not (tmp_path / "wrong" / "bundle.yaml").exists()
