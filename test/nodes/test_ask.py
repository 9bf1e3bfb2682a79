"""`ask` between processes: answers are the model's, refusals are sentences, nobody starves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")

from bundles import make_bundle
from graph import NodeProcess, Probe, Stream, domain, image, noise
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.qos import QoSProfile
from rclpy.task import Future

from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.inference.preprocess import prepare
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.perception.texts import softmax
from vljepa_ros.srv import Ask, Decode
from vljepa_ros.stamps import to_ns

QUESTION = "what is red ?"
CANDIDATES = ["the cube", "the ball", "nothing", "a hand"]
PATIENCE = 900.0  # seconds: a busy machine must not make a stream old


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("ask") / "tiny")


@pytest.fixture(scope="module")
def model(bundle: Path) -> Iterator[Runtime]:
    parts = ("x_encoder", "predictor", "y_encoder", "y_decoder")
    model = Runtime(load_bundle(bundle), "onnxruntime-cpu", parts=parts)
    yield model
    model.close()


@pytest.fixture(scope="module")
def domain_id() -> int:
    return domain()


@pytest.fixture(scope="module")
def perception(bundle: Path, domain_id: int) -> Iterator[NodeProcess]:
    node = NodeProcess(
        "perception_node", domain_id, bundle=bundle, cameras=["front", "rear"], max_gap=PATIENCE
    )
    yield node
    assert node.end() == 0
    assert "Traceback" not in node.log


@pytest.fixture(scope="module")
def decoder(bundle: Path, domain_id: int) -> Iterator[NodeProcess]:
    node = NodeProcess("decoder_node", domain_id, bundle=bundle)
    yield node
    assert node.end() == 0
    assert "Traceback" not in node.log


@pytest.fixture(scope="module")
def probe(perception: NodeProcess, decoder: NodeProcess, domain_id: int) -> Iterator[Probe]:
    probe = Probe(domain_id)
    perception.wait_for_log("Active.")
    decoder.wait_for_log("Active.")
    yield probe
    probe.close()


@pytest.fixture(scope="module")
def camera(probe: Probe) -> Stream:
    return Stream(probe, "front", noise(0))


def ask(probe: Probe, **fields: Any) -> Ask.Response:
    fields = {"camera": "front", "question": QUESTION, "candidates": CANDIDATES, **fields}
    return probe.call(Ask, "ask", Ask.Request(**fields))


def see(camera: Stream, model: Runtime, seed: int) -> np.ndarray:
    """Four new pictures for the camera; their visual tokens, `[1, N, Dv]`."""
    pictures = [noise(seed + k) for k in range(4)]
    for picture in pictures:
        camera.step(picture)
    return model.encode(np.stack([prepare(picture, 32) for picture in pictures])[None])


def test_the_best_candidate_wins_as_the_model_says(
    camera: Stream, probe: Probe, model: Runtime
) -> None:
    for seed in (100, 110):
        tokens = see(camera, model, seed)
        embedding = model.predict(tokens, [QUESTION])[0, 0]
        cosines = model.embed_text(CANDIDATES) @ embedding
        answer = ask(probe)
        assert answer.success, answer.message
        assert answer.answer == CANDIDATES[int(cosines.argmax())]
        np.testing.assert_allclose(
            answer.scores, softmax(cosines, model.bundle.temperature), atol=1e-5
        )
        np.testing.assert_allclose(answer.cosines, cosines, atol=1e-5)
        assert answer.threshold == pytest.approx(model.bundle.thresholds.watch)
        assert ("weak match" in answer.message) == (cosines.max() < answer.threshold)
        np.testing.assert_allclose(answer.embedding, embedding, atol=1e-5)
        assert to_ns(answer.stamp) == camera.now


def test_an_open_answer_is_what_the_decoder_says(
    camera: Stream, probe: Probe, model: Runtime
) -> None:
    tokens = see(camera, model, 120)
    embedding = model.predict(tokens, [QUESTION])[0, 0]

    def found() -> bool:
        return ask(probe, candidates=[]).success

    probe.wait(found, "the decoder to be discovered")
    answer = ask(probe, candidates=[])
    assert answer.answer == model.decode(embedding)
    assert len(answer.scores) == len(answer.cosines) == 0 and answer.message == ""
    np.testing.assert_allclose(answer.embedding, embedding, atol=1e-5)


def test_the_answer_names_the_candidate_as_it_was_given(camera: Stream, probe: Probe) -> None:
    answer = ask(probe, question="  what\nis\tred ?  ", candidates=["  the \n cube "])
    assert answer.success, answer.message
    assert answer.answer == "  the \n cube "


def test_one_candidate_is_no_certain_answer(camera: Stream, probe: Probe, model: Runtime) -> None:
    """A softmax of one would be 1, whatever is asked."""
    tokens = see(camera, model, 125)
    embedding = model.predict(tokens, [QUESTION])[0, 0]
    candidates = sorted(model._text_tokenizer._tokenizer.get_vocab())
    cosines = model.embed_text(candidates) @ embedding
    for place in int(cosines.argmin()), int(cosines.argmax()):
        answer = ask(probe, candidates=[candidates[place]])
        assert answer.success and answer.answer == candidates[place]
        assert list(answer.scores) == list(answer.cosines)
        assert answer.cosines[0] == pytest.approx(cosines[place], abs=1e-5)
        weak = cosines[place] < model.bundle.thresholds.watch
        assert ("The answer is a weak match" in answer.message) == weak


@pytest.mark.parametrize(
    "question", ["Что падает?", "何が起きていますか", "¿Qué pasa? 🤖", "x" * 1000]
)
def test_every_language_is_answered(question: str, camera: Stream, probe: Probe) -> None:
    answer = ask(probe, question=question, candidates=["да", "いいえ"])
    assert answer.success, answer.message
    assert answer.answer in ("да", "いいえ")


REFUSED: dict[str, dict[str, Any]] = {
    "The question is empty": {"question": ""},
    "The question is empty; put": {"question": " \n\t "},
    "The question has 1,001 characters; 1,000 is the most.": {"question": "a" * 1001},
    "The question has 10,000 characters": {"question": "why " * 2500},
    "control character U+0007": {"question": "who \a?"},
    "control character U+001B": {"candidates": ["yes", "\x1b[2J"]},
    "There are 10,000 candidates; 1,000 is the most.": {
        "candidates": [str(k) for k in range(10_000)]
    },
    "The candidate 'yes' is there twice": {"candidates": ["yes", "no", " yes "]},
    "The candidate is empty": {"candidates": ["yes", ""]},
    "There is no camera 'side'; there are: front, rear": {"camera": "side"},
    "Name one of the cameras: front, rear": {"camera": ""},
    "Camera 'rear' has not seen a whole clip yet": {"camera": "rear"},
    "The cameras are: front, rear (nothing seen yet).": {"camera": "rear"},
}


@pytest.mark.parametrize("words", list(REFUSED))
def test_what_cannot_be_answered_is_refused_in_a_sentence(
    words: str, camera: Stream, probe: Probe
) -> None:
    answer = ask(probe, **REFUSED[words])
    assert not answer.success
    assert words in answer.message
    assert (answer.answer, len(answer.scores), len(answer.embedding)) == ("", 0, 0)


def test_a_thousand_candidates_are_answered(camera: Stream, probe: Probe, model: Runtime) -> None:
    tokens = see(camera, model, 130)
    words = model._text_tokenizer._tokenizer.get_vocab()
    candidates = [f"{a} {b}" for a in sorted(words) for b in sorted(words) if a < b][:1000]
    answer = ask(probe, candidates=candidates)
    assert answer.success, answer.message
    cosines = model.embed_text(candidates) @ model.predict(tokens, [QUESTION])[0, 0]
    np.testing.assert_allclose(answer.scores, softmax(cosines, model.bundle.temperature), atol=1e-5)


def test_a_stream_that_begins_anew_has_nothing_to_ask_about(camera: Stream, probe: Probe) -> None:
    camera.step(noise(1))
    assert ask(probe).success
    camera.now = probe.fresh_time()

    def refused() -> bool:
        camera.send(image(noise(2), camera.now))
        return not ask(probe).success

    probe.wait(refused, "the window to be empty")
    assert "has not seen a whole clip yet" in ask(probe).message
    camera.restart(noise(2))
    assert ask(probe).success


def test_an_old_picture_is_not_what_is_seen_now(camera: Stream, probe: Probe) -> None:
    camera.step(noise(3))
    assert ask(probe).success
    assert probe.set("perception", max_gap=0.01).successful
    try:
        probe.wait(lambda: not ask(probe).success, "the picture to be old")
        assert "'front' has sent no frame for" in ask(probe).message
        assert "'max_gap' (0.01 s)" in ask(probe).message
    finally:
        assert probe.set("perception", max_gap=PATIENCE).successful
    assert ask(probe).success


def test_fifty_callers_are_answered_while_the_stream_goes_on(
    camera: Stream, probe: Probe, model: Runtime
) -> None:
    # All answers reach every client of a service, which then drops those of others: with rclpy's
    # depth of 10, a burst of them would push out its own.
    deep = QoSProfile(depth=1000)
    clients = [probe.node.create_client(Ask, "ask", qos_profile=deep) for _ in range(50)]
    try:
        probe.wait(lambda: all(c.service_is_ready() for c in clients), "the service")
        for round_ in range(3):
            tokens = see(camera, model, 200 + 10 * round_)
            questions = [f"{QUESTION} {'a ' * (k // 2)}" for k in range(50)]
            futures = [
                client.call_async(
                    Ask.Request(camera="front", question=question, candidates=CANDIDATES)
                )
                for client, question in zip(clients, questions)
            ]
            (message,) = camera.step(noise(203 + 10 * round_))  # gets its turn among them
            assert to_ns(message.header.stamp) == camera.now
            probe.wait(lambda futures=futures: all(f.done() for f in futures), "fifty answers")
            assert all(f.result().success for f in futures)
            for future, question in zip(futures, questions):
                if to_ns(future.result().stamp) != camera.now:  # asked before that step
                    wanted = model.predict(tokens, [question.strip()])[0, 0]
                    np.testing.assert_allclose(future.result().embedding, wanted, atol=1e-5)
    finally:
        for client in clients:
            probe.node.destroy_client(client)


def test_diagnostics_count_the_questions(camera: Stream, probe: Probe) -> None:
    probe.wait_for_health("perception: questions", lambda v: True)
    before = {k: int(v) for k, v in probe.values("perception: questions").items()}
    assert ask(probe).success
    assert not ask(probe, question="").success
    probe.wait_for_health(
        "perception: questions",
        lambda v: (
            int(v["asked"]) == before["asked"] + 2
            and int(v["answered"]) == before["answered"] + 1
            and int(v["refused"]) == before["refused"] + 1
        ),
    )
    probe.wait_for_health("perception: stages", lambda v: float(v["ask p50 (ms)"]) > 0)


# -------------------------------------------------------------- a node without a decoder


@pytest.fixture(scope="module")
def alone(bundle: Path) -> Iterator[tuple[NodeProcess, Probe, Stream]]:
    domain_id = domain()
    node = NodeProcess("perception_node", domain_id, bundle=bundle, max_gap=PATIENCE)
    node.wait_for_log("Active.")
    probe = Probe(domain_id)
    yield node, probe, Stream(probe, "camera", noise(0))
    probe.close()
    assert node.end() == 0
    assert "Traceback" not in node.log


def open_question(probe: Probe) -> Ask.Response:
    return ask(probe, camera="", candidates=[])


def test_without_a_decoder_an_open_question_says_so(
    alone: tuple[NodeProcess, Probe, Stream],
) -> None:
    _, probe, _ = alone
    answer = open_question(probe)
    assert not answer.success
    assert "nobody serves '/decode'; start decoder_node, or give candidates." in answer.message
    assert ask(probe, camera="").success  # the only camera


def test_a_decoder_that_is_silent_or_of_another_model_is_named(
    alone: tuple[NodeProcess, Probe, Stream],
) -> None:
    _, probe, _ = alone
    quiet: list[bool] = [False]

    async def decode(request: Decode.Request, response: Decode.Response) -> Decode.Response:
        if quiet[0]:
            await Future()  # for ever
        response.message = "The embedding is of another model."
        return response

    service = probe.node.create_service(
        Decode, "decode", decode, callback_group=ReentrantCallbackGroup()
    )
    try:
        probe.wait(lambda: "refused" in open_question(probe).message, "the service to be found")
        answer = open_question(probe)
        assert not answer.success
        assert answer.message.endswith("refused: The embedding is of another model.")
        quiet[0] = True
        answer = open_question(probe)
        assert not answer.success
        assert "did not answer on '/decode' within 5 s" in answer.message
    finally:
        probe.node.destroy_service(service)


def test_a_node_that_is_not_active_says_so_and_leaves_no_caller_waiting(
    alone: tuple[NodeProcess, Probe, Stream],
) -> None:
    _, probe, camera = alone
    deep = QoSProfile(depth=1000)
    clients = [probe.node.create_client(Ask, "ask", qos_profile=deep) for _ in range(10)]
    try:
        probe.wait(lambda: all(c.service_is_ready() for c in clients), "the service")
        futures = [
            client.call_async(
                Ask.Request(question=QUESTION, candidates=[f"{k} {n}" for n in range(1000)])
            )
            for k, client in enumerate(clients)
        ]
        assert probe.transition("perception", "deactivate")
        assert "/perception is inactive; activate it" in ask(probe, camera="").message
        assert probe.transition("perception", "cleanup")
        assert "/perception is unconfigured; activate it" in ask(probe, camera="").message
        probe.wait(lambda: all(f.done() for f in futures), "an answer to each")
        assert all(f.result().success or f.result().message for f in futures)
    finally:
        for client in clients:
            probe.node.destroy_client(client)
    assert probe.transition("perception", "configure")
    assert probe.transition("perception", "activate")
    assert "has not seen a whole clip yet" in ask(probe, camera="").message
    camera.restart(noise(4))
    assert ask(probe, camera="").success
