"""The memory node: beside perception and decoder as processes, and what only a single one shows."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")
pytest.importorskip("qdrant_edge", reason="not installed: pip install qdrant-edge-py")

import rclpy
from bundles import make_bundle
from graph import SECOND, NodeProcess, Probe, Stream, domain, noise, wait
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from std_msgs.msg import Header

import vljepa_ros.memory.store as store_module
from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.memory.moment import Moment
from vljepa_ros.memory.store import MomentStore
from vljepa_ros.msg import SemanticChange, SemanticEmbedding, Utterance
from vljepa_ros.nodes.memory.node import MemoryNode
from vljepa_ros.ros.diagnostics import ERROR, OK, WARN
from vljepa_ros.ros.messages import floats, to_time
from vljepa_ros.srv import EmbedText, Pin, Recall
from vljepa_ros.stamps import to_ns

DIM = 32
THRESHOLDS = {"gate": 3.0, "change": 0.05, "watch": 0.5}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("memory") / "tiny", thresholds=THRESHOLDS)


def moments(folder: Path) -> list[Moment]:
    """What is in a store, oldest first, while a node may be writing it."""
    store = MomentStore(folder, read_only=True)
    try:
        return store.newest(100)[::-1]
    finally:
        store.close()


# ------------------------------------------------------------------ as processes


class Graph:
    """Perception, decoder and memory, and a camera that they watch."""

    def __init__(self, bundle: Path, store: Path) -> None:
        self.domain_id, self.store = domain(), store
        self.nodes = [
            NodeProcess("perception_node", self.domain_id, bundle=bundle, cameras=["front"]),
            NodeProcess("decoder_node", self.domain_id, bundle=bundle),
        ]
        self.bundle = bundle
        self.memory = self.start_memory()
        self.probe = Probe(self.domain_id)
        for node in self.nodes:
            node.wait_for_log("Active.")
        self.camera = Stream(self.probe, "front", noise(0))

    def start_memory(self) -> NodeProcess:
        self.nodes.append(
            NodeProcess(
                "memory_node", self.domain_id, bundle=self.bundle, store=self.store, robot="robbie"
            )
        )
        return self.nodes[-1]

    def show(self, *pictures: int, steps: int = 12) -> None:
        """Show the camera some pictures, each for so many steps."""
        for number in pictures:
            for _ in range(steps):
                self.camera.step(noise(number))

    def heard(self) -> None:
        """Until the memory keeps what the camera shows from now on, words and pictures too."""
        begin = self.camera.now

        def kept() -> bool:
            self.show(1, 2)
            found = moments(self.store) if (self.store / "moments.sqlite").exists() else []
            words = any(to_ns(u.segment_start) > begin for u in self.probe.utterances)
            return words and any(m.text and m.thumbnail and m.start_ns > begin for m in found)

        self.probe.wait(kept, "a moment")

    def recall(self, text: str = "a red cube falls", **fields: Any) -> Any:
        return self.probe.call(Recall, "recall", Recall.Request(text=text, **fields))

    def close(self) -> None:
        self.probe.close()
        codes = [node.end() for node in self.nodes if node.process.poll() is None]
        assert not any(codes)
        assert not any("Traceback" in node.log for node in self.nodes)


@pytest.fixture(scope="module")
def graph(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Graph]:
    graph = Graph(bundle, tmp_path_factory.mktemp("memory") / "store")
    yield graph
    graph.close()


def test_what_was_seen_is_recalled(graph: Graph, bundle: Path) -> None:
    graph.heard()
    begin = graph.camera.now
    graph.show(3, 4, 5, 6)
    probe = graph.probe
    own = [c for c in probe.changes if to_ns(c.previous_segment_start) > begin]
    assert own
    closing = {c.previous_segment_id for c in own}

    def worded() -> bool:
        found = {m.segment_id for m in moments(graph.store) if m.text}
        return closing <= found and closing <= {u.segment_id for u in probe.utterances}

    probe.wait(worded, "the closed segments and their words")
    closed = moments(graph.store)
    assert probe.transition("memory", "deactivate")  # what is open becomes a moment
    kept = moments(graph.store)
    assert probe.transition("memory", "activate")
    assert [m.id for m in kept[:-1]] == [m.id for m in closed]
    # The moments are those of the stream, as this test heard it too.
    of = {m.segment_id: m for m in kept}
    heard = {to_ns(e.header.stamp): np.array(e.embedding) for e in probe.embeddings}
    said = {u.segment_id: u.text for u in probe.utterances}
    for change in own:
        moment = of[change.previous_segment_id]
        since, until = to_ns(change.previous_segment_start), to_ns(change.segment_start)
        its = [at for at in heard if since < at <= until]  # both are steps of the segments before
        assert (moment.start_ns, moment.end_ns) == (min(its), max(its))
        mean = np.mean([heard[at] for at in its], axis=0)
        assert np.allclose(moment.embedding, mean / np.linalg.norm(mean), atol=1e-5)
        assert (moment.robot, moment.camera) == ("robbie", "front")
        assert moment.text == said[moment.segment_id]
    # The best are first; scores, pictures and words are theirs.
    model = Runtime(load_bundle(bundle), parts=("y_encoder",))
    text = model.embed_text(["a red cube falls"])[0]
    answer = graph.recall(limit=100)
    assert answer.success, answer.message
    by_score = sorted(kept, key=lambda m: -float(m.embedding @ text))
    assert [m.id for m in answer.moments] == [m.id for m in by_score]
    for found, moment in zip(answer.moments, by_score, strict=True):
        assert abs(found.score - moment.embedding @ text) < 1e-5
        assert (to_ns(found.start), to_ns(found.end)) == (moment.start_ns, moment.end_ns)
        assert bytes(found.thumbnail.data) == moment.thumbnail
    picture = cv2.imdecode(np.frombuffer(kept[-1].thumbnail, np.uint8), cv2.IMREAD_COLOR)
    assert np.abs(picture[..., ::-1].astype(int) - noise(6)).mean() < 12
    assert len(graph.recall().moments) == min(5, len(kept))  # the default


def test_a_bag_of_what_was_seen_gives_the_same_moments(
    graph: Graph, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rosbags.rosbag2", reason="not installed: pip install rosbags")
    from bags import write_bag
    from rosbags.highlevel import AnyReader
    from typer.testing import CliRunner

    from vljepa_ros.cli.app import app

    graph.heard()
    probe, camera = graph.probe, graph.camera
    sent: list[tuple[str, int, np.ndarray]] = []
    send = camera.send

    def record(message: Any) -> None:
        picture = np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, 3)
        sent.append(("/front/image_raw", to_ns(message.header.stamp), picture))
        send(message)

    monkeypatch.setattr(camera, "send", record)
    graph.show(10, 11, 12, 13, 14)
    monkeypatch.undo()
    write_bag(tmp_path / "bag", sent)
    export = tmp_path / "out.mcap"
    done = CliRunner().invoke(
        app,
        ["index", str(tmp_path / "bag"), "--bundle", str(bundle), "--robot", "robbie", "--store",
         str(tmp_path / "store"), "--export", str(export)],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    whole = moments(tmp_path / "store")[1:-1]  # the bag begins within the first
    assert len(whole) > 2
    ids = {m.id for m in whole}
    probe.wait(lambda: ids <= {m.id for m in moments(graph.store)}, "the same moments")
    probe.wait(lambda: all(m.text for m in moments(graph.store) if m.id in ids), "their words")
    live = {m.id: m for m in moments(graph.store)}
    for moment in whole:
        own = live[moment.id]
        assert (own.start_ns, own.end_ns, own.text) == (moment.start_ns, moment.end_ns, moment.text)
        assert np.abs(own.embedding - moment.embedding).max() < 1e-5
    heard = {to_ns(e.header.stamp): np.array(e.embedding) for e in probe.embeddings}
    wanted = sorted(heard)[-len(sent) + 3 :]  # all but while the clip of four filled
    with AnyReader([export]) as reader:
        topic = [c for c in reader.connections if c.topic == "/embeddings"]
        for connection, _, data in reader.messages(topic):
            message = reader.deserialize(data, connection.msgtype)
            at = message.header.stamp.sec * SECOND + message.header.stamp.nanosec
            assert np.abs(heard[at] - message.embedding).max() < 1e-5
            wanted.remove(at)
    assert not wanted


def test_recall_within_bounds_of_time_and_camera(graph: Graph) -> None:
    graph.heard()
    kept = moments(graph.store)
    middle = kept[len(kept) // 2]
    inside = graph.recall(
        after=to_time(middle.start_ns), before=to_time(middle.end_ns), cameras=["front"], limit=100
    )
    assert middle.id in {m.id for m in inside.moments}
    for found in inside.moments:
        assert to_ns(found.end) >= middle.start_ns and to_ns(found.start) <= middle.end_ns
    late = graph.recall(after=to_time(kept[-1].end_ns + 10**6 * SECOND))
    assert late.success and not late.moments and "Nothing that fits" in late.message


def test_recall_from_a_shell(graph: Graph, tmp_path: Path) -> None:
    graph.heard()
    done = subprocess.run(
        [sys.executable, "-c", "from vljepa_ros.cli import main; main()", "recall",
         "a red cube falls", "--limit", "3", "--sheet", str(tmp_path / "sheet.png"), "--json"],
        capture_output=True, text=True, timeout=60,
        env={**os.environ, "ROS_DOMAIN_ID": str(graph.domain_id)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [moment["id"] for moment in json.loads(done.stdout)]
    assert len(found) == 3 and set(found) <= {m.id for m in moments(graph.store)}
    assert cv2.imread(str(tmp_path / "sheet.png")) is not None


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"text": ""}, "The text is empty"),
        ({"text": "x" * 1001}, "1,001 characters"),
        ({"text": "a\x07b"}, "control character"),
        ({"after": to_time(9 * SECOND), "before": to_time(8 * SECOND)}, "'before' is earlier"),
        ({"cameras": ["rear"]}, "no camera 'rear' in the memory; there are: front"),
        ({"fleet": True}, "parameter 'server'"),
    ],
)
def test_a_bad_recall_is_a_sentence(graph: Graph, fields: dict[str, Any], said: str) -> None:
    graph.heard()
    answer = graph.recall(**fields)
    assert not answer.success and said in answer.message and not answer.moments


def test_pin(graph: Graph) -> None:
    graph.heard()
    moment = moments(graph.store)[-1]

    def kept() -> Moment:
        return next(m for m in moments(graph.store) if m.id == moment.id)

    def pin(**fields: Any) -> Any:
        return graph.probe.call(Pin, "pin", Pin.Request(**fields))

    assert pin(id=moment.id, pinned=True).success
    assert kept().pinned
    alone = to_time(moment.start_ns), to_time(moment.end_ns)  # of as many as a slow graph has made
    found = graph.recall(limit=100, after=alone[0], before=alone[1])
    assert [m.pinned for m in found.moments if m.id == moment.id] == [True]
    assert pin(id=moment.id, pinned=False).success
    assert not kept().pinned
    for bad in ("", "00000000-0000-0000-0000-000000000000"):
        answer = pin(id=bad, pinned=True)
        assert not answer.success and answer.message.endswith(".")


def test_a_kill_loses_at_most_the_open_segment(graph: Graph) -> None:
    graph.heard()
    probe = graph.probe
    begin = graph.camera.now
    graph.show(6, 7, 8)

    def lost() -> list[SemanticChange]:
        """The segments that closed and are not in the store."""
        kept = {m.segment_id for m in moments(graph.store)}
        closed = [c for c in probe.changes if begin < to_ns(c.previous_segment_start)]
        return [c for c in closed if c.previous_segment_id not in kept]

    probe.wait(
        lambda: any(begin < m.end_ns for m in moments(graph.store)) and len(lost()) <= 1,
        "the closed segments to be kept",
    )
    before = moments(graph.store)
    graph.memory.process.kill()
    graph.memory.process.wait()
    graph.memory = graph.start_memory()
    graph.memory.wait_for_log("Active.")
    assert {m.id for m in before} <= {m.id for m in moments(graph.store)}
    assert len(lost()) <= 1
    graph.heard()

    def answered() -> bool:
        """A request that goes to the node that was killed has no answer."""
        client = probe.node.create_client(Recall, "recall")
        future = client.call_async(Recall.Request(text="a red cube falls"))
        end = time.monotonic() + 1
        while not future.done() and time.monotonic() < end:
            probe.executor.spin_once(timeout_sec=0.05)
        probe.node.destroy_client(client)
        return bool(future.done() and future.result().success)

    probe.wait(answered, "the new node to recall")


def test_health(graph: Graph) -> None:
    graph.heard()
    graph.recall()
    graph.probe.wait_for_health(
        "memory: store",
        lambda v: int(v["moments"]) > 0 and int(v["bytes"]) > 0 and float(v["last recall (ms)"]) > 0
        and (v["pending"], v["refused"], v["dropped"], v["lost"]) == ("0", "0", "0", "0"),
    )  # fmt: skip


def test_without_perception_and_with_another_models_store(bundle: Path, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "other", name="other", seed=9)
    domain_id = domain()
    memory = NodeProcess("memory_node", domain_id, bundle=bundle, store=tmp_path / "store")
    probe = Probe(domain_id)
    try:
        memory.wait_for_log("Active.")
        answer = probe.call(Recall, "recall", Recall.Request(text="a cube"))
        assert not answer.success and "nobody serves '/embed_text'" in answer.message
        assert memory.end() == 0
        memory = NodeProcess("memory_node", domain_id, bundle=other, store=tmp_path / "store")
        memory.wait_for_log("Cannot configure: The store")
        memory.wait_for_log("/memory is unconfigured")
        for model in (bundle, other):
            assert load_bundle(model).model_id in memory.log
        assert memory.end() == 0
    finally:
        memory.end()
        probe.close()


# ------------------------------------------------------------------ one node, in this process


class Alone:
    """A memory node in this process, whose callbacks are called as by its executor."""

    def __init__(
        self, context: rclpy.Context, domain_id: int, bundle: Path, store: Path, **parameters: Any
    ) -> None:
        given = {"bundle": str(bundle), "store": str(store), "autostart": False, **parameters}
        self.model_id = load_bundle(bundle).model_id
        self.store, self.domain_id, self.context = store, domain_id, context
        self.node = MemoryNode(
            context=context, parameter_overrides=[Parameter(k, value=v) for k, v in given.items()]
        )
        self.node.trigger_configure()
        self.node.trigger_activate()
        assert self.node.state == "active", self.node.failure

    def step(self, at: int, segment_id: int, **fields: Any) -> None:
        embedding = np.zeros(DIM, np.float32)
        embedding[segment_id % DIM] = 1
        message = SemanticEmbedding(
            header=Header(stamp=to_time(at * SECOND)), camera="front", query="what?",
            model_id=self.model_id, segment_id=segment_id, embedding=floats(embedding),
        )  # fmt: skip
        for name, value in fields.items():
            setattr(message, name, value)
        self.node._on_embedding(message)

    def change(self, segment_id: int, start: int, previous_start: int) -> None:
        self.node._on_change(
            SemanticChange(
                camera="front", query="what?", model_id=self.model_id, segment_id=segment_id,
                segment_start=to_time(start * SECOND), previous_segment_id=segment_id - 1,
                previous_segment_start=to_time(previous_start * SECOND),
            )
        )  # fmt: skip

    def say(self, segment_id: int, text: str, **fields: Any) -> None:
        self.node._on_utterance(
            Utterance(camera="front", query="what?", model_id=self.model_id,
                      segment_id=segment_id, text=text, **{"confidence": 0.5, **fields})
        )  # fmt: skip

    def segments(self, *ids: int, length: int = 5) -> None:
        """Segments of so many steps, each a change after the one before."""
        for segment_id in ids:
            start = 100 * segment_id
            self.change(segment_id, start, 100 * (segment_id - 1) if segment_id > 1 else 0)
            for at in range(start, start + length):
                self.step(at, segment_id)

    def serve_embeddings(self, segment_id: int) -> None:
        """Stand in for perception: every text means what that segment shows."""

        def embed(request: EmbedText.Request, response: EmbedText.Response) -> EmbedText.Response:
            vector = np.zeros(DIM, np.float32)
            vector[segment_id % DIM] = 1
            response.success, response.model_id = True, self.model_id
            response.embedding_dim, response.embeddings = DIM, floats(vector)
            return response

        self.node.create_service(EmbedText, "embed_text", embed)

    @contextmanager
    def spinning(self) -> Iterator[Probe]:
        """While the node spins in a thread, somebody to call its services."""
        executor, ended = SingleThreadedExecutor(context=self.context), threading.Event()
        executor.add_node(self.node)

        def spin() -> None:
            while not ended.is_set():
                executor.spin_once(timeout_sec=0.05)

        thread = threading.Thread(target=spin)
        thread.start()
        probe = Probe(self.domain_id)
        try:
            yield probe
        finally:
            probe.close()
            ended.set()
            thread.join()
            executor.remove_node(self.node)

    def status(self) -> Any:
        return self.node.statuses()[0]

    def texts(self) -> list[str]:
        return [m.text for m in moments(self.store)]


@pytest.fixture
def alone(bundle: Path, tmp_path: Path) -> Iterator[Any]:
    context, domain_id = rclpy.Context(), domain()
    rclpy.init(context=context, domain_id=domain_id, args=[])
    made: list[Alone] = []

    def make(**parameters: Any) -> Alone:
        made.append(Alone(context, domain_id, bundle, tmp_path / "store", **parameters))
        return made[-1]

    yield make
    for one in made:
        one.node.end()
        one.node.destroy_node()
    rclpy.shutdown(context=context)


def test_words_that_come_late_reach_their_moment(alone: Any) -> None:
    memory = alone()
    memory.segments(1, 2, 3)
    wait(lambda: len(moments(memory.store)) == 2, "two moments")
    memory.say(1, "the first")
    memory.say(3, "the open one")
    wait(lambda: memory.texts() == ["the first", ""], "the late words")
    memory.node.trigger_deactivate()
    assert memory.texts() == ["the first", "", "the open one"]
    assert {m.robot for m in moments(memory.store)} == {socket.gethostname()}


def test_messages_that_do_not_fit_are_refused_counted_and_said_once(alone: Any) -> None:
    memory = alone()
    logged: list[str] = []
    memory.node.get_logger = lambda: types.SimpleNamespace(  # type: ignore[method-assign]
        warning=logged.append, info=lambda text: None, error=lambda text: None
    )
    memory.segments(1)
    for _ in range(3):
        memory.step(200, 2, model_id="other-1#0")
    memory.step(201, 2, embedding=floats(np.ones(5, np.float32)))
    memory.step(202, 2, embedding=floats(np.full(DIM, np.nan, np.float32)))
    memory.say(1, "nonsense", confidence=float("nan"))
    status = memory.status()
    assert (status.level, status.values["refused"]) == (WARN, 6)
    assert memory.status().level == OK  # nothing new
    memory.node.trigger_deactivate()
    assert [m.end_ns for m in moments(memory.store)] == [104 * SECOND]
    assert len(logged) == 3 and "other-1#0" in logged[0] and memory.model_id in logged[0]


def test_a_full_disk_loses_nothing(alone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = alone()
    memory.segments(1, 2)
    wait(lambda: len(moments(memory.store)) == 1, "a moment")
    free = store_module.free_bytes
    monkeypatch.setattr(store_module, "free_bytes", lambda folder: 0)
    memory.segments(3, 4)
    memory.say(2, "said while the disk was full")

    def full() -> bool:
        status = memory.status()
        waiting = status.values["pending"] == 2
        return waiting and status.level == ERROR and "full" in status.message

    wait(full, "two moments to wait for room")
    assert len(moments(memory.store)) == 1
    monkeypatch.setattr(store_module, "free_bytes", free)
    # What is heard goes on, and so does /diagnostics, which has it tried again.
    wait(lambda: memory.status().values["pending"] == 0, "the moments to be written")
    wait(lambda: memory.status().level == OK, "the report of it")
    assert memory.texts() == ["", "said while the disk was full", ""]


def test_open_segments_become_moments_when_the_node_ends(alone: Any) -> None:
    memory = alone()
    memory.segments(1)
    memory.node.end()
    assert memory.node.state == "finalized"
    assert [(m.start_ns, m.end_ns) for m in moments(memory.store)] == [(100 * SECOND, 104 * SECOND)]


def test_the_pose_is_that_of_tf(alone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in for tf2_ros, which is not on the package index."""
    asked: list[tuple[str, str, int]] = []

    class TransformException(Exception):
        pass

    class Buffer:
        def lookup_transform(self, target: str, source: str, time: Any) -> Any:
            asked.append((target, source, time.nanoseconds))
            if time.nanoseconds:
                raise TransformException("too old")
            at = types.SimpleNamespace(x=1.0, y=2.0, z=3.0)
            turn = types.SimpleNamespace(x=0.0, y=0.0, z=0.6, w=0.8)
            return types.SimpleNamespace(
                header=Header(stamp=to_time(7 * SECOND), frame_id=target),
                transform=types.SimpleNamespace(translation=at, rotation=turn),
            )

    fake = types.ModuleType("tf2_ros")
    fake.Buffer, fake.TransformException = Buffer, TransformException  # type: ignore[attr-defined]
    fake.TransformListener = lambda *_, **__: types.SimpleNamespace(  # type: ignore[attr-defined]
        unregister=lambda: None
    )
    monkeypatch.setitem(sys.modules, "tf2_ros", fake)
    memory = alone(pose_frame="base_link", pose_reference="odom")
    memory.segments(1, 2)
    wait(lambda: moments(memory.store), "a moment")
    pose = moments(memory.store)[0].pose
    assert pose is not None and (pose.frame, pose.stamp_ns) == ("odom", 7 * SECOND)
    assert (pose.position, pose.orientation) == ((1.0, 2.0, 3.0), (0.0, 0.0, 0.6, 0.8))
    assert asked == [("odom", "base_link", 104 * SECOND), ("odom", "base_link", 0)]


def test_a_fleet_is_asked(alone: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against qdrant-client's own local mode."""
    qdrant = pytest.importorskip("qdrant_client", reason="not installed: pip install qdrant-client")
    from vljepa_ros.memory import fleet

    server = qdrant.QdrantClient(":memory:")
    monkeypatch.setattr(fleet, "connect", lambda url, key: server)
    memory = alone(server="http://fleet", collection="garage")
    memory.segments(1, 2, 3)
    memory.node.trigger_deactivate()
    with MomentStore(memory.store, read_only=True) as opened:
        assert fleet.push(opened, "http://fleet", "garage") == 3
    shutil.rmtree(memory.store / "index")  # its own store is not asked

    memory.serve_embeddings(2)
    with memory.spinning() as probe:
        answer = probe.call(Recall, "recall", Recall.Request(text="a cube", fleet=True, limit=2))
        assert answer.success, answer.message
        assert (answer.moments[0].segment_id, len(answer.moments)) == (2, 2)
        memory.node.trigger_cleanup()
        answer = probe.call(Recall, "recall", Recall.Request(text="a cube", fleet=True))
        assert "is unconfigured; configure it" in answer.message


def test_an_index_that_breaks_is_a_sentence(alone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = alone()
    memory.serve_embeddings(1)

    def broken(*_: Any) -> None:
        raise ValueError("a torn page")

    with memory.spinning() as probe:
        empty = probe.call(Recall, "recall", Recall.Request(text="a cube"))
        assert empty.success and not empty.moments and "stored yet" in empty.message
        monkeypatch.setattr(memory.node._open.store, "search", broken)
        answer = probe.call(Recall, "recall", Recall.Request(text="a cube"))
        assert not answer.success and "ValueError: a torn page" in answer.message
        monkeypatch.undo()
        assert probe.call(Recall, "recall", Recall.Request(text="a cube")).success


def test_a_store_that_is_gone_is_made_again(alone: Any) -> None:
    memory = alone()
    memory.node.trigger_deactivate()
    memory.node.trigger_cleanup()
    shutil.rmtree(memory.store)
    memory.node.trigger_configure()
    memory.node.trigger_activate()
    memory.segments(1, 2)
    wait(lambda: len(moments(memory.store)) == 1, "a moment in the new store")
