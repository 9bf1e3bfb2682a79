"""A bundle of single pictures that is asked nothing, through the whole graph: what is seen, in
steps of one frame, with the empty text where others have a question.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")

from bundles import make_bundle
from graph import NodeProcess, Probe, Stream, domain, noise

from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.inference.preprocess import prepare
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.perception.texts import softmax
from vljepa_ros.srv import Ask, Classify, Recall

CANDIDATES = ["a cube falls", "a ball", "nothing"]
PATIENCE = 900.0  # seconds: a busy machine must not make a stream old


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("unasked") / "tiny", chunk=1, query=False)


@pytest.fixture(scope="module")
def model(bundle: Path) -> Iterator[Runtime]:
    parts = ("x_encoder", "predictor", "y_encoder", "y_decoder")
    model = Runtime(load_bundle(bundle), "onnxruntime-cpu", parts=parts)
    yield model
    model.close()


@pytest.fixture(scope="module")
def probe(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Probe]:
    domain_id = domain()
    nodes = [
        NodeProcess("perception_node", domain_id, bundle=bundle, cameras=["front"],
                    max_gap=PATIENCE, gate_threshold=0.0, change_threshold=0.01),
        NodeProcess("decoder_node", domain_id, bundle=bundle),
        NodeProcess("memory_node", domain_id, bundle=bundle,
                    store=tmp_path_factory.mktemp("moments") / "store"),
    ]  # fmt: skip
    probe = Probe(domain_id)
    for node in nodes:
        node.wait_for_log("Active.")
    yield probe
    probe.close()
    for node in nodes:
        assert node.end() == 0
        assert "Traceback" not in node.log


@pytest.fixture(scope="module")
def camera(probe: Probe) -> Stream:
    return Stream(probe, "front", noise(0))


def see(camera: Stream, model: Runtime, seed: int) -> np.ndarray:
    """Four new pictures for the camera; the embedding of their clip, `[E]`."""
    pictures = [noise(seed + k) for k in range(4)]
    for picture in pictures:
        camera.step(picture)
    clip = np.stack([prepare(picture, 32) for picture in pictures])[None]
    return model.predict(model.encode(clip), [""])[0, 0]


def ask(probe: Probe, **fields: Any) -> Ask.Response:
    fields = {"question": "what falls?", "candidates": CANDIDATES, **fields}
    return probe.call(Ask, "ask", Ask.Request(**fields))


def test_steps_mean_what_is_seen(camera: Stream, probe: Probe, model: Runtime) -> None:
    embedding = see(camera, model, 100)
    (message,) = probe.at("front", camera.now)
    np.testing.assert_allclose(message.embedding, embedding, atol=1e-5)
    assert message.query == "" and len(message.embedding) == 32
    probe.wait(lambda: probe.infos, "model_info")
    assert list(probe.infos[-1].queries) == [""]
    chunks = probe.at("front", camera.now - 250_000_000)
    assert len(chunks) == 1 and not chunks[0].reused


def test_candidates_stand_in_the_question_s_place(
    camera: Stream, probe: Probe, model: Runtime
) -> None:
    embedding = see(camera, model, 110)
    cosines = model.embed_text(CANDIDATES) @ embedding
    for question in ("what falls?", "is the ball red?", ""):  # it may be left out
        answer = ask(probe, question=question)
        assert answer.success, answer.message
        assert ("the question was not used" in answer.message) == bool(question)
        assert ("as a statement" in answer.message) == bool(question)
        assert answer.answer == CANDIDATES[int(cosines.argmax())]
        wanted = softmax(cosines, model.bundle.temperature)
        np.testing.assert_allclose(answer.scores, wanted, atol=1e-5)
        np.testing.assert_allclose(answer.embedding, embedding, atol=1e-5)
    refused = ask(probe, candidates=["a", ""])
    assert not refused.success and "The candidate is empty" in refused.message


def test_an_open_answer_says_what_is_seen(camera: Stream, probe: Probe, model: Runtime) -> None:
    embedding = see(camera, model, 120)
    probe.wait(lambda: ask(probe, candidates=[]).success, "the decoder to be discovered")
    answer = ask(probe, candidates=[])
    assert answer.answer == model.decode(embedding)
    assert "the question was not used" in answer.message


def test_labels_are_scored_as_ever(camera: Stream, probe: Probe, model: Runtime) -> None:
    embedding = see(camera, model, 130)
    found = probe.call(Classify, "classify", Classify.Request(labels=["cube", "ball"]))
    assert found.success, found.message
    texts = model.embed_text(["a video of cube", "a video of ball"])
    wanted = np.sort(softmax(texts @ embedding, model.bundle.temperature))[::-1]
    np.testing.assert_allclose(found.scores, wanted, atol=1e-5)


def test_questions_of_its_own_are_refused_in_a_sentence(camera: Stream, probe: Probe) -> None:
    result = probe.set("perception", queries=["what is happening?"])
    assert not result.successful
    assert "'queries' must be empty" in result.reason and "is asked nothing" in result.reason
    (message,) = camera.step(noise(7))
    assert message.query == ""
    assert probe.set("perception", queries=[""]).successful


def test_what_was_seen_is_said_and_kept(camera: Stream, probe: Probe, model: Runtime) -> None:
    seeds = iter(range(200, 10_000, 100))

    def show() -> None:  # again: decoder and memory may not know of perception yet
        for seed in (next(seeds), next(seeds), next(seeds)):  # so that segments close
            for _ in range(8):
                camera.step(noise(seed))

    def said() -> bool:
        show()
        return bool(probe.utterances)

    probe.wait(said, "words")
    assert {one.query for one in probe.utterances} == {""}

    def kept() -> list[Any]:
        answer = probe.call(Recall, "recall", Recall.Request(text="a cube", limit=5))
        return list(answer.moments)

    def remembered() -> bool:
        show()
        return bool(kept())

    probe.wait(remembered, "a moment")
    assert {moment.query for moment in kept()} == {""}


def test_a_node_that_is_given_questions_does_not_configure(bundle: Path) -> None:
    node = NodeProcess("perception_node", domain(), bundle=bundle, queries=["what is it?"])
    node.wait_for_log("'queries' must be empty: tiny-1.0.0#")
    assert "Traceback" not in node.log
    node.end()
