"""SemanticClient beside real perception, decoder and memory nodes, each a process."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")

import rclpy
from bundles import make_bundle
from graph import DEADLINE, NodeProcess, Probe, Stream, domain, noise, wait
from rclpy.executors import MultiThreadedExecutor

from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.client import Call, SemanticClient, SemanticError, SemanticTimeout
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.stamps import to_ns

PATIENCE = 900.0  # seconds: a busy machine must not make a stream old
ALWAYS, NEVER = 0.01, 1.0  # thresholds


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    thresholds = {"gate": 3.0, "change": 0.05, "watch": 0.5}
    return make_bundle(tmp_path_factory.mktemp("client") / "tiny", thresholds=thresholds)


class Graph:
    """The nodes, a camera that is stepped while somebody waits, and an agent with a client."""

    def __init__(self, bundle: Path, store: Path | None = None) -> None:
        self.domain_id = domain()
        self.perception = self.node("perception_node", bundle=bundle, max_gap=PATIENCE)
        self.others = [self.node("decoder_node", bundle=bundle)]
        if store is not None:
            self.others.append(self.node("memory_node", bundle=bundle, store=store))
        for node in (self.perception, *self.others):
            node.wait_for_log("Active.")
        self.probe = Probe(self.domain_id)
        self.camera = Stream(self.probe, "camera", noise(0))
        self.seed = 0
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=self.domain_id, args=[])
        self.agent = rclpy.create_node("agent", context=self.context)
        self.executor = MultiThreadedExecutor(context=self.context)
        self.executor.add_node(self.agent)
        self.thread = threading.Thread(target=self.executor.spin)
        self.thread.start()
        self.client = SemanticClient(self.agent, timeout=DEADLINE)

    def node(self, name: str, **parameters: Any) -> NodeProcess:
        return NodeProcess(name, self.domain_id, **parameters)

    def result(self, call: Call) -> Any:
        """The result of a call, while the camera moves."""
        self.see(call.done, "the call to settle")
        return call.result()

    def see(self, until: Callable[[], Any], what: str, change: bool = False) -> None:
        """Step until a condition holds; `change`: with another picture, now and then."""

        def met() -> bool:
            for _ in range(6 if change else 1):
                self.camera.step(noise(self.seed))
            self.seed += change
            return bool(until())

        self.probe.wait(met, what, deadline=60.0)

    def close(self) -> None:
        self.client.destroy()
        self.executor.shutdown()
        self.thread.join(10)
        self.agent.destroy_node()
        rclpy.shutdown(context=self.context)
        self.probe.close()
        for node in (self.perception, *self.others):
            node.end()
            assert "Traceback" not in node.log


@pytest.fixture(scope="module")
def graph(bundle: Path) -> Iterator[Graph]:
    graph = Graph(bundle)
    yield graph
    graph.close()


@pytest.fixture
def likely(graph: Graph, bundle: Path) -> str:
    """A condition that what the camera sees meets, somewhat."""
    for _ in range(6):
        (step,) = graph.camera.step(noise(graph.seed))
    words = "red green cube ball falls table".split()
    texts = [f"{a} {b}" for a in words for b in words]
    model = Runtime(load_bundle(bundle), "onnxruntime-cpu", parts=("y_encoder",))
    best = int(np.argmax(model.embed_text(texts) @ np.asarray(step.embedding)))
    model.close()
    return texts[best]


def test_questions(graph: Graph) -> None:
    candidates = ["the cube", "the ball"]
    answer = graph.result(graph.client.ask("what is red ?", candidates))
    assert answer.answer == candidates[int(np.argmax(answer.scores))]
    assert sum(answer.scores) == pytest.approx(1, abs=1e-5)
    opened = graph.result(graph.client.ask("what is red ?"))
    assert opened.answer and not opened.scores
    found = graph.result(graph.client.classify(candidates, template="one {}"))
    assert sorted(found.labels) == sorted(candidates)
    written = graph.result(graph.client.embed_text(candidates))
    assert len(written.embeddings) == 2 * written.embedding_dim
    with pytest.raises(SemanticError, match="There is no camera 'rear'; there are: camera"):
        graph.result(graph.client.ask("what is red ?", camera="rear"))


def test_fifty_questions_at_once(graph: Graph) -> None:
    candidates = [[f"{n} cube", f"{n} ball"] for n in ("red", "green", "blue", "yellow", "one")]
    calls = [graph.client.ask("what is it ?", candidates[k % 5]) for k in range(50)]
    graph.see(lambda: all(call.done() for call in calls), "every answer")
    for k, call in enumerate(calls):
        assert call.result().answer in candidates[k % 5]


def test_watches(graph: Graph, likely: str) -> None:
    scores: list[tuple[float, int]] = []
    call = graph.client.watch(
        likely, threshold=ALWAYS, on_feedback=lambda *scored: scores.append(scored)
    )
    moment = graph.result(call)
    assert moment.camera == "camera"
    assert moment.score >= ALWAYS
    assert (moment.score, to_ns(moment.end)) in scores or not scores  # overtaken by the result
    with pytest.raises(SemanticTimeout, match=r"did not come true within 0\.5 s; its best score"):
        graph.result(graph.client.watch(likely, threshold=NEVER, timeout=0.5))
    with pytest.raises(SemanticError, match="The condition is empty") as raised:
        graph.result(graph.client.watch(" "))
    assert not isinstance(raised.value, SemanticTimeout)


def test_a_cancelled_watch_no_longer_stands(graph: Graph, likely: str) -> None:
    heard = threading.Event()
    call = graph.client.watch(likely, threshold=NEVER, on_feedback=lambda *_: heard.set())
    graph.see(heard.is_set, "a score")
    call.cancel()
    graph.probe.wait_for_health("perception: watches", lambda values: values["standing"] == "0")


def test_what_is_said_is_heard_and_asked_about(graph: Graph) -> None:
    got: list[tuple[str, str]] = []

    async def narrate(said: Any) -> None:
        answer = await graph.client.ask("what is it ?", ["a cube", "a ball"], said.camera)
        got.append((said.text, answer.answer))

    def both_heard() -> bool:
        texts = {said.text for said in graph.probe.utterances}
        return any(text in texts for text, _ in got)

    listening = graph.client.on_utterance(narrate)
    graph.see(both_heard, "an utterance that the probe hears, too", change=True)
    listening.cancel()
    wait(lambda: graph.client.pending == 0, "the last answer")
    assert {answer for _, answer in got} <= {"a cube", "a ball"}


def test_moments_are_recalled_and_pinned(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("qdrant_edge", reason="not installed: pip install qdrant-edge-py")
    graph = Graph(bundle, tmp_path / "store")

    def recall(**bounds: Any) -> list[Any]:
        return list(graph.result(graph.client.recall("the cube falls", **bounds)).moments)

    def two() -> bool:
        try:
            return len(recall()) >= 2
        except SemanticError as error:  # the memory may discover perception late
            if "nobody serves '/embed_text'" not in str(error):
                raise
            return False

    try:
        graph.see(two, "two moments", change=True)
        moments = recall()
        first = min(moments, key=lambda moment: to_ns(moment.start))
        assert [m.id for m in recall(limit=1)] == [moments[0].id]
        assert first.id in [m.id for m in recall(before=first.start)]
        after = to_ns(first.end) / 1e9 + 0.001
        assert first.id not in [m.id for m in recall(after=after)]
        with pytest.raises(SemanticError, match="'before' is earlier than 'after'"):
            recall(after=100, before=99)
        graph.result(graph.client.pin(first.id))
        assert [m.pinned for m in recall() if m.id == first.id] == [True]
        graph.result(graph.client.pin(first.id, False))
        assert [m.pinned for m in recall() if m.id == first.id] == [False]
        with pytest.raises(SemanticError, match="There is no moment 'nothing'"):
            graph.result(graph.client.pin("nothing"))
    finally:
        graph.close()


@pytest.mark.parametrize(
    ("number", "sentence"),
    [(signal.SIGINT, "/perception is no longer active"),
     (signal.SIGKILL, "/watch did not answer within 2 s: the perception node has ended")],
)  # fmt: skip
def test_the_node_ends_while_it_watches(bundle: Path, number: int, sentence: str) -> None:
    graph = Graph(bundle)
    try:
        heard = threading.Event()
        graph.client._caller.timeout = 4.0
        call = graph.client.watch("a cube", threshold=NEVER, on_feedback=lambda *_: heard.set())
        graph.see(heard.is_set, "a score")
        graph.perception.end(number)
        with pytest.raises(SemanticError, match=sentence):
            call.wait(DEADLINE)
    finally:
        graph.close()
