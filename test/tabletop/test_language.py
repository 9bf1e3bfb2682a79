"""Words to events and back."""

import re

import numpy as np
import pytest

from vljepa_ros.tabletop import language
from vljepa_ros.tabletop.episode import Event
from vljepa_ros.tabletop.vocabulary import HELD, MOVING, ON_TABLE, UPRIGHT, held_out

PAIRS = [(colour, shape) for colour in language.COLOURS for shape in language.SHAPES]


def event(kind: str) -> Event:
    return Event(kind, 0 if kind in language.OBJECT_KINDS else None, 0.0, 1.0)


@pytest.mark.parametrize("kind", language.KINDS)
def test_every_wording_names_its_event(kind):
    for pair in PAIRS:
        for wording in range(len(language.TEMPLATES[kind])):
            text = language.describe(event(kind), [pair], wording)
            wanted = (kind, *pair) if kind in language.OBJECT_KINDS else (kind, None, None)
            assert language.name_event(text) == wanted, text


def test_there_are_five_wordings_and_all_differ():
    for kind in language.KINDS:
        assert len(language.TEMPLATES[kind]) >= 5
    every = [text for texts in language.TEMPLATES.values() for text in texts]
    assert len(set(every)) == len(every)


def test_canonical_wording_comes_first_and_is_the_default():
    assert (
        language.describe(event("pick_up"), [("red", "cube")])
        == "the gripper picks up the red cube"
    )
    assert (
        language.describe(event("fall_off"), [("red", "ball")])
        == "the red ball falls off the table"
    )
    assert language.describe(event("still"), []) == "nothing is moving"


def test_a_sentence_about_nothing_known_names_nothing():
    assert language.name_event("") == (None, None, None)
    assert language.name_event("the weather is fine") == (None, None, None)
    assert language.name_event("the green") == (None, "green", None)


def test_unseen_wording_shares_no_telling_word_with_training():
    training = {
        word for texts in language.TEMPLATES.values() for text in texts for word in text.split()
    }
    ordinary = {
        "the",
        "a",
        "of",
        "is",
        "and",
        "it",
        "to",
        "over",
        "on",
        "table",
        "off",
        "in",
        "at",
        "all",
        "no",
        "lets",
    }
    for kind, texts in language.UNSEEN_TEMPLATES.items():
        for text in texts:
            new = set(text.split()) - training - ordinary
            assert new, f"{kind}: {text!r} is made of training words only"
            assert text not in language.TEMPLATES[kind]
    assert not set(language.SYNONYMS.values()) & training
    assert set(language.SYNONYMS) == {*language.COLOURS, *language.SHAPES}


def test_wordings_are_drawn_with_their_meaning_and_leave_the_evaluation_its_words():
    rng = np.random.default_rng(0)
    known = set(language.meanings())
    drawn = [language.draw_wording(rng) for _ in range(3000)]
    assert {meaning for _, meaning in drawn} <= known
    assert sum(said != meaning for said, meaning in drawn) > 2000
    words = {word for said, _ in drawn for word in re.findall(r"[a-z]+", said)}
    assert not words & set(language.SYNONYMS.values())
    telling = {
        word
        for forms in language.UNSEEN_TEMPLATES.values()
        for form in forms
        for word in re.findall(r"[a-z]+", form)
    } - {word for forms in language.TEMPLATES.values() for form in forms for word in form.split()}
    common = {"hold", "object", "person", "s", "someone"}
    assert not words & (telling - common)


def test_reworded_sentences_keep_their_kind_and_never_borrow_from_the_evaluation():
    reserved = {word for other in language.SYNONYMS.values() for word in other.split()}
    for words in language.REWORDINGS.values():
        assert not reserved & {part for word in words for part in word.replace("-", " ").split()}
    changed = 0
    for form in language.TEMPLATES["push"]:
        said = form.format(object="the red cube")
        versions = [language.reword(said, number) for number in range(language.REWORDED + 1)]
        assert versions[0] == said
        assert versions == [language.reword(said, n) for n in range(language.REWORDED + 1)]
        assert all(language.name_event(text)[0] == "push" for text in versions)
        changed += sum(text != said for text in versions)
    assert changed >= len(language.TEMPLATES["push"]) * 2


def test_held_out_combinations_are_about_a_tenth_and_fixed():
    combinations = [(*pair, kind) for pair in PAIRS for kind in language.OBJECT_KINDS]
    kept = [combination for combination in combinations if held_out(*combination)]
    assert 0.05 < len(kept) / len(combinations) < 0.15
    assert not any(held_out(*pair, kind) for pair in PAIRS for kind in ("still", "hand", "retreat"))
    assert held_out("green", "bottle", "pick_up") == held_out("green", "bottle", "pick_up")


def situation(state: list[int]) -> language.Situation:
    pairs = [("red", "cube"), ("blue", "ball"), ("green", "bottle")]
    uv = np.array([[0.1, 0.8], [0.5, 0.3], [0.9, 0.6]], dtype=np.float32)
    return language.Situation(pairs, uv, np.ones(3, dtype=bool), np.array(state, dtype=np.uint8))


def asked(state: list[int], kind: str, seeds: int = 40) -> dict[str, str]:
    """Every question of a type, with its answer."""
    found = {}
    for seed in range(seeds):
        for question, answer, type_ in language.questions(
            situation(state), event("still"), np.random.default_rng(seed)
        ):
            if type_ == kind:
                found[question] = answer
    return found


def test_questions_are_answered_from_the_state():
    state = [ON_TABLE, HELD | MOVING, ON_TABLE]
    assert set(asked(state, "count").values()) == {"two"}
    assert set(asked(state, "holding").values()) == {"the blue ball"}
    assert set(asked(state, "is_holding").values()) == {"yes"}
    assert set(asked(state, "moving").values()) == {"the blue ball"}
    assert set(asked(state, "scene").values()) == {"a red cube, a blue ball and a green bottle"}
    assert asked(state, "where")["Where is the red cube?"] == "near left"
    assert asked(state, "where")["Where is the blue ball?"] == "in the gripper"
    assert asked(state, "colour")["What colour is the bottle?"] == "green"
    assert asked(state, "posture") == {"Is the green bottle standing or lying?": "lying"}
    assert set(asked([ON_TABLE, ON_TABLE, ON_TABLE | UPRIGHT], "posture").values()) == {"standing"}
    assert set(asked([0, 0, 0], "scene").values()) == {"nothing"}


def test_existence_answers_are_true_and_balanced():
    present = {f"{colour} {shape}" for colour, shape in situation([0] * 3).objects}
    answers = []
    for seed in range(300):
        triples = language.questions(
            situation([ON_TABLE] * 3), event("still"), np.random.default_rng(seed)
        )
        question, answer = next((q, a) for q, a, type_ in triples if type_ == "exists")
        assert (answer == "yes") == any(name in question for name in present)
        answers.append(answer)
    assert 0.4 < answers.count("yes") / len(answers) < 0.6


def test_closed_questions_have_their_answer_among_the_listed():
    for seed in range(50):
        rng = np.random.default_rng(seed)
        state = [int(rng.choice([ON_TABLE, ON_TABLE | MOVING, HELD, 16])) for _ in range(3)]
        for question, answer, type_ in language.questions(situation(state), event("still"), rng):
            assert type_ in language.QUESTIONS
            assert answer in language.ANSWERS.get(type_, (answer,)), question
