"""The stages of training: what they ask of the networks, and what they train."""

from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from networks import scramble, tiny_config
from torch import Tensor
from torch.nn import functional as F

from vljepa_ros.inference.text import TextTokenizer
from vljepa_ros.model.networks import VLJepa
from vljepa_ros.tabletop import language
from vljepa_ros.tabletop.vocabulary import held_out
from vljepa_ros.training.losses import info_nce
from vljepa_ros.training.stages import (
    FURTHER_NEGATIVES,
    TEACHER_WEIGHS,
    DecoderStage,
    JointStage,
    TextStage,
    scheduled,
)
from vljepa_ros.training.texts import (
    BEGIN,
    END,
    PRE_TRAINED,
    Sentences,
    fit_head,
    mix,
    sentence_encoder_folder,
    tokens,
    train_tokenizer,
)

QUERIES = ["What is happening?", "Is there a red cube?", "Where is the ball?", "What?"]
SAID = ["the ball rolls", "yes", "near left", "nothing is moving at all here"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer([*QUERIES, *SAID], 300, path)
    return path


@pytest.fixture(autouse=True)
def logged(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """What the stages log: there is no trainer that would take it."""
    found: dict[str, Tensor] = {}
    monkeypatch.setattr(
        lightning.LightningModule, "log_dict", lambda _, named, **__: found.update(named)
    )
    return found


@pytest.fixture
def model() -> VLJepa:
    config = tiny_config(vocabulary=300, text_vocabulary=30522, layers=1, query_length=24)
    return scramble(VLJepa(config))


@pytest.fixture
def joint(model: VLJepa, tokenizer: Path) -> JointStage:
    words = TextTokenizer(sentence_encoder_folder() / "tokenizer.json", 12)
    return JointStage(
        model, TextTokenizer(tokenizer, 24), Sentences(model.y_encoder, words), 1e-3, 100, 1.0
    )


def test_questions_belong_to_their_clip(joint: JointStage):
    """Two questions a clip, clip by clip; the same as all padding and every pair would give."""
    visual = torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        got = joint.predict(visual, QUERIES)
        ids, mask = tokens(joint.query_tokens, QUERIES)
        every = joint.model.predictor(visual, ids, mask)
    wanted = torch.stack([every[0, 0], every[0, 1], every[1, 2], every[1, 3]])
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)


def test_contrast_is_info_nce_with_every_event_and_texts_of_the_past(joint: JointStage):
    joint.canonical = ["nothing is moving", "the ball rolls"]
    joint.sentences.rows(["it is a cube"], ["cube"])  # the past
    predicted = F.normalize(torch.randn(4, 48, generator=torch.Generator().manual_seed(1)), dim=-1)
    torch.manual_seed(5)
    got, hits = joint.contrast(predicted, SAID, ["the ball rolls", "yes", "near left", "still"])
    torch.manual_seed(5)
    known = ["it is a cube", *SAID, "nothing is moving"]
    rows = torch.cat([torch.tensor([1, 2, 3, 4, 5, 1]), torch.randint(6, (FURTHER_NEGATIVES,))])
    texts = joint.model.y_encoder(*tokens(joint.sentences.tokenizer, known))[rows]
    ids = torch.arange(6)[rows]
    wanted = info_nce(predicted, texts, ids, torch.tensor(0.07))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=0)
    nearest = ids[(predicted @ texts.T).argmax(1)]
    assert torch.equal(hits, (nearest == ids[:4]).float())


def test_events_kept_for_the_composition_split_are_no_negatives(joint: JointStage):
    said = set(joint.canonical)
    assert "the gripper pushes the red cube" in said and "nothing is moving" in said
    assert "the gripper picks up the purple cube" not in said
    missing = [name for text, name in language.canonical().items() if text not in said]
    assert missing and all(held_out(colour, shape, kind) for kind, colour, shape in missing)


@pytest.fixture
def clips() -> dict[str, Any]:
    """Two clips with two questions each, and a truth of the right shapes."""
    random = np.random.default_rng(0)
    frames = torch.from_numpy(random.integers(0, 256, (2, 4, 32, 32, 3), np.uint8))
    more = {"offset": 2, "motion": 2, "flags": 5, "gripper_state": 3}
    fields = ("objectness", "shape", "colour", "offset", "motion", "flags", "gripper",
              "gripper_state", "hand")  # fmt: skip
    state = {f: torch.zeros(2, 32, more[f]) if f in more else torch.zeros(2, 32) for f in fields}
    state["objectness"][:, 3] = state["gripper"][:, 3] = 1
    state["shape"], state["colour"] = state["shape"].long(), state["colour"].long()
    return {
        "frames": frames, "queries": QUERIES, "answers": SAID, "meanings": SAID, "state": state,
    }  # fmt: skip


def test_the_joint_loss_trains_what_it_should_and_nothing_else(
    joint: JointStage, clips: dict[str, Any]
):
    joint.training_step(clips, 0).backward()
    trained = {name for name, value in joint.named_parameters() if value.grad is not None}
    for part in ("x_encoder.encoder", "predictor.layers", "predictor.embed_tokens",
                 "y_encoder.projector"):  # fmt: skip
        assert any(name.startswith(f"model.{part}") for name in trained), part
    assert "log_temperature" in trained and "state_head.linear.weight" in trained
    assert not [n for n in trained if n.startswith(("model.y_decoder", "model.y_encoder.model"))]


def test_a_teacher_draws_the_embeddings_of_clips_to_its_own(
    joint: JointStage, clips: dict[str, Any], logged: dict[str, Tensor]
):
    """The loss grows by how far they lie apart; stills have no teacher, and it is no weight."""
    kept = set(joint.state_dict())

    def loss(name: str = "") -> Tensor:
        torch.manual_seed(5)  # of the further negatives
        return joint.loss(clips, name)

    loss()  # the texts are known from now on
    alone = loss()
    teacher = scramble(VLJepa(joint.model.config))
    with torch.no_grad():
        for weight in teacher.predictor.parameters():
            weight.add_(0.1)
        visual, other = (model.x_encoder(clips["frames"]) for model in (joint.model, teacher))
        ids, mask = tokens(joint.query_tokens, QUERIES)
        pairs = [0, 0, 1, 1]
        mine = joint.model.predictor.paired(visual[pairs], ids, mask)
        wanted = teacher.predictor.paired(other[pairs], ids, mask)
        apart = 1 - torch.nn.functional.cosine_similarity(mine, wanted).mean()
    joint.teachers = [teacher]
    taught, stills = loss(), loss("stills ")
    assert apart > 0.01 and set(joint.state_dict()) == kept
    torch.testing.assert_close(logged["apart"], apart)
    torch.testing.assert_close(taught, alone + TEACHER_WEIGHS * apart)
    torch.testing.assert_close(stills, alone)
    taught.backward()
    assert not [n for n, value in teacher.named_parameters() if value.grad is not None]


def test_temperature_never_falls_below_a_fiftieth(joint: JointStage):
    assert joint.temperature.item() == pytest.approx(0.07)
    with torch.no_grad():
        joint.log_temperature.fill_(-9.0)
    assert joint.temperature.item() == pytest.approx(0.02)


@pytest.fixture
def text_stage(model: VLJepa) -> TextStage:
    words = TextTokenizer(sentence_encoder_folder() / "tokenizer.json", 12)
    return TextStage(model, words, 1e-3, 100)


def test_texts_are_drawn_to_what_the_encoder_said_of_their_meaning(text_stage: TextStage):
    """The loss is the cross entropy among the canonical texts' vectors of before."""
    texts, meant = (
        ["a scarlet orb rolls along", "yes"],
        ["the red ball rolls across the table", "yes"],
    )
    with torch.no_grad():
        every = text_stage.vectors(text_stage.meanings)
        centred = F.normalize(every - every.mean(0), dim=-1)
        said = F.normalize(text_stage.vectors(texts) - every.mean(0), dim=-1)
        rows = [text_stage.meanings.index(meaning) for meaning in meant]
        wanted = F.cross_entropy(said @ centred.T / 0.05, torch.tensor(rows))
    loss = text_stage.training_step((texts, meant), 0)
    torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=0)
    loss.backward()
    trained = {name for name, value in text_stage.named_parameters() if value.grad is not None}
    assert any("encoder.layer" in name for name in trained)
    assert not [n for n in trained if "word_embeddings" in n or "projector" in n]


def test_learning_words_brings_them_nearer(text_stage: TextStage):
    rng = np.random.default_rng(0)
    texts, meant = zip(*[language.draw_wording(rng) for _ in range(16)])
    optimizer = text_stage.configure_optimizers()["optimizer"]
    losses = []
    for _ in range(12):
        loss = text_stage.training_step((list(texts), list(meant)), 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05


def test_decoder_loss_is_that_of_saying_each_text_and_its_end(model: VLJepa, tokenizer: Path):
    """Token by token with the cache, one text at a time, without any padding."""
    stage = DecoderStage(model, TextTokenizer(tokenizer, 12), 1e-3, 100)
    generator = torch.Generator().manual_seed(2)
    embeddings = F.normalize(torch.randn(3, 48, generator=generator), dim=-1)
    decoder, losses = model.y_decoder, []
    with torch.inference_mode():
        got = stage.loss(embeddings, SAID[:3])
        for embedding, text in zip(embeddings[:, None], SAID):
            ids, mask = tokens(stage.decoder_tokens, [text])
            said = ids[0][mask[0] == 1].tolist()
            past = decoder.empty_cache(1)
            for token, following in zip([BEGIN, *said], [*said, END]):
                logits, past = decoder(embedding, torch.tensor([[token]]), past)
                losses.append(-logits.log_softmax(-1)[0, following].item())
    assert got.item() == pytest.approx(np.mean(losses), rel=1e-4)


def test_decoder_stage_trains_the_decoder_alone(joint: JointStage, tokenizer: Path):
    model = joint.model  # the joint stage has frozen its decoder
    stage = DecoderStage(model, TextTokenizer(tokenizer, 12), 1e-3, 100)
    stage.loss(torch.zeros(1, 48), ["yes"]).backward()
    assert all(p.grad is not None for p in model.y_decoder.parameters())
    trained = [p for group in scheduled(stage, 1e-3, 100)["optimizer"].param_groups
               for p in group["params"]]  # fmt: skip
    assert len(trained) == len(list(model.y_decoder.parameters()))


def test_the_rate_warms_up_stays_and_falls_to_zero():
    layer = torch.nn.Linear(2, 2)
    plan = scheduled(layer, 0.5, 1000)
    optimizer, schedule = plan["optimizer"], plan["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(1000):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(0.5 / 200)
    assert rates[100] == pytest.approx(0.5 * 101 / 200)
    assert rates[200:501] == [0.5] * 301
    assert rates[750] == pytest.approx(0.25)
    assert 0 < rates[-1] < 0.003
    decay = {p.ndim: group["weight_decay"] for group in optimizer.param_groups
             for p in group["params"]}  # fmt: skip
    assert decay == {2: 0.05, 1: 0.0}


def test_a_fitted_head_brings_other_wordings_to_their_meaning_and_leaves_that_in_place(
    model: VLJepa, monkeypatch: pytest.MonkeyPatch
):
    meanings = list(language.meanings())[:40]
    monkeypatch.setattr(language, "meanings", lambda: iter(meanings))
    monkeypatch.setattr(
        language, "draw_wording", lambda rng: (f"well, {meanings[k := int(rng.integers(40))]}",
                                               meanings[k]),
    )  # fmt: skip
    words = TextTokenizer(sentence_encoder_folder() / "tokenizer.json", 16)
    sentences = Sentences(model.y_encoder, words)
    usual, other = meanings, [f"well, {meaning}" for meaning in meanings]
    rows = sentences.rows(usual, usual), sentences.rows(other, usual)

    def cosines() -> list[float]:
        with torch.no_grad():
            said = [model.y_encoder.head(sentences.vectors[r]) for r in rows]
        return [(places * one).sum(1).mean().item() for one in said]

    with torch.no_grad():
        places = model.y_encoder.head(sentences.vectors[rows[0]])
    before = cosines()
    fit_head(sentences, 0)
    after = cosines()
    assert after[0] > 0.98
    assert after[1] > before[1] + 0.5 * (1 - before[1])


def test_mixing_goes_part_of_the_way_back(model: VLJepa):
    network = model.y_encoder.model
    tuned = {name: value.clone() for name, value in network.state_dict().items()}
    mix(network, {name: torch.zeros_like(value) for name, value in tuned.items()})
    for name, value in network.state_dict().items():
        share = 1 - PRE_TRAINED if value.is_floating_point() else 1
        torch.testing.assert_close(value, share * tuned[name])
