"""Embeddings against tokens: the same batches for both, true counts, exact resumption."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import scramble, tiny_config
from safetensors.torch import save_file

from vljepa_ros.errors import VLJepaError
from vljepa_ros.evaluation.plots import token_comparison
from vljepa_ros.inference.text import TextTokenizer
from vljepa_ros.model.networks import VLJepa
from vljepa_ros.tabletop import language
from vljepa_ros.training.comparison import compare as comparison
from vljepa_ros.training.comparison.compare import Plan, compare, learn, plain
from vljepa_ros.training.comparison.learners import EmbeddingLearner, TokenLearner
from vljepa_ros.training.comparison.token_model import (
    IGNORED,
    TokenModel,
    TokenTree,
    question_and_answer,
    rows_of,
    trainable,
)
from vljepa_ros.training.comparison.visual_cache import HeldOut, Shown, VisualCache
from vljepa_ros.training.texts import BEGIN, END, sentence_encoder_folder, train_tokenizer

SAID = {  # sentence: (name, grey of the picture)
    "nothing is moving": (("still", None, None), 20),
    "the red ball rolls across the table": (("roll", "red", "ball"), 100),
    "the gripper picks up the blue cube": (("pick_up", "blue", "cube"), 180),
    "a hand passes over the table": (("hand", None, None), 250),
}
ASKED = ["What is happening?", "Is there a red ball?"]
CLIPS, BATCH, STEPS = 40, 8, 40


class Greys:
    """Clips of one grey each, which says what happens."""

    def __init__(self) -> None:
        self.drawn = 0

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        self.drawn += 1
        text = list(SAID)[int(rng.integers(len(SAID)))]
        grey = SAID[text][1] + rng.integers(-5, 6)
        there = "yes" if "red ball" in text else "no"
        return {"frames": picture(grey), "queries": ASKED, "answers": [text, there]}


def picture(grey: int) -> np.ndarray:
    return np.full((4, 32, 32, 3), np.clip(grey, 0, 255), np.uint8)


@pytest.fixture(scope="module", autouse=True)
def sentence_encoder(tmp_path_factory: pytest.TempPathFactory, model: VLJepa) -> Iterator[None]:
    """A tiny sentence encoder in the public one's place."""
    folder = tmp_path_factory.mktemp("sentence_encoder")
    words = sentence_encoder_folder() / "tokenizer.json"
    (folder / "tokenizer.json").write_bytes(words.read_bytes())
    save_file(model.y_encoder.model.state_dict(), str(folder / "model.safetensors"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "vljepa_ros.training.comparison.learners.sentence_encoder_folder", lambda: folder
        )
        yield


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer([*ASKED, *SAID, "yes", "no"], 300, path)
    return path


@pytest.fixture(scope="module")
def model() -> VLJepa:
    config = tiny_config(
        vocabulary=300, text_vocabulary=30522, layers=1, query_length=12, text_length=16
    )
    return scramble(VLJepa(config))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, model: VLJepa) -> VisualCache:
    folder = tmp_path_factory.mktemp("cache")
    return VisualCache(folder, CLIPS, model, seed=3).fill(model, Greys())


@pytest.fixture(scope="module")
def shown(model: VLJepa) -> HeldOut:
    frames = torch.from_numpy(np.stack([picture(grey) for _, grey in SAID.values()]))
    with torch.inference_mode():
        visual = model.predictor.merged(model.x_encoder(frames))
    clips = [Shown(i, name) for i, (name, _) in enumerate(SAID.values())]
    return HeldOut(clips, visual.clone())


@pytest.fixture
def plan(model: VLJepa, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setattr(comparison, "RATE", 1e-2)
    return Plan("digest", CLIPS, BATCH, STEPS, [STEPS // 4, STEPS], seed=3)


def learners(model: VLJepa, tokenizer: Path, cache: VisualCache) -> dict[str, Any]:
    torch.manual_seed(0)
    first = EmbeddingLearner(model.config, tokenizer, cache, BATCH)
    return {
        "vl_jepa": first,
        "token_model": TokenLearner(model.config, tokenizer, trainable(first.networks)),
    }


@pytest.fixture
def quick_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vljepa_ros.training.comparison.learners.FIRST_STEPS", 60)
    monkeypatch.setattr("vljepa_ros.training.comparison.learners.NEXT_STEPS", 30)
    monkeypatch.setattr("vljepa_ros.training.comparison.learners.DECODER_RATE", 1e-2)


@pytest.mark.parametrize("name", ["vl_jepa", "token_model"])
@pytest.mark.usefixtures("quick_decoder")
def test_both_learn_and_go_on_as_if_never_interrupted(
    name: str, model: VLJepa, tokenizer: Path, cache: VisualCache, shown: HeldOut, plan: Plan,
    tmp_path: Path,
):  # fmt: skip
    torch.set_num_threads(1)
    learner = learners(model, tokenizer, cache)[name]
    learned, networks = learn(learner, cache, plan, shown, tmp_path / "whole.pt")
    early, late = learned["curve"]
    assert [early["samples"], late["samples"]] == [2 * BATCH * STEPS // 4, 2 * BATCH * STEPS]
    assert late["loss"] < 0.7 * early["loss"]
    assert late["said"]["kind"]["value"] >= 0.75  # of four
    assert late["cider"]["value"] > 1

    half = dataclasses.replace(plan, steps=STEPS // 2)
    again = learners(model, tokenizer, cache)[name]
    learn(again, cache, half, shown, tmp_path / "half.pt")
    torch.save({**torch.load(tmp_path / "half.pt"), "seconds": 7.0}, tmp_path / "half.pt")
    resumed = learners(model, tokenizer, cache)[name]
    relearned, same = learn(resumed, cache, plan, shown, tmp_path / "half.pt")
    assert relearned["curve"] == learned["curve"]
    assert relearned["training_cpu_seconds"] > 7
    for one, other in zip(networks.parameters(), same.parameters(), strict=True):
        assert torch.equal(one, other)


def test_both_see_the_same_batches_in_the_same_order(
    model: VLJepa, tokenizer: Path, cache: VisualCache, shown: HeldOut, plan: Plan,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.setattr(comparison, "measure", lambda *_: {})
    seen = {}
    for name, learner in learners(model, tokenizer, cache).items():
        batches, loss = [], learner.loss

        def watched(step: int, batch: Any, loss: Any = loss, batches: list = batches) -> Any:
            batches.append(batch)
            return loss(step, batch)

        monkeypatch.setattr(learner, "loss", watched)
        learn(learner, cache, dataclasses.replace(plan, steps=7), shown, tmp_path / name)
        seen[name] = batches
    assert len(seen["vl_jepa"]) == 7
    for one, other in zip(seen["vl_jepa"], seen["token_model"], strict=True):
        assert torch.equal(one.visual, other.visual)
        assert (one.queries, one.answers) == (other.queries, other.answers)
    firsts = [tuple(batch.visual[:, 0, 0].tolist()) for batch in seen["vl_jepa"]]
    assert len(set(firsts[:5])) == 5  # five batches are a pass


def test_a_pass_shows_every_clip_once(cache: VisualCache):
    chosen = [cache.indices(step, BATCH) for step in range(2 * CLIPS // BATCH)]
    first, second = np.array_split(np.concatenate(chosen), 2)
    assert sorted(first) == sorted(second) == list(range(CLIPS))
    assert list(first) != list(second)


def test_filling_goes_on_where_it_stopped(tmp_path: Path, model: VLJepa, cache: VisualCache):
    greys = Greys()
    texts = (cache.folder / "clips.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "clips.jsonl").write_text("".join(texts[:35]))  # the second chunk was cut off
    kept = (cache.folder / "clips.f16").read_bytes()
    (tmp_path / "clips.f16").write_bytes(kept[: len(kept) * 32 // CLIPS].ljust(len(kept), b"\0"))
    again = VisualCache(tmp_path, CLIPS, model, seed=3).fill(model, greys)
    assert greys.drawn == CLIPS - 32
    assert again.texts == cache.texts
    assert (tmp_path / "clips.f16").read_bytes() == kept


def test_counts_are_true(model: VLJepa, tokenizer: Path, cache: VisualCache):
    first, second = learners(model, tokenizer, cache).values()
    config, width = model.config, model.config.predictor_config.hidden_size
    said = first.parameters()
    head = config.y_encoder_config.hidden_size * config.embedding_dim + config.embedding_dim
    predictor = sum(p.numel() for p in model.predictor.parameters())
    assert said["trainable"] == predictor + head + 1  # and the temperature
    assert said["of_these_token_embedding"] == 300 * width
    counted = {id(p): p.numel() for p in second.networks.parameters()}
    assert second.parameters()["trainable"] == sum(counted.values())
    layer = trainable(TokenModel(config, 2)) - trainable(TokenModel(config, 1))
    assert abs(second.parameters()["trainable"] - 2 * said["trainable"]) <= layer / 2
    moved = {name for name, p in first.networks.named_parameters() if p.requires_grad}
    assert not any("y_encoder.model" in name or "decoder" in name for name in moved)


def test_candidates_score_as_one_by_one(model: VLJepa):
    """The tree's scores are those of each candidate alone, as its own sequence."""
    torch.manual_seed(1)
    network = scramble(TokenModel(model.config, 2))
    visual = torch.randn(2, 8, model.config.x_encoder_config.hidden_size * 4)
    question = torch.tensor([5, 6, BEGIN])
    candidates = [[7, 8, 9, END], [7, 8, END], [7, 10, 9, END], [11, END], [7, 8, 9, 12, END]]
    with torch.inference_mode():
        got = network.score(visual, question, TokenTree(candidates))
        for index, ids in enumerate(candidates):
            whole = torch.tensor([*question.tolist(), *ids[:-1]])[None].expand(2, -1)
            states = network.states(visual, whole)[:, len(question) - 1 :]
            said = network.language.lm_head(states).log_softmax(-1)
            wanted = said[:, torch.arange(len(ids)), ids].mean(-1)
            torch.testing.assert_close(got[:, index], wanted, atol=1e-4, rtol=0)


def test_the_likeliest_candidate_is_the_same_in_small_trees(
    model: VLJepa, tokenizer: Path, cache: VisualCache, shown: HeldOut,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    learner = learners(model, tokenizer, cache)["token_model"]
    network = scramble(learner.networks, seed=2)
    labels = {text: name for text, (name, _) in SAID.items()}
    question = learner.question
    with torch.inference_mode():
        small, large = [], []
        for size, names in ((3, small), (64, large)):
            monkeypatch.setattr("vljepa_ros.training.comparison.learners.TREE", size)
            names += learner.classify(network, shown.visual, labels)
        ids = [[*row, END] for row in rows_of(learner.answer_tokens, list(labels))]
        best = network.score(shown.visual, question, TokenTree(ids)).argmax(1)
    assert small == large == [list(labels.values())[i] for i in best]


def test_generating_with_a_cache_is_choosing_the_likeliest_again_and_again(model: VLJepa):
    network = scramble(TokenModel(model.config, 2), seed=4)
    visual = torch.randn(3, 8, model.config.x_encoder_config.hidden_size * 4)
    question = torch.tensor([5, 6, BEGIN])
    with torch.inference_mode():
        got = network.generate(visual, question, 6)
        for row, said in enumerate(got):
            ids = question.tolist()
            for _ in range(6):
                states = network.states(visual[row][None], torch.tensor([ids]))
                ids.append(int(network.language.lm_head(states[0, -1]).argmax()))
            wanted = ids[len(question) :]
            assert said == (wanted[: wanted.index(END)] if END in wanted else wanted)


def test_only_the_answer_is_asked_for(tokenizer: Path):
    words = TextTokenizer(tokenizer, 16)
    ids, targets = question_and_answer(words, words, ["What?", ASKED[1]], [list(SAID)[1], "no"])
    for row, text in enumerate((list(SAID)[1], "no")):
        asked = targets[row] != IGNORED
        assert ids[row, int(asked.nonzero()[0])] == BEGIN
        said = targets[row][asked].tolist()
        assert said[-1] == END and words.decode(said[:-1]) == text
        assert ids[row, 1:][asked[:-1]][: len(said) - 1].tolist() == said[:-1]


@pytest.mark.parametrize("usual", language.COLOURS + language.SHAPES)
def test_other_words_of_training_name_the_usual_thing(usual: str):
    for other in language.REWORDINGS[usual]:
        assert plain(f"the arm nudges the {other} now") == f"the arm nudges the {usual} now"


def test_compare_from_episodes_to_json_and_plot(
    model: VLJepa, tmp_path: Path, shown: HeldOut, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("vljepa_ros.training.comparison.learners.FIRST_STEPS", 2)
    monkeypatch.setattr("vljepa_ros.training.comparison.learners.NEXT_STEPS", 1)
    monkeypatch.setattr(comparison, "ClipDataset", lambda *_, **__: Greys())
    monkeypatch.setattr(comparison, "held_out", lambda *_: shown)
    monkeypatch.setattr(comparison.store, "needed", lambda *_: [])
    names = {text: name for text, (name, _) in SAID.items()}
    monkeypatch.setattr(comparison.language, "canonical", lambda: names)
    monkeypatch.setattr(comparison, "BATCH", 4)
    out = tmp_path / "work"
    result = compare(model, tmp_path, out, samples=64)
    assert json.loads((out / comparison.RESULT).read_text()) == result
    assert not (out / "clips.f16").exists()
    assert compare(model, tmp_path, out, samples=64) == result  # done: nothing is trained again
    assert result["protocol"]["samples"] == 64
    for name in ("vl_jepa", "token_model"):
        samples = [point["samples"] for point in result[name]["curve"]]
        assert samples == sorted(set(samples)) and samples[-1] == 64
    assert result["token_model"]["by_perplexity"]["clips"] == len(shown)
    assert all(value > 0 for value in result["milliseconds"].values())
    picture = tmp_path / "comparison.png"
    token_comparison(json.loads(json.dumps(result)), picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(VLJepaError, match="another folder"):
        compare(model, tmp_path, out, samples=128)
