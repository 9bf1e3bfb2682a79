"""What may be asked, and how questions share predictor runs."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device import Device, installed
from hypothesis import given
from hypothesis import strategies as st

from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.errors import EngineError
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.perception.perceiver import Perceiver
from vljepa_ros.perception.question_queue import (
    BATCH,
    MOST_WAITING,
    Answer,
    Question,
    QuestionQueue,
)
from vljepa_ros.perception.settings import Settings
from vljepa_ros.perception.texts import (
    QuestionError,
    checked_template,
    checked_text,
    checked_texts,
    find_camera,
    scores_of,
    softmax,
    weakness,
)

SECOND = 1_000_000_000
CANDIDATES = ("the cube", "the ball", "nothing")


@given(st.text(max_size=1000))
def test_a_text_comes_out_plain_or_is_refused(text: str) -> None:
    words = text.split()
    if not words or any(unicodedata.category(c) in ("Cc", "Cs") for word in words for c in word):
        with pytest.raises(QuestionError, match=r"^The question .*\.$"):
            checked_text("question", text)
    else:
        plain = checked_text("question", text)
        assert plain.split(" ") == words
        assert checked_text("question", plain) == plain


@given(st.lists(st.text("abc ", max_size=4), max_size=6))
def test_texts_keep_their_order_and_none_is_there_twice(texts: list[str]) -> None:
    plain = [" ".join(text.split()) for text in texts]
    fine = all(plain) and len(set(plain)) == len(plain)
    try:
        assert checked_texts("label", texts) == tuple(plain)
        assert fine
    except QuestionError:
        assert not fine


def test_an_error_shows_no_more_of_a_text_than_can_be_read() -> None:
    with pytest.raises(QuestionError) as caught:
        checked_texts("label", ["a" * 900, "a" * 900])
    assert len(str(caught.value)) < 100
    with pytest.raises(QuestionError, match=r"must hold \{\} once"):
        checked_template("b" * 900)
    assert checked_template(" a  {} ") == "a {}"


def test_a_camera_is_found_by_name_or_because_it_is_the_only_one() -> None:
    assert find_camera("", {"front": False}) == "front"
    assert find_camera("rear", {"front": True, "rear": True}) == "rear"
    with pytest.raises(QuestionError, match=r"Name one of the cameras: front, rear \(nothing"):
        find_camera("", {"front": True, "rear": False})
    with pytest.raises(QuestionError, match=r"no camera 'side'; there are: front, rear\."):
        find_camera("side", {"front": True, "rear": True})


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=50), st.floats(1e-4, 10))
def test_softmax_sums_to_one_and_keeps_the_order(cosines: list[float], temperature: float) -> None:
    scores = softmax(np.array(cosines), temperature)
    assert scores.dtype == np.float32
    assert scores.sum() == pytest.approx(1, abs=1e-4)
    assert scores[int(np.argmax(cosines))] == scores.max()


@pytest.mark.parametrize("cosine", [-0.4, 0.0, 0.31, 1.0])
def test_one_text_alone_is_no_certainty(cosine: float) -> None:
    assert scores_of(np.array([cosine]), 0.07).tolist() == [np.float32(cosine)]
    two = np.array([cosine, 0.1])
    np.testing.assert_array_equal(scores_of(two, 0.07), softmax(two, 0.07))
    assert scores_of(np.zeros(0), 0.07).shape == (0,)


def test_what_lies_below_the_threshold_is_called_weak(tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle, verify=False)  # whose threshold is 0.5
    assert weakness(bundle, 0.5, "the answer") == ""
    said = weakness(bundle, 0.49, "the answer")
    assert said == (
        "The answer is a weak match: its cosine is 0.49, and the bundle's threshold 0.50."
    )


# -------------------------------------------------------------- the queue


@pytest.fixture
def perceiver(tiny_bundle: Path) -> Iterator[Perceiver]:
    model = Runtime(load_bundle(tiny_bundle, verify=False), "onnxruntime-cpu")
    perceiver = Perceiver(model, ["front", "rear", "dark"], Settings())
    for k in range(4):
        for camera in ("front", "rear"):
            picture = np.full((32, 32, 3), 40 * k + 30 * (camera == "rear"), np.uint8)
            stamp = SECOND + k * SECOND // 4
            assert perceiver.due(camera, stamp).due
            if perceiver.take(camera, stamp, "", picture):
                perceiver.step([camera])
    yield perceiver
    model.close()


class Asked:
    """Questions put into a queue, the outcomes in the order they came, and the predictor's runs."""

    def __init__(self, perceiver: Perceiver, monkeypatch: pytest.MonkeyPatch) -> None:
        self.perceiver = perceiver
        self.queue = QuestionQueue(perceiver)
        self.outcomes: list[tuple[Question, Any]] = []
        self.runs: list[list[str]] = []
        predict = perceiver.model.predict

        def counted(tokens: np.ndarray, queries: list[str]) -> np.ndarray:
            self.runs.append(list(queries))
            return predict(tokens, queries)

        monkeypatch.setattr(perceiver.model, "predict", counted)
        monkeypatch.setattr(perceiver.model, "encode_keeping", None)  # never

    def put(
        self, text: str, camera: str = "front", candidates: tuple[str, ...] = CANDIDATES
    ) -> Question:
        question = Question(
            camera, text, candidates, lambda outcome: self.outcomes.append((question, outcome))
        )
        self.queue.put(question)
        return question

    def answer(self) -> int:
        """One batch to its end; the number of turns it took."""
        return 1 + sum(1 for _ in self.queue.answer())

    def check(self, question: Question, outcome: Any) -> None:
        """Whether an outcome is what the model says by itself."""
        assert isinstance(outcome, Answer)
        model, seen = self.perceiver.model, self.perceiver.seen(question.camera)
        assert seen is not None
        embedding = model.predict([seen.tokens], [question.text])[0, 0]
        np.testing.assert_allclose(outcome.embedding, embedding, atol=1e-5)
        cosines = model.embed_text(question.candidates) @ embedding
        np.testing.assert_allclose(outcome.cosines, cosines, atol=1e-5)
        assert outcome.cosines.shape == (len(question.candidates),)
        assert outcome.stamp_ns == seen.stamp_ns


@pytest.fixture
def asked(perceiver: Perceiver, monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(perceiver, monkeypatch)


def test_questions_on_one_camera_share_a_run(asked: Asked) -> None:
    for k in range(BATCH + 1):
        asked.put(f"what {'a ' * k}")
    asked.answer()
    assert len(asked.runs) == 1 and len(asked.runs[0]) == BATCH
    assert len(asked.outcomes) == BATCH
    asked.answer()
    assert [len(run) for run in asked.runs] == [BATCH, 1]
    for question, outcome in list(asked.outcomes):
        asked.check(question, outcome)


def test_a_question_in_flight_when_the_device_fails_is_refused_and_the_next_one_is_not(
    tiny_bundle: Path,
) -> None:
    device = Device()
    with installed(device):
        model = Runtime(load_bundle(tiny_bundle, verify=False), threads=1)
        perceiver = Perceiver(model, ["front"], Settings())
        queue, outcomes = QuestionQueue(perceiver), list[Any]()
        question = Question("front", "what falls ?", CANDIDATES, outcomes.append)

        def see(frames: range) -> None:
            for k in frames:
                stamp = SECOND + k * SECOND // 4
                picture = np.full((32, 32, 3), 99, np.uint8)  # the gate finds nothing new
                assert perceiver.due("front", stamp).due
                if perceiver.take("front", stamp, "", picture):
                    perceiver.step(["front"])

        see(range(8))
        device.lost = True
        queue.put(question)
        list(queue.answer())
        assert isinstance(outcomes[0], QuestionError) and "ask again" in str(outcomes[0])
        see(range(8, 9))
        queue.put(question)
        list(queue.answer())
        assert isinstance(outcomes[1], Answer) and len(outcomes) == 2


def test_the_same_question_of_many_callers_is_predicted_once(asked: Asked) -> None:
    for _ in range(50):
        asked.put("what falls ?")
    asked.answer()
    assert asked.runs == [["what falls ?"]]
    assert len(asked.outcomes) == 50


def test_cameras_take_turns_with_the_oldest_question_first(asked: Asked) -> None:
    order = [asked.put("one", "rear"), asked.put("two"), asked.put("one"), asked.put("two", "rear")]
    asked.answer()
    assert {q for q, _ in asked.outcomes} == {order[0], order[3]}
    asked.answer()
    assert {q for q, _ in asked.outcomes} == set(order)
    for question, outcome in list(asked.outcomes):
        asked.check(question, outcome)


def test_few_candidates_do_not_wait_for_many(asked: Asked) -> None:
    many = asked.put("what ?", candidates=tuple(f"red {k}" for k in range(50)))
    few, none = asked.put("what ?"), asked.put("what ?", candidates=())
    turns = asked.queue.answer()
    next(turns)  # one run of the predictor, and the first texts
    assert [q for q, _ in asked.outcomes] == [none, few]
    for _ in turns:
        pass
    assert asked.outcomes[-1][0] is many
    assert asked.perceiver.model.embed_text(["red 0"]) is not None
    for question, outcome in list(asked.outcomes):
        asked.check(question, outcome)


def test_known_candidates_cost_one_turn(asked: Asked) -> None:
    asked.perceiver.model.embed_text(CANDIDATES)
    asked.put("what ?")
    assert asked.answer() == 1


def test_a_camera_that_has_seen_nothing_is_an_error_for_its_questions_alone(asked: Asked) -> None:
    dark, front = asked.put("what ?", "dark"), asked.put("what ?")
    asked.answer()
    asked.answer()
    outcomes = dict(asked.outcomes)
    assert "Camera 'dark' has not seen a whole clip yet" in str(outcomes[dark])
    assert "front, rear, dark (nothing seen yet)" in str(outcomes[dark])
    asked.check(front, outcomes[front])


def test_an_engine_that_fails_is_an_error_for_each(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise EngineError("It is broken.")

    monkeypatch.setattr(asked.perceiver.model, "predict", fails)
    for k in range(3):
        asked.put(f"what {k}")
    asked.answer()
    assert [str(outcome) for _, outcome in asked.outcomes] == ["It is broken."] * 3
    monkeypatch.undo()
    monkeypatch.setattr(asked.perceiver.model, "_encode_text", fails)
    asked.put("what ?", candidates=("never seen",))
    open_ended = asked.put("what ?", candidates=())
    asked.answer()
    assert str(asked.outcomes[-1][1]) == "It is broken."
    asked.check(open_ended, dict(asked.outcomes)[open_ended])


def test_not_finite_is_not_an_answer(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        asked.perceiver.model, "predict", lambda t, q: np.full((1, len(q), 32), np.nan, np.float32)
    )
    asked.put("what ?")
    asked.answer()
    assert "not finite" in str(asked.outcomes[0][1])


@given(turns=st.integers(0, 3), waiting=st.integers(0, 9))
def test_every_question_has_one_outcome_even_when_given_up(
    tiny_bundle: Path, turns: int, waiting: int
) -> None:
    model = Runtime(load_bundle(tiny_bundle, verify=False), "onnxruntime-cpu")
    perceiver = Perceiver(model, ["front"], Settings())
    for k in range(4):
        stamp = SECOND + k * SECOND // 4
        perceiver.due("front", stamp)
        if perceiver.take("front", stamp, "", np.full((32, 32, 3), 9 * k, np.uint8)):
            perceiver.step(["front"])
    queue, outcomes = QuestionQueue(perceiver), []
    for k in range(waiting):
        queue.put(
            Question("front", f"what {k}", tuple(f"{k} {n}" for n in range(12)), outcomes.append)
        )
    batch = queue.answer()
    for _, _ in zip(range(turns), batch):
        pass
    batch.close()
    queue.clear()
    assert len(outcomes) == waiting
    assert turns or all(isinstance(outcome, QuestionError) for outcome in outcomes)
    model.close()


def test_too_many_waiting_are_refused(asked: Asked) -> None:
    for _ in range(MOST_WAITING):
        asked.put("what ?")
    with pytest.raises(QuestionError, match="1,000 questions wait already"):
        asked.put("what ?")
    asked.queue.clear()
    assert len(asked.outcomes) == MOST_WAITING
    asked.put("what ?")
