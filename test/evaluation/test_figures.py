"""The figures of the evaluation: CIDEr-D, intervals, naming, retrieval, VQA, baselines."""

from __future__ import annotations

from collections import Counter
from math import exp, log, sqrt
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vljepa_ros.evaluation.baselines import Habits, Pixels
from vljepa_ros.evaluation.clips import Asked, Name, SeenClip, wordings
from vljepa_ros.evaluation.figures import bootstrap
from vljepa_ros.evaluation.figures.cider import Cider, words
from vljepa_ros.evaluation.tasks import captions, classification, retrieval, vqa
from vljepa_ros.evaluation.tasks.classification import Labels
from vljepa_ros.tabletop import language

RED_CUBE: Name = ("pick_up", "red", "cube")
STILL: Name = ("still", None, None)
PICTURE = np.zeros((4, 8, 8, 3), np.uint8)
DIRECTIONS = np.eye(700, dtype=np.float32)


def clip(name: Name, embedding: Any = (1.0, 0.0), episode: int = 0, asked: Any = ()) -> SeenClip:
    return SeenClip(episode, name, np.array(embedding, np.float32), tuple(asked), PICTURE)


# CIDEr-D, with two clips in the corpus: what one of them has weighs log 2, what both have nothing

CORPUS = [["a b"], ["c d"]]


@pytest.mark.parametrize(
    ("said", "meant", "score"),
    [
        ("a b", ["a b"], 10 * (1 + 1) / 4),  # there are no 3- and 4-grams
        ("A, b!", ["a b"], 5.0),
        ("a c", ["a b"], 10 * (1 / 2) / 4),
        ("a a", ["a b"], 10 * (1 / (2 * sqrt(2))) / 4),  # the second a is clipped
        ("a", ["a b"], 10 / sqrt(2) / 4 * exp(-1 / 72)),  # one word short, sigma 6
        ("a b", ["a b", "c d"], 5.0 / 2),
        ("e f", ["a b"], 0.0),
        ("", ["a b"], 0.0),
    ],
)
def test_cider_is_what_one_computes_by_hand(said: str, meant: list[str], score: float) -> None:
    assert Cider(CORPUS).score(said, meant) == pytest.approx(score)


def test_cider_weighs_a_word_by_how_few_clips_have_it() -> None:
    cider = Cider([["a x"], ["a y"], ["b z"]])
    common, rare = log(3 / 2), log(3)  # a stands in two of three clips
    expected = 10 / 4 * (common**2 / (common**2 + rare**2))
    assert cider.score("a q", ["a x"]) == pytest.approx(expected)
    assert Cider([["a x"], ["a y"]]).score("a", ["a x"]) == 0.0


def test_words_are_lower_case_and_without_punctuation() -> None:
    assert words("A person's hand, goes by.") == ["a", "person's", "hand", "goes", "by"]


# Intervals


def test_copies_of_a_clip_within_its_episode_make_no_interval_narrower() -> None:
    few = bootstrap.mean([0, 1, 1, 0], [0, 1, 2, 3])
    many = bootstrap.mean(np.repeat([0, 1, 1, 0], 50), np.repeat([0, 1, 2, 3], 50))
    assert few == many
    assert few["low"] < few["value"] == 0.5 < few["high"]


def test_a_mean_of_groups_counts_every_group_the_same() -> None:
    values, groups = [1, 1, 1, 0], ["a", "a", "a", "b"]
    assert bootstrap.mean(values, [0, 0, 1, 1], groups)["value"] == 0.5
    assert bootstrap.mean(values, [0, 0, 1, 1])["value"] == 0.75


def test_a_group_that_no_drawn_episode_has_is_left_out() -> None:
    found = bootstrap.mean([1, 0], [0, 1], ["a", "b"])
    assert (found["low"], found["value"], found["high"]) == (0.0, 0.5, 1.0)


def test_the_interval_of_a_mean_has_its_width() -> None:
    values = np.random.default_rng(1).normal(3, 1, 400)
    found = bootstrap.mean(values, np.arange(400))
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 / sqrt(400), rel=0.15)


def test_ratios_and_medians() -> None:
    assert bootstrap.ratio([1, 2], [2, 4]) == {"value": 0.5, "low": 0.5, "high": 0.5}
    found = bootstrap.median([1, 2, 10], [0, 0, 1])
    assert (found["low"], found["value"], found["high"]) == (1.5, 2.0, 10.0)


# Classification


def test_there_is_one_unseen_label_for_every_event() -> None:
    canonical = language.canonical()
    for choice in range(language.UNSEEN_WORDINGS):
        labels = language.unseen(choice)
        assert sorted(map(str, labels.values())) == sorted(map(str, canonical.values()))
        for text, (kind, *pair) in labels.items():
            words = " ".join(language.SYNONYMS[word] for word in pair if word is not None)
            said = language.UNSEEN_TEMPLATES[kind][choice].format(object=f"the {words}")
            assert text == said


def test_no_unseen_label_is_a_training_sentence() -> None:
    trained = {text for name in language.canonical().values() for text in wordings(name)}
    for choice in range(language.UNSEEN_WORDINGS):
        assert not trained & set(language.unseen(choice))


def test_kind_and_object_are_scored_apart() -> None:
    other: Name = ("carry", "red", "cube")
    found = classification.figures(
        [clip(RED_CUBE), clip(RED_CUBE), clip(STILL)], [[other], [RED_CUBE], [STILL]]
    )
    assert found["kind"]["value"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["kind_of_clips"]["value"] == pytest.approx(2 / 3)
    assert found["object"]["value"] == 1.0
    assert found["both"]["value"] == pytest.approx(2 / 3)


def test_several_answers_to_a_clip_count_by_their_mean() -> None:
    found = classification.figures([clip(RED_CUBE)], [[RED_CUBE, STILL, STILL, STILL]])
    assert (found["kind"]["value"], found["object"]["value"]) == (0.25, 0.25)


def test_the_nearest_label_names_the_event() -> None:
    labels = Labels([STILL, RED_CUBE], np.array([[0.0, 1.0], [1.0, 0.0]]))
    embeddings = np.array([[0.9, 0.1], [0.2, 0.8]])
    assert classification.nearest(embeddings, labels) == [RED_CUBE, STILL]
    np.testing.assert_array_equal(labels.of([RED_CUBE]), [[1.0, 0.0]])


def test_by_kind_says_what_a_kind_is_taken_for() -> None:
    clips = [clip(STILL)] * 4
    named: list[Name] = [STILL, ("hand", None, None), ("hand", None, None), RED_CUBE]
    assert classification.by_kind(clips, named) == {
        "still": {"clips": 4, "right": 0.25, "taken_for": "hand"}
    }


# Retrieval


def test_a_clip_with_the_same_caption_is_as_good_and_a_tie_is_lost() -> None:
    scores = np.array([[0.9, 0.5, 0.9], [0.1, 0.8, 0.3]])
    same = np.array([[True, False, False], [True, False, True]])
    np.testing.assert_array_equal(retrieval.ranks(scores, same), [2, 2])
    same[1, 1] = True
    assert retrieval.ranks(scores, same)[1] == 1


def test_chance_is_what_random_orders_reach() -> None:
    same = np.zeros((3, 20), bool)
    same[0, :1] = same[1, :4] = same[2, :10] = True
    stated = retrieval.chance(same)
    rng = np.random.default_rng(0)
    found = np.array([retrieval.ranks(rng.random(same.shape), same) for _ in range(4000)])
    for k in retrieval.RECALLS:
        assert stated[f"r{k}"]["value"] == pytest.approx(np.mean(found <= k), abs=0.02)


class Reads:
    """A model that reads: every text has a direction of its own, equal for equal meanings."""

    def __init__(self) -> None:
        self.known: dict[Any, int] = {}

    def of(self, meaning: Any) -> np.ndarray:
        return DIRECTIONS[self.known.setdefault(meaning, len(self.known))]

    def embed_text(self, texts: list[str]) -> np.ndarray:
        return np.stack([self.of(text) for text in texts])


def test_a_perfect_model_finds_every_clip() -> None:
    reads = Reads()
    names = list(language.canonical().values())
    labels = Labels(names, np.stack([reads.of(name) for name in names]))
    shown = [*names[:40], STILL, STILL]
    clips = [clip(name, reads.of(name), number % 5) for number, name in enumerate(shown)]
    flat = SimpleNamespace(scores=lambda pictures, names: np.zeros((len(pictures), len(names))))
    found = retrieval.retrieve(clips, labels, flat)  # type: ignore[arg-type]
    for direction in ("text_to_video", "text_to_video_distinct", "video_to_text"):
        assert found["bundle"][direction]["r1"]["value"] == 1.0
        assert found["bundle"][direction]["median_rank"]["value"] == 1.0
        assert found["pixels"][direction]["r1"]["value"] == 0.0  # all are tied
    assert found["captions"] == len(set(shown)) < found["clips"] == 42


# VQA


def test_questions_are_answered_by_the_nearest_answer_of_their_type() -> None:
    reads = Reads()
    asked = [
        Asked("exists", "Is there a red cube?", "yes", reads.of("yes")),
        Asked("exists", "Is there a red ball?", "no", reads.of("yes")),
        Asked("count", "How many?", "two", reads.of("two")),
    ]
    habits = Habits(
        answers={
            "exists": Counter(yes=9, no=1),
            "count": Counter(one=5, two=4),
            "Is there a red ball?": Counter(no=7),
            "Is there a red cube?": Counter(no=1),  # too rare to go by
        }
    )
    found = vqa.answer(reads, [clip(STILL, asked=asked)], habits)  # type: ignore[arg-type]
    assert found["by_type"]["exists"]["bundle"]["value"] == 0.5
    assert found["by_type"]["exists"]["chance"]["value"] == 0.5
    assert found["by_type"]["exists"]["most_frequent"]["value"] == 1.0
    assert found["by_type"]["count"]["most_frequent"]["value"] == 0.0
    assert found["types"]["bundle"]["value"] == 0.75
    assert found["all_questions"]["bundle"]["value"] == pytest.approx(2 / 3)


# Baselines


def test_habits_are_the_commonest_kind_and_object() -> None:
    habits = Habits()
    habits.names.update(
        {STILL: 3, RED_CUBE: 2, ("carry", "red", "cube"): 2, ("push", "blue", "can"): 3}
    )
    assert habits.object == ("red", "cube")
    assert habits.kind == "still"
    assert habits.names[habits.name] == 3


def test_pixels_learn_what_a_thumbnail_shows() -> None:
    rng = np.random.default_rng(0)

    def picture(name: Name) -> np.ndarray:
        shown = rng.integers(100, 120, (4, 8, 8, 3))
        if name[0] != "still":
            shown[-1, 2:4, 2:4] = (250, 0, 0)
        return shown.astype(np.uint8)

    names = [STILL, RED_CUBE, ("pick_up", "blue", "can")] * 20
    pixels = Pixels([picture(name) for name in names], names)
    scores = pixels.scores([picture(RED_CUBE), picture(STILL)], [STILL, RED_CUBE])
    assert scores.argmax(1).tolist() == [1, 0]


# Captions


def test_the_true_sentence_names_everything_and_scores_highest() -> None:
    names = list(language.canonical().values())[::7]
    clips = [clip(name, episode=number % 4) for number, name in enumerate(names)]
    said = iter([wordings(name)[1] for name in names])
    model = SimpleNamespace(decode_all=lambda embeddings: [next(said) for _ in embeddings])
    flat = SimpleNamespace(scores=lambda pictures, names: np.zeros((len(pictures), len(names))))
    habits = Habits()
    habits.names[STILL] = 1
    found = captions.describe(model, clips, habits, flat)  # type: ignore[arg-type]
    for way in ("bundle", "truth"):
        assert found[way]["kind"]["value"] == found[way]["object"]["value"] == 1.0
        assert found[way]["cider"]["value"] > 3 * found["chance"]["cider"]["value"]
    assert found["most_frequent"]["object"]["value"] == 0.0
