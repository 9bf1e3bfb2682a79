"""What a bundle does not know, through the graph: silence or a sentence, and answers tell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")

from bundles import make_bundle
from graph import NodeProcess, Probe, Stream, domain, noise
from rclpy.action import ActionClient

from vljepa_ros.action import Watch
from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.inference.familiarity import add_familiarity, fit, pooled
from vljepa_ros.inference.preprocess import prepare
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.srv import Ask, Classify
from vljepa_ros.stamps import to_ns

CAMERA = "front"
PATIENCE = 900.0  # seconds: a busy machine must not make a stream old
WORDS = "something I do not know"


def strange(seed: int) -> np.ndarray:
    """A bright picture, as the world of `noise` has none."""
    return np.full((48, 64, 3), 200 + seed, np.uint8)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that knows noise, and nothing else."""
    folder = make_bundle(tmp_path_factory.mktemp("unfamiliar") / "tiny")
    model = Runtime(load_bundle(folder), "onnxruntime-cpu", threads=1, parts=("x_encoder",))
    pictures = np.stack([prepare(noise(seed), 32) for seed in range(400)])
    seen = pooled(model, pictures.reshape(100, 4, 32, 32, 3))
    add_familiarity(folder, fit(seen[:60], seen[60:]))
    model.close()
    return folder


@pytest.fixture(scope="module")
def domain_id() -> int:
    return domain()


@pytest.fixture(scope="module")
def nodes(bundle: Path, domain_id: int) -> Iterator[tuple[NodeProcess, NodeProcess]]:
    perception = NodeProcess(
        "perception_node", domain_id, bundle=bundle, cameras=[CAMERA], max_gap=PATIENCE,
        gate_threshold=0.0,
    )  # fmt: skip
    decoder = NodeProcess("decoder_node", domain_id, bundle=bundle)
    yield perception, decoder
    for node in (perception, decoder):
        assert node.end() == 0
        assert "Traceback" not in node.log


@pytest.fixture(scope="module")
def probe(nodes: tuple[NodeProcess, NodeProcess], domain_id: int) -> Iterator[Probe]:
    probe = Probe(domain_id)
    for node in nodes:
        node.wait_for_log("Active.")
    yield probe
    probe.close()


@pytest.fixture(scope="module")
def camera(probe: Probe) -> Stream:
    return Stream(probe, CAMERA, noise(0))


def test_of_what_it_does_not_know_it_says_nothing_or_what_it_is_told_to(
    camera: Stream, probe: Probe
) -> None:
    camera.restart(noise(1))
    while not probe.utterances:  # until the decoder hears changes
        camera.restart(noise(1))
    wait_for_words(probe, camera)
    said = probe.utterances[-1]
    assert (
        said.familiarity == probe.changes[-1].familiarity >= probe.infos[-1].familiarity_threshold
    )

    camera.restart(strange(0))
    probe.wait(lambda: probe.changes[-1].familiarity < 0.5, "a change to what is not known")
    quiet = probe.changes[-1].segment_id
    assert all(0 <= e.familiarity < 0.5 for e in probe.of(CAMERA)[-4:])
    probe.wait_for_health("decoder: changes", lambda values: int(values["unfamiliar"]) == 1)
    probe.wait_for_health(
        f"perception: camera {CAMERA}", lambda values: 0 <= float(values["familiarity"]) < 0.5
    )

    assert probe.set("decoder", unfamiliar=WORDS).successful
    camera.restart(strange(1))
    wait_for_words(probe, camera)
    assert (probe.utterances[-1].text, probe.utterances[-1].confidence) == (WORDS, 0)
    assert quiet not in [said.segment_id for said in probe.utterances]
    assert probe.set("decoder", unfamiliar="").successful


def test_answers_about_what_it_does_not_know_say_so(camera: Stream, probe: Probe) -> None:
    camera.restart(noise(1))
    for answer in ask(probe), classify(probe):
        assert answer.success and "may mean nothing" not in answer.message
        assert answer.familiarity >= 0.5
    camera.restart(strange(0))
    for answer, what in (ask(probe), "the answer"), (classify(probe), "the best label"):
        assert answer.success
        assert f"{what} may mean nothing" in answer.message
        assert f"(familiarity {answer.familiarity:.2f}, known from 0.50 on)" in answer.message
        assert 0 <= answer.familiarity < 0.5


def test_a_watch_that_comes_true_of_what_it_does_not_know_says_so(
    camera: Stream, probe: Probe, bundle: Path
) -> None:
    camera.restart(strange(0))
    model = Runtime(load_bundle(bundle), "onnxruntime-cpu", threads=1, parts=("y_encoder",))
    texts = ["the cube falls", "a red ball", "nothing moves", "hand on the table", "blue block"]
    cosines = model.embed_text(texts) @ np.array(probe.of(CAMERA)[-1].embedding)
    model.close()
    assert cosines.max() > 0.02
    goal = Watch.Goal(camera=CAMERA, text=texts[int(cosines.argmax())], threshold=0.01)
    client = ActionClient(probe.node, Watch, "watch")
    probe.wait(client.server_is_ready, "the action server")
    accepted = client.send_goal_async(goal)
    probe.wait(accepted.done, "the goal to be accepted")
    result = accepted.result().get_result_async()

    def came_true() -> bool:
        camera.step(strange(0))
        return bool(result.done())

    probe.wait(came_true, "the condition")
    found = result.result().result
    client.destroy()
    assert found.success
    assert "that the condition holds may mean nothing" in found.message
    assert 0 <= found.moment.familiarity < 0.5


def wait_for_words(probe: Probe, camera: Stream) -> None:
    """Until the change that opened the stream was put into words."""
    probe.wait(
        lambda: any(to_ns(said.header.stamp) >= camera.begin for said in probe.utterances),
        "an utterance",
    )


def ask(probe: Probe) -> Ask.Response:
    request = Ask.Request(camera=CAMERA, question="what is red ?", candidates=["cube", "ball"])
    return probe.call(Ask, "ask", request)


def classify(probe: Probe) -> Classify.Response:
    return probe.call(Classify, "classify", Classify.Request(camera=CAMERA, labels=["cube", "arm"]))
