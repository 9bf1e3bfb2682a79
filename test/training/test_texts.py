"""Tokens and sentence vectors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from networks import scramble, tiny_config

from vljepa_ros.inference.text import TextTokenizer
from vljepa_ros.model.config import tabletop
from vljepa_ros.model.networks import YEncoder
from vljepa_ros.tabletop import language
from vljepa_ros.training.texts import (
    BEGIN,
    END,
    PAD,
    Sentences,
    corpus,
    sentence_encoder_folder,
    tokens,
    train_tokenizer,
)

PAIRS = [(colour, shape) for colour in language.COLOURS for shape in language.SHAPES]
DECODER_LENGTH = 32


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "new" / "tokenizer.json"
    train_tokenizer(corpus(), 2048, path)
    return path


def test_special_tokens_have_the_ids_that_bundles_name(tokenizer: Path):
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(str(tokenizer))
    assert [loaded.token_to_id(t) for t in ("<pad>", "<s>", "</s>")] == [PAD, BEGIN, END]
    assert (PAD, BEGIN, END) == (0, 1, 2)
    assert loaded.get_vocab_size() <= 2048


def test_every_text_of_the_corpus_survives_and_fits_the_decoder(tokenizer: Path):
    encode = TextTokenizer(tokenizer, DECODER_LENGTH)
    texts = list(dict.fromkeys(corpus()))
    ids, mask = encode(texts)
    assert mask.sum(1).max() < DECODER_LENGTH  # so nothing was cut, and the end token has room
    for text, row, length in zip(texts, ids, mask.sum(1)):
        assert encode.decode(row[:length]) == text
        assert not set(row[:length].tolist()) & {PAD, BEGIN, END}


def test_queries_fit_the_predictor(tokenizer: Path):
    encode = TextTokenizer(tokenizer, 64)
    forms = [form for forms in language.QUESTIONS.values() for form in forms]
    asked = [form.format(colour=colour, shape=shape) for form in forms for colour, shape in PAIRS]
    assert encode(asked)[1].sum(1).max() <= tabletop().query_length


@pytest.mark.parametrize(
    "text", ["Is the naïve Füße-robot OK?", "zebra 12.5 km/h", "a\tb", "机器人", "🤖 waves", ""]
)
def test_texts_that_training_never_saw_survive(tokenizer: Path, text: str):
    encode = TextTokenizer(tokenizer, 64)
    ids, mask = encode([text])
    assert encode.decode(ids[0][mask[0] == 1]) == text


def test_tokens_are_int64_with_a_mask(tokenizer: Path):
    ids, mask = tokens(TextTokenizer(tokenizer, 8), ["yes", "the red cube is rolling away quickly"])
    assert ids.shape == mask.shape == (2, 8)
    assert ids.dtype == mask.dtype == torch.int64
    assert mask[0].sum() < 8 and mask[1].all()
    assert (ids[0][mask[0] == 0] == PAD).all()


def test_no_text_is_trained_with_two_meanings():
    """InfoNCE keeps one meaning a text: two would make it its own negative."""
    meant: dict[str, str] = {}
    for kind, forms in language.TEMPLATES.items():
        for pair in PAIRS if kind in language.OBJECT_KINDS else PAIRS[:1]:
            said = [form.format(object=language.object_phrase(pair)) for form in forms]
            for text in said:
                assert meant.setdefault(text, said[0]) == said[0], text
    for answers in language.ANSWERS.values():
        for answer in answers:
            assert meant.setdefault(answer, answer) == answer, answer


# Sentences


@pytest.fixture
def sentences() -> Sentences:
    encoder = scramble(YEncoder(tiny_config(text_vocabulary=30522)))
    return Sentences(encoder, TextTokenizer(sentence_encoder_folder() / "tokenizer.json", 12))


def test_a_text_keeps_its_row_and_its_vector(sentences: Sentences):
    first = sentences.rows(["yes", "no", "yes"], ["yes", "no", "yes"])
    assert first.tolist() == [0, 1, 0]
    vectors = sentences.vectors.clone()
    again = sentences.rows(["a ball rolls", "no", "a ball rolls"], ["roll", "no", "roll"])
    assert again.tolist() == [2, 1, 2]
    assert len(sentences.vectors) == len(sentences.meaning_of_row) == len(sentences.row) == 3
    assert torch.equal(sentences.vectors[:2], vectors)


def test_a_vector_is_that_of_the_sentence_encoder_whatever_the_batch(sentences: Sentences):
    texts = ["a ball rolls over the whole table", "yes", "it is a red cube"]
    rows = sentences.rows(texts, texts)
    for text, row in zip(texts, rows):
        with torch.inference_mode():
            alone = sentences.y_encoder.sentence(*tokens(sentences.tokenizer, [text]))[0]
        torch.testing.assert_close(sentences.vectors[row], alone, atol=1e-5, rtol=0)
    distance = torch.cdist(sentences.vectors, sentences.vectors).numpy()
    assert distance[~np.eye(3, dtype=bool)].min() > 0.1
    assert not sentences.vectors.requires_grad


def test_vectors_are_fp32_under_autocast(sentences: Sentences):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sentences.rows(["yes"], ["yes"])
    with torch.inference_mode():
        wanted = sentences.y_encoder.sentence(*tokens(sentences.tokenizer, ["yes"]))
    torch.testing.assert_close(sentences.vectors, wanted, atol=1e-6, rtol=0)


def test_paraphrases_share_the_number_of_their_meaning(sentences: Sentences):
    rows = sentences.rows(
        ["the ball rolls", "the ball is rolling", "it stands"], ["roll", "roll", "stand"]
    )
    ids = sentences.meaning_of_row[rows].tolist()
    assert ids[0] == ids[1] != ids[2]
    assert sentences.meaning("roll") == ids[0]
    later = sentences.rows(["a rolling ball"], ["roll"])
    assert sentences.meaning_of_row[later].tolist() == [ids[0]]
    assert sentences.meaning("never said") not in ids
