"""`vljepa listen` against real publishers, each test in a ROS domain of its own."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import graph
import pytest
import rclpy
from json_records import check_record
from rclpy.context import Context
from rclpy.node import Node
from std_msgs.msg import Header

from vljepa_ros.cli.live.listen import Listener
from vljepa_ros.msg import SemanticChange, SemanticEmbedding, Utterance
from vljepa_ros.ros.process import FASTDDS_VARIABLE

DEADLINE = 90.0  # seconds; only a failure takes so long


class Listen:
    """A running `vljepa listen`, whose output is read line by line."""

    def __init__(self, domain: int, *options: str, interrupted: str = "") -> None:
        command = ["-c", "from vljepa_ros.cli import main; main()"]
        if interrupted:  # a message type; Ctrl-C comes while rclpy makes the first of it
            command = [str(Path(graph.__file__).with_name("interrupted.py")), interrupted, "vljepa"]
        self.process = subprocess.Popen(
            [sys.executable, *command, "listen", *options],
            env={**os.environ, "ROS_DOMAIN_ID": str(domain), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line.rstrip("\n"))

    def next_line(self, meanwhile: Callable[[], None] = lambda: None) -> str:
        """The next line of output; `meanwhile` is called again and again until it comes."""
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            meanwhile()
            try:
                return self.lines.get(timeout=0.1)
            except queue.Empty:
                assert self.process.poll() is None, "it ended"
        raise AssertionError("no line of output")

    def stop(self, number: signal.Signals) -> tuple[int, float]:
        start = time.monotonic()
        self.process.send_signal(number)
        return self.process.wait(DEADLINE), time.monotonic() - start


@pytest.fixture
def domain() -> int:
    return graph.domain()


@pytest.fixture
def node(domain: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    monkeypatch.delenv(FASTDDS_VARIABLE, raising=False)  # `listen` hears any shell's processes
    context = Context()
    rclpy.init(context=context, domain_id=domain)
    node = rclpy.create_node("talker", context=context)
    yield node
    node.destroy_node()
    rclpy.shutdown(context=context)


@pytest.fixture
def listen(domain: int) -> Iterator[Callable[..., Listen]]:
    started: list[Listen] = []

    def start(*options: str, interrupted: str = "") -> Listen:
        started.append(Listen(domain, *options, interrupted=interrupted))
        return started[-1]

    yield start
    for listener in started:
        listener.process.kill()
        listener.process.wait()


def wait_for_subscriber(publisher: Any) -> None:
    end = time.monotonic() + DEADLINE
    while not publisher.get_subscription_count():
        assert time.monotonic() < end, "nobody subscribed"
        time.sleep(0.02)


def header(seconds: int) -> Header:
    result = Header()
    result.stamp.sec = seconds
    return result


def test_utterances_and_changes_as_they_come(node: Node, listen: Callable[..., Listen]) -> None:
    utterances = node.create_publisher(Utterance, "utterances", 10)
    changes = node.create_publisher(SemanticChange, "changes", 10)
    listener = listen()
    wait_for_subscriber(utterances)
    wait_for_subscriber(changes)
    changes.publish(
        SemanticChange(
            header=header(7), camera="front", segment_id=3, change_score=1.5,
            segment_start=header(6).stamp,
        )
    )  # fmt: skip
    changed = "6.000 s  front  segment 3  score 1.50  change, noticed at 7.000 s"
    assert listener.next_line() == changed
    utterances.publish(
        Utterance(
            header=header(7), camera="front", segment_id=3, text="the cube [red] falls",
            segment_start=header(6).stamp, confidence=0.75, decode_time=0.012,
        )
    )  # fmt: skip
    said = "6.000 s  front  segment 3  says  the cube [red] falls  (0.75, 12 ms)"
    assert listener.next_line() == said
    utterances.publish(Utterance(camera="front", text="a hand", source="phrases"))
    assert listener.next_line().endswith("  says  a hand  (0.00, 0 ms, phrases)")


def test_json_has_a_line_for_each_message(node: Node, listen: Callable[..., Listen]) -> None:
    kinds = {"changes": SemanticChange, "utterances": Utterance, "embeddings": SemanticEmbedding}
    publishers = {name: node.create_publisher(kinds[name], f"/robot1/{name}", 10) for name in kinds}
    listener = listen("--json", "--embeddings")
    for publisher in publishers.values():
        wait_for_subscriber(publisher)
    about = {"header": header(1_700_000_000), "camera": "front", "segment_id": 3, "stream_id": 9}

    def heard(name: str, **fields: Any) -> dict[str, Any]:
        publishers[name].publish(kinds[name](**about, **fields))
        found: dict[str, Any] = json.loads(listener.next_line())
        check_record(f"listen: {found['type']}", found)
        assert (found["namespace"], found["camera"], found["segment_id"]) == ("robot1", "front", 3)
        assert (found["stamp"], found["start_ns" if "start" in found else "window_start_ns"]) == (
            "2023-11-14T22:13:20.000Z", 0
        )  # fmt: skip
        return found

    change = heard("changes", change_score=1.5)
    check_record("listen: change", change)
    assert (change["change_score"], change["familiarity"]) == (1.5, None)
    words = heard("utterances", text="a cube\u2028falls", confidence=0.75, familiarity=0.5)
    check_record("listen: utterance", words)
    assert (words["text"], words["confidence"]) == ("a cube\u2028falls", 0.75)
    assert words["familiarity"] == 0.5
    step = heard("embeddings", embedding=[0.6, 0.8], latency=float("nan"), sequence=4)
    check_record("listen: embedding", step)
    assert step["embedding"] == pytest.approx([0.6, 0.8]) and step["latency"] is None


def test_other_namespaces_are_found(node: Node, listen: Callable[..., Listen]) -> None:
    publisher = node.create_publisher(Utterance, "/robot1/utterances", 10)
    listener = listen()
    wait_for_subscriber(publisher)
    publisher.publish(Utterance(camera="rear", text="a hand"))
    assert "  robot1/rear  " in listener.next_line()


def test_one_namespace_only(node: Node, listen: Callable[..., Listen]) -> None:
    other = node.create_publisher(Utterance, "/robot10/utterances", 10)
    wanted = node.create_publisher(Utterance, "/robot1/utterances", 10)
    listener = listen("--namespace", "robot1")
    wait_for_subscriber(wanted)
    other.publish(Utterance(text="not for it"))
    wanted.publish(Utterance(text="the sentinel"))
    assert "the sentinel" in listener.next_line()
    assert other.get_subscription_count() == 0


def test_the_namespaces_that_have_streams_are_named_where_there_is_none(node: Node) -> None:
    listener = Listener(node, "robot1", False, lambda *_: None)
    assert "yet; start vljepa up or the launch file" in listener._nobody()
    publisher = node.create_publisher(Utterance, "/robot2/utterances", 10)
    wanted = "yet; there are streams in /robot2 (--namespace). Waiting."
    graph.wait(lambda: listener._nobody().endswith(wanted), "the other namespace to be named")
    assert listener._nobody().startswith("Nobody publishes changes or utterances in /robot1 in ")
    node.destroy_publisher(publisher)


def test_embeddings_only_when_asked_for(node: Node, listen: Callable[..., Listen]) -> None:
    publisher = node.create_publisher(SemanticEmbedding, "embeddings", 10)
    listener = listen("--embeddings")
    wait_for_subscriber(publisher)
    publisher.publish(
        SemanticEmbedding(camera="c", segment_id=1, sequence=9, reused=True, latency=0.02)
    )
    line = listener.next_line()
    assert line.endswith("c  segment 1  score 0.00  embedding 9, 20 ms old, reused")


def test_of_two_streams_of_a_camera_one_is_shown(node: Node, listen: Callable[..., Listen]) -> None:
    publisher = node.create_publisher(Utterance, "robot1/utterances", 10)
    listener = listen("--namespace", "robot1")
    wait_for_subscriber(publisher)
    for stream_id, text in ((1, "one"), (2, "two"), (1, "three"), (2, "four"), (1, "sentinel")):
        publisher.publish(Utterance(camera="front", text=text, stream_id=stream_id))
    lines = [listener.next_line() for _ in range(4)]
    (notice,) = (line for line in lines if "says" not in line)
    assert "Two perception nodes publish camera 'front'" in notice
    said = [line.partition("says  ")[2].partition("  ")[0] for line in lines if line != notice]
    assert said == ["one", "three", "sentinel"]


def test_it_says_that_nobody_publishes_and_ends_on_a_signal(
    listen: Callable[..., Listen],
) -> None:
    for number, listener in [(n, listen()) for n in (signal.SIGINT, signal.SIGTERM)]:
        assert "Nobody publishes changes or utterances in ROS domain" in listener.next_line()
        code, seconds = listener.stop(number)
        assert code == 0
        assert seconds < 10  # 3 s on a machine that has time
        assert listener.lines.empty()


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_it_ends_quietly_where_nobody_reads_on(
    domain: int, node: Node, options: tuple[str, ...]
) -> None:
    """As behind `| head -1`; also where nothing more comes that it could fail to write."""
    publisher = node.create_publisher(Utterance, "utterances", 10)
    command = [sys.executable, "-c", "from vljepa_ros.cli import main; main()", "listen", *options]
    process = subprocess.Popen(
        command, env={**os.environ, "ROS_DOMAIN_ID": str(domain)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None and process.stderr is not None
        wait_for_subscriber(publisher)
        publisher.publish(Utterance(text="a hand"))
        assert "a hand" in process.stdout.readline()
        process.stdout.close()
        assert (process.wait(DEADLINE), process.stderr.read()) == (0, "")
    finally:
        process.kill()
        process.wait()


def test_ctrl_c_while_a_message_is_made(node: Node, listen: Callable[..., Listen]) -> None:
    publisher = node.create_publisher(Utterance, "utterances", 10)
    listener = listen(interrupted="vljepa_ros.msg.Utterance")

    def over() -> bool:
        publisher.publish(Utterance(text="a hand"))
        return listener.process.poll() is not None

    graph.wait(over, "it to end")
    assert listener.process.returncode == 0
    while not listener.lines.empty():
        assert "a hand" in listener.lines.get()
