"""The Y-encoder learns words of a dictionary: what it reads, and that the rest stays."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import MANIFEST, scramble, tiny_config

from vljepa_ros.bundle.spec import Bundle, load_bundle
from vljepa_ros.cli import main
from vljepa_ros.errors import VLJepaError
from vljepa_ros.inference.text import TextTokenizer
from vljepa_ros.inference.verify import verify_bundle
from vljepa_ros.model.export import storage
from vljepa_ros.model.export.bundle import export_bundle
from vljepa_ros.model.networks import VLJepa
from vljepa_ros.tabletop import language, store
from vljepa_ros.tabletop.episode import SPLITS
from vljepa_ros.tabletop.sim.episode import simulate
from vljepa_ros.training import release
from vljepa_ros.training.base import Base, load_base, load_checkpoint
from vljepa_ros.training.texts import corpus, sentence_encoder_folder, train_tokenizer
from vljepa_ros.training.words import learn
from vljepa_ros.training.words.dictionary import NOUN, SENSES, VERB, WordNet
from vljepa_ros.training.words.export import export_words, is_words
from vljepa_ros.training.words.learn import WordRecipe, learn_words
from vljepa_ros.training.words.texts import Reader, label_sets, reserved, stems, third_person

RECIPE = WordRecipe(steps=3, captions=6, alike=6, entries=6, kept=2)
MORE = {  # what is a kind of a sense, in this WordNet
    (NOUN, "red", 1): [("crimson", "Deep Red"), ("vermilion",)],
    (NOUN, "bottle", 1): [("flask",), ("carafe",)],
    (VERB, "lift", 8): [("hoist",), ("winch",)],
    (VERB, "carry", 1): [("heft up",), ("lug",)],
}
Line = tuple[tuple[str, ...], list[int]]


def write_wordnet(folder: Path) -> Path:
    """A WordNet that knows the senses of the table's words, and a few words below them."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in (NOUN, VERB):
        mine = sorted({s for senses in SENSES.values() for s in senses if s[0] == part})
        tops: dict[str, dict[int, int]] = {}
        lines: list[Line] = []
        for sense in mine:
            below = range(len(lines), len(lines) + len(MORE.get(sense, ())))
            lines += [(words, []) for words in MORE.get(sense, ())]
            tops.setdefault(sense[1], {})[sense[2]] = len(lines)
            lines.append(((sense[1],), list(below)))
        other = len(lines)
        lines.append((("something else",), []))
        text, places = "  1 the licence  \n", []
        for words, below in lines:
            places.append(len(text))
            said = " ".join(f"{word.replace(' ', '_')} 0" for word in words)
            pointers = "".join(f" ~ {places[row]:08d} {part[0]} 0000" for row in below)
            text += (
                f"{places[-1]:08d} 06 {part[0]} {len(words):02x} {said} {len(below):03d}{pointers}"
                f' | what it means; "so | so"  \n'
            )
        index = "  1 the licence  \n"
        for word, senses in tops.items():
            rows = [senses.get(number, other) for number in range(1, max(senses) + 1)]
            shown = " ".join(f"{places[row]:08d}" for row in rows)
            index += f"{word} {part[0]} {len(rows)} 1 ~ {len(rows)} 0 {shown}  \n"
        (folder / f"data.{part}").write_text(text)
        (folder / f"index.{part}").write_text(index)
    return folder


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wordnet(tmp_path_factory.mktemp("wordnet"))


@pytest.fixture(scope="module")
def entries(wordnet: Path) -> dict[str, tuple[str, ...]]:
    return WordNet(wordnet).entries()


def test_entries_are_the_words_below_the_senses_that_are_meant(entries):
    assert entries["red"] == ("crimson", "deep red", "vermilion")
    assert entries["bottle"] == ("carafe", "flask")
    assert set(entries) == set(SENSES)
    assert not any("something else" in words for words in entries.values())


def test_what_would_be_said_of_two_words_of_the_table_is_no_entry(tmp_path, monkeypatch):
    monkeypatch.setitem(MORE, (NOUN, "green", 1), [("vermilion",), ("jade",)])
    found = WordNet(write_wordnet(tmp_path)).entries()
    assert found["red"] == ("crimson", "deep red") and found["green"] == ("jade",)


@pytest.mark.parametrize("text", ["", "00000012 nonsense\n"])
def test_a_folder_without_a_wordnet_is_refused_in_a_sentence(wordnet, tmp_path, text):
    with pytest.raises(VLJepaError, match="wordnet-base"):
        WordNet(tmp_path / "absent")
    folder = tmp_path / "broken"
    shutil.copytree(wordnet, folder)
    (folder / "data.verb").write_text(text)
    with pytest.raises(VLJepaError, match="wordnet-base"):
        WordNet(folder).entries()


def test_captions_hold_no_word_of_the_evaluation_nor_of_the_validation(entries):
    reader, rng = Reader(entries), np.random.default_rng(0)
    said = [text for text, _ in (reader.draw(rng) for _ in range(3000))]
    for _ in range(60):
        said += [text for text, _ in reader.alike(48, 5, rng)]
    said += [reader.usual(rng) for _ in range(300)]
    words = {word for text in said for word in re.findall(r"[a-z]+", text.lower())}
    assert not words & set(language.SYNONYMS.values())
    assert not {stem for text in said for stem in stems(text)} & reserved()
    assert {"winches", "lugs", "vermilion", "carafe"} <= words  # but those of the dictionary
    assert {"deep red", "crimson"} & set(entries["red"])  # which has the evaluation's, too


def test_what_is_reserved_are_the_words_that_tell_the_evaluations_labels():
    kept = reserved()
    for word in ("crimson", "tumbles", "ferries", "hoists", "claw", "cups", "spheres", "hefts"):
        assert set(stems(word)) & kept, word
    for forms in language.UNSEEN_TEMPLATES.values():
        assert all(set(stems(form)) & kept for form in forms), forms
    for labels in label_sets():
        assert len(labels) == len(language.canonical())
        assert all(set(stems(text)) & kept for text in labels)


def test_captions_come_with_their_canonical_meaning(entries):
    reader, rng = Reader(entries), np.random.default_rng(1)
    known = set(language.meanings())
    drawn = [reader.draw(rng) for _ in range(500)]
    assert {meaning for _, meaning in drawn} <= known
    assert sum(said != meaning for said, meaning in drawn) > 300
    alike = reader.alike(48, 2, rng)
    assert {meaning for _, meaning in alike} <= known
    kinds = {language.name_event(meaning)[0] for _, meaning in alike}
    assert len(kinds) == 2
    said = dict(alike)  # one way of saying it: other events are said otherwise
    assert len(set(said.values())) == len(said)


def test_an_entry_is_a_word_by_itself(entries):
    reader, rng = Reader(entries), np.random.default_rng(2)
    drawn = {reader.entry(rng) for _ in range(400)}
    assert {"crimson", "the colour crimson"} & {text for text, _ in drawn}
    assert {word for text, word in drawn if "hoists" in text} == {"pick_up"}
    assert not any({"gripper", "table"} & set(text.split()) for text, _ in drawn)


@pytest.mark.parametrize(
    ("verb", "said"),
    [("lift up", "lifts up"), ("carry", "carries"), ("push", "pushes"), ("convey", "conveys"),
     ("go over", "goes over")],
)  # fmt: skip
def test_verbs_are_said_in_the_third_person(verb, said):
    assert third_person(verb) == said
    assert stems(verb) == stems(said)


@pytest.fixture
def base(tmp_path: Path) -> Base:
    tokenizer = tmp_path / "tokenizer.json"
    train_tokenizer(corpus(), 400, tokenizer)
    config = tiny_config(vocabulary=400, text_vocabulary=30522, text_length=32)
    config.y_encoder_config.max_position_embeddings = 1024  # the exporter folds tiny tables away
    model = scramble(VLJepa(config))
    y_tokenizer = sentence_encoder_folder() / "tokenizer.json"
    return Base(model, tokenizer, y_tokenizer, {"from": "tiny", "source": {"recipe": {"seed": 3}}})


def test_only_the_y_encoder_learns_and_the_folder_is_a_finished_training(
    base, wordnet, tmp_path, monkeypatch
):
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    said: list[str] = []
    losses = []
    step = learn.WordStage.training_step

    def watched(self, batch, index):
        losses.append(step(self, batch, index))
        return losses[-1]

    monkeypatch.setattr(learn.WordStage, "training_step", watched)
    few = [dict(list(labels.items())[::20]) for labels in label_sets()]
    monkeypatch.setattr(learn, "label_sets", lambda: few)
    out = learn_words(base, wordnet, tmp_path / "run", RECIPE, said.append)
    assert len(losses) == RECIPE.steps and all(torch.isfinite(loss) for loss in losses)
    after = load_checkpoint(out).state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("y_encoder.") for name in changed)
    assert not any("word_embeddings" in name or "pooler" in name for name in changed)
    assert [line.partition(":")[0] for line in said] == ["before", "after"]
    assert "least 1.0000" in said[0]
    recipe = json.loads((out / "recipe.json").read_text())
    assert recipe["from"] == "tiny" and recipe["before"] == {"seed": 3}
    assert load_base(str(out)).about["source"]["recipe"] == recipe
    losses.clear()
    base.model.load_state_dict(before)
    learn_words(base, wordnet, out, RECIPE, said.append)  # finished: not trained again
    assert not losses and said[2:] == said[:2]


@pytest.fixture
def bundle(base, tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(storage, "COMPRESSED", 500)  # as small as these matrices are
    words = TextTokenizer(base.y_tokenizer, 32)(
        ["a ball rolls", "the gripper picks up the red cube"]
    )
    clips = np.random.default_rng(0).integers(256, size=(2, 4, 32, 32, 3), dtype=np.uint8)
    files = {"tokenizer.json": base.tokenizer, "y_tokenizer.json": base.y_tokenizer}
    return export_bundle(base.model, tmp_path / "bundle", MANIFEST, files, clips, words)


def test_the_bundle_of_a_training_of_words_is_that_before_but_for_its_y_encoder(
    bundle, wordnet, tmp_path, monkeypatch
):
    few = [dict(list(labels.items())[::20]) for labels in label_sets()]
    monkeypatch.setattr(learn, "label_sets", lambda: few)
    path = tmp_path / "data" / "stream" / f"{SPLITS['stream']:08d}.npz"
    store.save_episode(path, simulate(SPLITS["stream"], 4.0))
    run = learn_words(load_base(str(bundle)), wordnet, tmp_path / "run", RECIPE)
    assert is_words(run)
    out = tmp_path / "out"
    found = export_words(run, tmp_path / "data", out, "0.2.0", None)
    assert verify_bundle(out) == []
    before, after = load_bundle(bundle), load_bundle(out)
    changed = {name for name, digest in hashes(after).items() if hashes(before)[name] != digest}
    assert changed == {"y_encoder.onnx", "y_encoder.data"}
    assert (out / "y_encoder.data").stat().st_size < (bundle / "y_encoder.data").stat().st_size
    assert after.thresholds.watch == found["watches"]["threshold"] != before.thresholds.watch
    assert after.thresholds.change == before.thresholds.change
    assert after.source["read"].startswith(release.READ) and learn.READ in after.source["read"]
    assert after.source["recipe"]["from"] == before.model_id
    assert set(after.evaluation) == {"onnx_against_torch", "calibration"}
    again, learnt = load_base(str(out)).model.y_encoder, load_checkpoint(run).y_encoder
    ids, mask = (
        torch.from_numpy(a) for a in TextTokenizer(out / "y_tokenizer.json", 32)(["a cup"])
    )
    with torch.inference_mode():  # int8 moves it a little
        assert torch.cosine_similarity(again(ids, mask), learnt(ids, mask)).item() > 0.99
    with pytest.raises(VLJepaError, match="is the bundle that the training started from"):
        export_words(run, tmp_path / "data", bundle, "0.2.0", None)
    shutil.rmtree(bundle)
    with pytest.raises(VLJepaError, match="has gone, the bundle tiny"):
        export_words(run, tmp_path / "data", out, "0.2.0", None)


def hashes(bundle: Bundle) -> dict[str, str]:
    """The sha256 of every file of a bundle that its manifest names."""
    graphs = bundle.manifest["graphs"].values()
    return {**bundle.manifest["files"], **{graph["file"]: graph["sha256"] for graph in graphs}}


def test_a_training_of_words_from_a_training_is_exported_like_any_other(base, wordnet, tmp_path):
    assert not is_words(tmp_path / "run")
    learn._begin(base, tmp_path / "run", RECIPE)
    assert not is_words(tmp_path / "run")


def test_what_the_texts_were_is_told_of_every_training_on_the_way():
    assert release.read({"seed": 0, "before": {"stages": []}}) == release.READ
    on_words = {"seed": 0, "before": {"read": "a dictionary", "before": {"stages": []}}}
    assert release.read(on_words) == f"{release.READ}; a dictionary"


def test_a_folder_with_another_training_is_refused(base, wordnet, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.json").write_text("{}")
    with pytest.raises(VLJepaError, match="holds another training"):
        learn_words(base, wordnet, tmp_path / "run", RECIPE)


def test_another_sentence_encoder_is_refused(base, wordnet, tmp_path):
    other = Base(base.model, base.tokenizer, base.tokenizer, base.about)
    with pytest.raises(VLJepaError, match="all-MiniLM-L6-v2"):
        learn_words(other, wordnet, tmp_path / "run", RECIPE)


def test_what_is_read_again_and_again_is_learnt(base, entries):
    words = learn.TextTokenizer(base.y_tokenizer, 32)
    recipe = WordRecipe(steps=20, captions=8, alike=8, entries=8, kept=4, rate=1e-2)
    stage = learn.WordStage(base.model.y_encoder, words, recipe)
    reader = Reader(entries)
    batch = next(iter(learn.Readings(reader, stage.usual(reader), recipe, 0)))
    optimizer = stage.configure_optimizers()["optimizer"]
    losses: list[dict[str, float]] = []
    for _ in range(30):
        optimizer.zero_grad()
        parts = stage.losses(batch)
        sum(parts.values()).backward()
        optimizer.step()
        losses.append({name: loss.item() for name, loss in parts.items()})
    for name in ("captions", "entries"):
        assert losses[-1][name] < 0.9 * losses[0][name], name


@pytest.mark.parametrize(
    "more", [["--size", "64"], ["--chunk", "2"], ["--data", "lines.jsonl"], ["--video", "3"], []]
)
def test_the_command_learns_from_texts_alone(more, tmp_path, monkeypatch, capsys):
    run = [str(tmp_path / "run"), "--words", str(tmp_path / "absent"), *more]
    monkeypatch.setattr("sys.argv", ["vljepa", "train", *run])
    monkeypatch.setattr("vljepa_ros.training.base.load_base", lambda source: None)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert (
        ("one with --words: leave it out" in " ".join(said.split()))
        if more
        else ("wordnet-base" in said)
    )
    assert not (tmp_path / "run").exists()
