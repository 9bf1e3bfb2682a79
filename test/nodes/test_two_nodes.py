"""Two perception nodes that publish one camera: told, and one of them followed."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")
pytest.importorskip("qdrant_edge", reason="not installed: pip install qdrant-edge-py")

from bundles import make_bundle
from graph import NodeProcess, Probe, Stream, domain, noise

from vljepa_ros.memory.moment import Moment
from vljepa_ros.memory.store import MomentStore
from vljepa_ros.stamps import to_ns

WARN = b"\x01"


def moments(folder: Path) -> list[Moment]:
    """What is in a store, oldest first, while a node may be writing it."""
    if not (folder / "moments.sqlite").exists():
        return []
    store = MomentStore(folder, read_only=True)
    try:
        return store.newest(1000)[::-1]
    finally:
        store.close()


class Graph:
    """Perception, decoder and memory, a camera, and a second perception node when it is wanted."""

    def __init__(self, folder: Path) -> None:
        thresholds = {"gate": 3.0, "change": 0.05, "watch": 0.5}
        self.bundle = make_bundle(folder / "tiny", thresholds=thresholds)
        self.domain_id, self.store = domain(), folder / "store"
        self.first = self.perception()
        self.decoder = NodeProcess("decoder_node", self.domain_id, bundle=self.bundle)
        self.memory = NodeProcess(
            "memory_node", self.domain_id, bundle=self.bundle, store=self.store
        )
        for node in (self.first, self.decoder, self.memory):
            node.wait_for_log("Active.")
        self.probe = Probe(self.domain_id)
        self.camera = Stream(self.probe, "front", noise(0))

    def perception(self) -> NodeProcess:
        return NodeProcess("perception_node", self.domain_id, bundle=self.bundle, cameras=["front"])

    def show(self, *pictures: int, streams: int = 2) -> None:
        """Show each picture for some steps, and wait for the embeddings of so many nodes."""
        for picture in pictures:
            for _ in range(12):
                self.camera.step(noise(picture), streams)

    def kept_since(self, begin: int) -> list[Moment]:
        return [m for m in moments(self.store) if m.start_ns > begin]

    def begin(self) -> int:
        """Until moments and words come; the id of the stream."""
        begin = self.camera.now

        def heard() -> bool:
            self.show(1, 2, streams=1)
            kept = self.kept_since(begin)
            return any(moment.thumbnail for moment in kept) and bool(self.probe.utterances)

        self.probe.wait(heard, "a moment with a thumbnail, and words")
        return self.probe.embeddings[-1].stream_id

    def start_second(self) -> NodeProcess:
        """A second perception node, once its embeddings come."""
        second = self.perception()
        second.wait_for_log("Active.")

        def both() -> bool:
            self.camera.step(noise(2))
            self.probe.executor.spin_once(timeout_sec=0.05)
            return len({e.stream_id for e in self.probe.embeddings}) == 2

        self.probe.wait(both, "the second node's embeddings")
        return second

    def warns(self, node: NodeProcess) -> None:
        """Until it says so in its log; it may discover the second node late."""

        def warned() -> bool:
            self.show(3, 4)
            return "Two perception nodes publish camera 'front'" in node.log

        self.probe.wait(warned, lambda: f"the warning:\n{node.log}")

    def told(self, name: str, words: str) -> None:
        """Until a status that comes from now on warns of it."""

        def warned() -> bool:
            self.show(3, 4)
            status = self.probe.health.get(name)
            return status is not None and status.level == WARN and words in status.message

        self.probe.health.clear()
        self.probe.wait(warned, lambda: f"the warning of {name}")

    def well(self, name: str) -> None:
        """Until a status that comes from now on warns no more."""
        health = self.probe.health
        health.pop(name, None)
        self.probe.wait(lambda: name in health and health[name].level != WARN, f"{name} to be well")


def changes_of(probe: Probe, followed: int, begin: int) -> list[Any]:
    """The changes of a stream whose last segment began after `begin`."""
    return [
        c for c in probe.changes
        if c.stream_id == followed and to_ns(c.previous_segment_start) > begin
    ]  # fmt: skip


def check_moments(graph: Graph, followed: int, begin: int) -> None:
    """What was kept since `begin` is what one stream said, and nothing else."""
    probe = graph.probe
    own = changes_of(probe, followed, begin)
    heard = [to_ns(e.header.stamp) for e in probe.embeddings if e.stream_id == followed]
    kept = {m.segment_id: m for m in graph.kept_since(begin)}
    assert len(own) >= 5 and len(kept) == len(graph.kept_since(begin))
    for change in own:
        moment = kept[change.previous_segment_id]
        since, until = to_ns(change.previous_segment_start), to_ns(change.segment_start)
        its = [at for at in heard if since < at <= until]
        assert (moment.start_ns, moment.end_ns) == (min(its), max(its))
    assert any(moment.thumbnail for moment in kept.values())  # not all: they may be lost
    assert {u.stream_id for u in probe.utterances} == {followed}


def test_memory_and_decoder_follow_one_and_then_the_other(tmp_path: Path) -> None:
    graph = Graph(tmp_path)
    probe, decoder, memory = graph.probe, graph.decoder, graph.memory
    followed = graph.begin()
    second = graph.start_second()
    told = "another perception node publishes camera 'front' on '/embeddings'"
    graph.first.wait_for_log(told)
    second.wait_for_log(told)
    for node in (memory, decoder):
        graph.warns(node)
    graph.told("perception: stream", told)
    for name in ("memory: store", "decoder: changes"):
        graph.told(name, "a second perception node publishes the same cameras")

    begin = graph.camera.now
    graph.show(3, 4, 5, 6, 7)
    probe.wait(
        lambda: (
            {c.previous_segment_id for c in changes_of(probe, followed, begin)}
            <= {m.segment_id for m in graph.kept_since(begin)}
        ),
        "the memory to have heard of all changes",
    )
    assert probe.transition("memory", "deactivate")  # what is open becomes a moment
    for node in (memory, decoder):
        assert node.log.count("Two perception nodes") == 1
    check_moments(graph, followed, begin)
    assert probe.transition("memory", "activate")

    # The first one dies: the other is gone on with, and the warnings end.
    assert graph.first.end(signal.SIGKILL) != 0
    begin = graph.camera.now

    def goes_on() -> bool:
        graph.show(8, 9, streams=1)
        spoken = any(u.stream_id != followed for u in probe.utterances)
        return spoken and any(m.text and m.thumbnail for m in graph.kept_since(begin))

    probe.wait(goes_on, "moments and words of the second node")
    for name in ("perception: stream", "memory: store", "decoder: changes"):
        graph.well(name)
    probe.close()
    for node in (second, decoder, memory):
        assert node.end() == 0
        assert "Traceback" not in node.log


def test_model_info_is_the_sign_of_a_stream(tmp_path: Path) -> None:
    """It names the cameras that are seen, every second, and none when the node goes."""
    domain_id = domain()
    node = NodeProcess(
        "perception_node", domain_id, bundle=make_bundle(tmp_path / "tiny"), cameras=["a", "b"]
    )
    node.wait_for_log("Active.")
    probe = Probe(domain_id)
    camera = Stream(probe, "a", noise(0))

    def named() -> bool:
        camera.step(noise(0))
        return bool(probe.infos) and probe.infos[-1].cameras == ["a"]

    probe.wait(named, "the camera that is seen, and not the other")
    count = len(probe.infos)
    probe.wait(lambda: len(probe.infos) >= count + 2, "further signs")
    assert {i.stream_id for i in probe.infos} == {e.stream_id for e in probe.embeddings} != {0}
    assert probe.transition("perception", "deactivate")
    probe.wait(lambda: not probe.infos[-1].cameras, "the end of the stream")
    assert probe.transition("perception", "activate")
    camera.restart(noise(0))
    probe.wait(named, "the camera again")
    assert node.end() == 0
    probe.wait(lambda: not probe.infos[-1].cameras, "the end of the stream")
    probe.close()
