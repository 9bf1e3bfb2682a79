"""Banks of phrases: what a file may hold, which phrase fits best, and what is kept on the disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bundles import make_bundle, with_phrases
from hypothesis import assume, given
from hypothesis import strategies as st

from vljepa_ros.bundle.manifest import read_manifest, write_manifest
from vljepa_ros.bundle.spec import BundleError, PhrasesSpec, load_bundle
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.words import bank as banks_of_phrases
from vljepa_ros.words.bank import Bank, Phrases, PhrasesError, embeddings_of, read_phrases
from vljepa_ros.words.banks import ALL, Banks, choose, own_speaker

PHRASES = ["a cube falls", "a ball rolls", "a hand picks up a block", "nothing moves"]


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vljepa" / "phrases"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "phrases.txt"
    path.write_text("\n".join(PHRASES))
    return path


@pytest.fixture(scope="module")
def mute(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    """A model without Y-decoder, as public ones are."""
    folder = make_bundle(tmp_path_factory.mktemp("mute") / "bundle", decoder=False)
    return Runtime(load_bundle(folder))


# ------------------------------------------------------------------ files


def test_a_file_holds_a_phrase_a_line(tmp_path: Path) -> None:
    path = tmp_path / "some.txt"
    lines = "\ufeff# of a table\r\n\r\na  cube\tfalls \r\neine Tür\na cube falls\n"
    path.write_bytes(lines.encode())
    assert read_phrases(path).phrases == ("a cube falls", "eine Tür")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\n# nothing\n", "holds no phrase"),
        (b"a cube\n\xff\xfe\n", r"is not UTF-8 \(byte 7\)"),
        (b"a cube\nbell \x07\n", "line 2: The phrase holds the control character"),
        (b"a cube\n" + 1001 * b"a", "line 2: The phrase has 1,001 characters"),
    ],
)
def test_what_is_no_bank_is_one_sentence(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    with pytest.raises(PhrasesError, match=sentence):
        read_phrases(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PhrasesError, match=r"none\.txt cannot be read"):
        read_phrases(tmp_path / "none.txt")
    with pytest.raises(BundleError, match="no file of phrases 'nonesuch'"):
        choose(["nonesuch"], load_bundle(make_bundle(tmp_path / "bundle")))


# ------------------------------------------------------------------ the search


@given(st.integers(1, 300), st.integers(0, 2**32 - 1), st.floats(-1, 1))
def test_the_best_phrase_and_its_margin_are_those_of_a_full_search(
    count: int, seed: int, same: float
) -> None:
    random = np.random.default_rng(seed)
    rows = unit(random.normal(size=(count, 6))).astype(np.float32)
    query = unit(random.normal(size=6)).astype(np.float32)
    best, cosine, margin = Bank([str(k) for k in range(count)], rows).best(query, same)
    apart = rows - rows.mean(0)
    fit = apart @ query / np.maximum(np.linalg.norm(apart, axis=1), 1e-6)
    assert cosine == pytest.approx(rows[best] @ query, abs=1e-5)
    assert fit[best] == pytest.approx(fit.max(), abs=1e-4)
    alike = rows @ rows[best]
    assume(np.abs(alike - same).min() > 1e-5)  # else rounding decides
    others = fit[alike < same]
    assert margin == pytest.approx(fit[best] - others.max() if len(others) else np.inf, abs=1e-4)


def test_the_margin_passes_over_phrases_that_mean_the_same() -> None:
    angles = np.linspace(0, 0.1, 2000)  # far more than are looked at first
    near = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1)
    opposite = [[-1, 0, 0]] * 2000  # the mean is about zero
    bank = Bank([str(k) for k in range(4001)], np.array([*near, *opposite, [0, 0, 1.0]]))
    query = unit(np.array([1.0, 0, 0.5]))
    best, cosine, margin = bank.best(query, 0.9)
    assert best < 2000 and cosine == pytest.approx(0.894, abs=1e-2)
    assert margin == pytest.approx(query[0] - query[2], abs=0.05)
    assert bank.best(query, 1.01)[2] == pytest.approx(0, abs=1e-6)


def test_a_phrase_that_fits_badly_or_hardly_better_comes_with_a_doubt() -> None:
    bank = Bank(["a dog", "a cat", "no dog", "no cat"], np.concatenate([np.eye(2), -np.eye(2)]))
    query = unit(np.array([1.0, 0.9]))
    spec = PhrasesSpec(Path(), 0.7, 0.05, 0.9)
    assert Phrases(bank, spec).say(query).doubt == ""
    said = Phrases(bank, PhrasesSpec(Path(), 0.75, 0.0, 0.9)).say(query)
    assert (said.text, said.source) == ("a dog", "phrases")
    assert said.confidence == pytest.approx(query[0])
    assert said.doubt == "'a dog' fits best, with cosine 0.74, and 0.75 is asked."
    doubt = Phrases(bank, PhrasesSpec(Path(), 0.7, 0.1, 0.9)).say(query).doubt
    assert doubt.startswith("'a dog' fits best, 0.074 before what means something else")


# ------------------------------------------------------------------ embedding


def test_phrases_are_embedded_once_and_come_from_the_disk_the_same(
    mute: Runtime, file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def embed() -> np.ndarray:
        pieces = embeddings_of(read_phrases(file), lambda: mute, lambda done: None)
        while True:
            try:
                next(pieces)
            except StopIteration as end:
                return np.asarray(end.value)

    first = embed()
    np.testing.assert_allclose(first, mute.embed_text(PHRASES), atol=1e-3)
    assert [kept.name[:10] for kept in cache.iterdir()] == ["tiny-1.0.0"]
    with monkeypatch.context() as patched:
        patched.setattr(mute, "embed_text_in_pieces", None)
        np.testing.assert_array_equal(embed(), first)
    for damage in (b"", b"\x93NUMPY", next(cache.iterdir()).read_bytes()[:-3]):
        next(cache.iterdir()).write_bytes(damage)
        np.testing.assert_array_equal(embed(), first)
    file.write_text("another phrase")
    assert len(embed()) == 1
    assert len(list(cache.iterdir())) == 2


def test_a_disk_that_takes_nothing_costs_no_words(
    mute: Runtime, file: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("a file in the folder's place")
    assert len(list(embeddings_of(read_phrases(file), lambda: mute, lambda done: None))) >= 1
    assert "cannot be kept" in caplog.text


def test_many_phrases_are_embedded_in_pieces(mute: Runtime, tmp_path: Path) -> None:
    path = tmp_path / "many.txt"
    path.write_text("\n".join(f"phrase {k}" for k in range(41)))
    lines: list[str] = []
    banks = Banks(lambda: mute, lines.append, choose([str(path)], mute.bundle))
    pieces = banks.prepare(banks.choice)
    assert sum(1 for _ in pieces) == 11  # of 4
    assert lines[0] == "Embedding phrases, 20% of 41." and lines[-1] == "Ready: 41 phrases."


def test_the_last_choice_answers_until_the_new_one_is_ready(mute: Runtime, tmp_path: Path) -> None:
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("a cube")
    two.write_text("\n".join(PHRASES))
    banks = Banks(lambda: mute, lambda line: None, choose([str(one)], mute.bundle))
    query = mute.embed_text(["a ball rolls"])[0]
    list(banks.prepare(banks.choice))
    banks.choice = choose([str(two)], mute.bundle)
    pieces = banks.prepare(banks.choice)
    next(pieces)
    speaker = banks.speaker("front")
    assert speaker is not None and speaker.say(query).text == "a cube"
    given_up, banks.choice = banks.choice, choose([str(one)], mute.bundle)
    assert list(pieces) == []  # another choice has been made since
    banks.choice = given_up
    list(banks.prepare(given_up))
    speaker = banks.speaker("front")
    assert speaker is not None and speaker.say(query).text == "a ball rolls"


# ------------------------------------------------------------------ which bank is whose


def test_cameras_have_their_own_banks(mute: Runtime, tmp_path: Path, file: Path) -> None:
    own, odd = tmp_path / "front.txt", tmp_path / "a=b.txt"
    own.write_text("a gripper")
    odd.write_text("something odd")
    entries = [f"front={own}", f"front={odd}", f" {file} ", str(odd)]
    banks = Banks(lambda: mute, lambda line: None, choose(entries, mute.bundle))
    list(banks.prepare(banks.choice))
    front, rear, nobody = (banks.speaker(name) for name in ("front", "rear", ALL))
    assert front is not None and list(front.bank.phrases) == ["a gripper", "something odd"]
    assert rear is not None and list(rear.bank.phrases) == [*PHRASES, "something odd"]
    assert nobody is rear


def test_without_entries_the_bundle_has_the_phrases(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "bundle", decoder=False)
    assert own_speaker(Runtime(load_bundle(folder)), print) is None
    speaks = with_phrases(folder, PHRASES, cosine=0.2, margin=0.01, same=0.8)
    bundle = load_bundle(speaks)
    assert bundle.phrases == PhrasesSpec(speaks / "phrases.txt", 0.2, 0.01, 0.8)
    model = Runtime(bundle)
    speaker = own_speaker(model, print)
    assert speaker is not None
    assert speaker.say(model.embed_text(["nothing moves"])[0]).text == "nothing moves"


def test_phrases_that_are_altered_or_not_listed_are_found(tmp_path: Path) -> None:
    folder = with_phrases(make_bundle(tmp_path / "bundle"), PHRASES)
    (folder / "phrases.txt").write_text("other words")
    with pytest.raises(BundleError, match=r"phrases\.txt does not match its manifest"):
        load_bundle(folder)
    manifest, _ = read_manifest(folder)
    del manifest["files"]["phrases.txt"]
    write_manifest(folder, manifest)
    with pytest.raises(BundleError, match=r"phrases\.txt is not listed"):
        load_bundle(folder)


def test_the_shipped_events_are_many_and_each_is_there_once(mute: Runtime) -> None:
    choice = choose(["events"], mute.bundle)
    assert choice is not None
    [file] = choice.files[ALL]
    lines = [line for line in file.path.read_text().splitlines() if line[:1] != "#"]
    assert len(lines) == len(file.phrases) >= 2000
    assert "a person opens a door" in file.phrases


def test_the_module_keeps_its_embeddings_in_the_users_cache(cache: Path) -> None:
    assert banks_of_phrases.folder() == cache
