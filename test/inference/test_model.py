"""Clips, questions and texts through the engines of a bundle; tokenizers and pictures too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bundles import make_bundle

from vljepa_ros.bundle.spec import BundleError, load_bundle
from vljepa_ros.errors import EngineError
from vljepa_ros.inference.preprocess import prepare
from vljepa_ros.inference.runtime import TEXT_CACHE, Runtime
from vljepa_ros.inference.text import TextTokenizer

PARTS = ("x_encoder", "predictor", "y_encoder", "y_decoder")


@pytest.fixture
def model(tiny_bundle: Path) -> Iterator[Runtime]:
    model = Runtime(load_bundle(tiny_bundle, verify=False), "onnxruntime-cpu", parts=PARTS)
    yield model
    model.close()


def clip(*colours: tuple[int, int, int]) -> np.ndarray:
    """One clip `[1, 4, 32, 32, 3]`: the colours are those of its quarters."""
    frame = np.zeros((32, 32, 3), np.uint8)
    for i, colour in enumerate(colours):
        frame[16 * (i // 2) : 16 * (i // 2) + 16, 16 * (i % 2) : 16 * (i % 2) + 16] = colour
    return np.broadcast_to(frame, (1, 4, 32, 32, 3)).copy()


RED, BLUE = (255, 0, 0), (0, 0, 255)


def test_embeddings_are_of_unit_length_and_depend_on_pictures_and_questions(
    model: Runtime,
) -> None:
    tokens = model.encode(np.concatenate([clip(RED), clip(RED, BLUE, BLUE, BLUE)]))
    embeddings = model.predict(tokens, ["what is happening ?", "describe the video"])
    assert embeddings.shape == (2, 2, 32) and embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=-1), 1, atol=1e-6)
    assert embeddings[0, 0] @ embeddings[1, 0] < 0.95  # other pictures
    assert embeddings[0, 0] @ embeddings[0, 1] < 0.999  # another question


def test_a_bundle_without_a_query_has_one_answer_to_none(tmp_path: Path) -> None:
    bundle = load_bundle(make_bundle(tmp_path, query=False, chunk=2), verify=False)
    model = Runtime(bundle, "onnxruntime-cpu", threads=1)
    tokens = model.encode(np.concatenate([clip(RED), clip(RED, BLUE), clip(BLUE)]))
    assert tokens.shape == (3, 32, 16)
    embeddings = model.predict(tokens, [bundle.default_query])
    assert embeddings.shape == (3, 1, 32)
    alone = [model.predict(model.encode(c), [""]) for c in (clip(RED), clip(BLUE))]
    np.testing.assert_allclose(embeddings[[0, 2]], np.concatenate(alone), atol=1e-6)
    for queries in (["what is happening?"], ["", ""], []):
        with pytest.raises(EngineError, match="is asked nothing, and was given the queries"):
            model.predict(tokens, queries)


def test_a_batch_gives_what_single_clips_give(model: Runtime) -> None:
    clips = np.concatenate([clip(RED), clip(BLUE, RED), clip((9, 99, 200))])
    together = model.predict(model.encode(clips), ["a red cube"])
    alone = [model.predict(model.encode(c[None]), ["a red cube"])[0] for c in clips]
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_another_question_is_not_answered_from_the_cache(model: Runtime) -> None:
    tokens = model.encode(clip(RED))
    first = model.predict(tokens, ["a red cube"])
    other = model.predict(tokens, ["a blue ball"])
    assert not np.allclose(first, other)
    np.testing.assert_array_equal(model.predict(tokens, ["a red cube"]), first)


def test_texts_keep_their_order_whether_cached_or_not(model: Runtime) -> None:
    texts = [f"{a} {b}" for a in ("red", "blue", "the") for b in ("cube", "ball", "hand", "table")]
    first = model.embed_text(texts[:5])
    mixed = model.embed_text([*reversed(texts), texts[0]])
    np.testing.assert_allclose(mixed[-1], first[0])
    np.testing.assert_allclose(mixed[::-1][1:6], first, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(mixed, axis=-1), 1, atol=1e-6)
    assert model.embed_text([]).shape == (0, 32)


def test_the_cache_of_texts_is_bounded_and_more_texts_than_it_holds_work(model: Runtime) -> None:
    texts = [f"red {i}" for i in range(TEXT_CACHE + 5)]
    assert model.embed_text(texts).shape == (len(texts), 32)
    assert len(model._texts) == TEXT_CACHE


def test_a_cached_text_is_not_encoded_again(model: Runtime) -> None:
    model.embed_text(["a red cube"])
    runs = len(model._runs["y_encoder"])
    model.embed_text(["a red cube", "a red cube"])
    assert len(model._runs["y_encoder"]) == runs


def test_decoding_says_words_that_depend_on_the_embedding(model: Runtime) -> None:
    random = np.random.default_rng(0)
    texts = set()
    for _ in range(20):
        embedding = random.normal(size=32).astype(np.float32)
        embedding /= np.linalg.norm(embedding)
        text = model.decode(embedding)
        assert text == model.decode(embedding)
        assert 1 <= len(text.split()) <= 8 and "[" not in text
        texts.add(text)
    assert len(texts) > 5


def test_texts_are_decoded_in_one_batch_as_one_by_one(model: Runtime) -> None:
    embeddings = np.random.default_rng(3).normal(size=(7, 32)).astype(np.float32)
    texts = [model.decode(embedding) for embedding in embeddings]
    assert len(set(texts)) > 1
    assert model.decode_all(embeddings) == texts


def test_the_key_value_cache_reaches_the_decoder(model: Runtime) -> None:
    """Decoding by hand, feeding the cache back, gives the same words."""
    embedding = np.full((1, 32), 32**-0.5, np.float32)
    past = np.zeros((2, 1, 2, 0, 8), np.float32)
    token, tokens = 1, []
    for length in range(8):
        assert past.shape[3] == length
        out = model._engines["y_decoder"].run(
            embedding=embedding, ids=np.array([[token]]), past=past
        )
        token, past = int(out["logits"].argmax()), out["present"]
        if token == 2:
            break
        tokens.append(token)
    assert model.decode(embedding[0]) == (model._decoder_tokenizer.decode(tokens) or "nothing")


def test_an_empty_text_is_said_as_the_bundle_asks(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)
    bundle = load_bundle(folder)
    model = Runtime(bundle, "onnxruntime-cpu", parts=("y_decoder",))
    run = model._engines["y_decoder"].run

    def ends_at_once(**inputs: np.ndarray) -> dict[str, np.ndarray]:
        outputs = run(**inputs)
        outputs["logits"][:, 2] = 1e9
        return outputs

    model._engines["y_decoder"].run = ends_at_once  # type: ignore[method-assign]
    assert model.decode(np.ones(32, np.float32)) == "nothing"


def test_confidence_is_the_cosine(model: Runtime) -> None:
    embedding = model.embed_text(["a red cube"])[0]
    assert model.confidence("a red cube", embedding) == pytest.approx(1, abs=1e-5)
    assert model.confidence("a red cube", -3 * embedding) == pytest.approx(-1, abs=1e-5)
    assert model.confidence("a red cube", 0 * embedding) == 0


def test_an_embedding_that_is_not_finite_is_not_decoded(model: Runtime) -> None:
    with pytest.raises(EngineError, match="not finite"):
        model.decode(np.full(32, np.nan, np.float32))


def test_parts_that_are_absent_are_named(tmp_path: Path, tiny_bundle: Path) -> None:
    bundle = load_bundle(make_bundle(tmp_path, decoder=False))
    with pytest.raises(EngineError, match="has no 'y_decoder'"):
        Runtime(bundle, parts=PARTS)
    model = Runtime(load_bundle(tiny_bundle, verify=False), parts=("y_encoder",))
    with pytest.raises(EngineError, match=r"'x_encoder' of tiny.* was not opened"):
        model.encode(clip(RED))
    assert [info.name for info in model.info] == ["y_encoder"]


def test_latencies_are_of_the_runs(model: Runtime) -> None:
    assert model.latency("x_encoder") is None
    model.encode(clip(RED))
    latency = model.latency("x_encoder")
    assert latency is not None and 0 < latency[0] <= latency[1]


def test_tokens_are_cut_and_padded(tiny_bundle: Path) -> None:
    tokenizer = TextTokenizer(tiny_bundle / "y_tokenizer.json", 6)
    ids, mask = tokenizer(["red cube", "a " * 50, ""])
    assert ids.shape == mask.shape == (3, 6) and ids.dtype == mask.dtype == np.int64
    assert mask.sum(axis=1).tolist() == [4, 6, 2]
    assert ids[1, 0] == 1 and ids[1, -1] == 2  # still begins and ends as its model knows it
    assert (ids[mask == 0] == 0).all()
    assert tokenizer.decode(ids[0]) == "red cube"


def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(BundleError, match=r"t\.json is not a tokenizer"):
        TextTokenizer(tmp_path / "t.json", 4)


@pytest.mark.parametrize("shape", [(48, 64), (64, 48), (96, 96), (7, 300), (1, 1), (300, 20)])
def test_pictures_of_every_size_become_squares(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), (10, 200, 90), np.uint8)
    picture = prepare(image, 32)
    assert picture.shape == (32, 32, 3) and picture.dtype == np.uint8
    assert (picture == (10, 200, 90)).all()


def test_the_centre_is_kept_and_averaged() -> None:
    image = np.zeros((64, 128, 3), np.uint8)
    image[:, :32] = image[:, 96:] = 255  # left and right of the centre square
    image[::2, 32:96] = 100
    assert (prepare(image, 32) == 50).all()


def test_a_prepared_picture_owns_its_pixels() -> None:
    image = np.zeros((32, 40, 3), np.uint8)
    picture = prepare(image, 32)
    image[:] = 255
    assert (picture == 0).all()
    assert picture.flags.c_contiguous


def test_texts_are_embedded_in_pieces_with_others_in_between(model: Runtime) -> None:
    texts = [f"red {'a ' * k}" for k in range(10)]
    wanted = model.embed_text(texts)
    model._texts.clear()
    pieces = model.embed_text_in_pieces(texts, 4)
    runs = len(model._runs["y_encoder"])
    next(pieces)
    assert len(model._runs["y_encoder"]) == runs + 1
    model.embed_text([*texts[5:], *(f"blue {k}" for k in range(TEXT_CACHE))])  # pushes out the rest
    left = 0
    while True:
        try:
            next(pieces)
            left += 1
        except StopIteration as end:
            np.testing.assert_allclose(end.value, wanted, atol=1e-6)
            break
    assert left == 1  # ten texts are three runs


def test_texts_that_are_known_take_no_piece(model: Runtime) -> None:
    model.embed_text(["a red cube", "a blue ball"])
    with pytest.raises(StopIteration):
        next(model.embed_text_in_pieces(["a blue ball", "a red cube"]))
