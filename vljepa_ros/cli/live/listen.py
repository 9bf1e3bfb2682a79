"""`vljepa listen`: changes and utterances as they come, from every namespace or one.

Invariant: it only subscribes; nothing on the robot notices more than one more subscriber.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import typer

from vljepa_ros.console import console, notice, print_json, reader_has_gone
from vljepa_ros.ros.names import checked_namespace
from vljepa_ros.ros.process import Signals, init_ros, needs_ros, set_fastdds
from vljepa_ros.stamps import clock, other_clock, to_ns

from ..records import record

SILENCE = 5.0  # seconds without a publisher before it is said
LOOK_AROUND = 0.25  # seconds between two looks at the graph for further topics
KINDS = {"changes": "SemanticChange", "utterances": "Utterance", "embeddings": "SemanticEmbedding"}


def listen(
    namespace: str = typer.Option("", help="Only streams in this namespace; empty: everywhere."),
    embeddings: bool = typer.Option(False, "--embeddings", help="A line per embedding, too."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON Lines, one for each message."),
) -> None:
    """Print what the robot notices and says, as it comes, until Ctrl-C."""
    inside = checked_namespace("--namespace", namespace)
    set_fastdds()
    signals = Signals()
    stopped = threading.Event()
    try:
        import rclpy

        import vljepa_ros.msg  # noqa: F401
    except ImportError as error:
        raise needs_ros("listen", error) from error

    init_ros([])
    signals.on_stop(stopped.set)
    node = rclpy.create_node("listen")
    listener = Listener(node, inside, embeddings, show_json if as_json else show_line)
    try:
        while not stopped.is_set() and not reader_has_gone():
            listener.look_around()
            rclpy.spin_once(node, timeout_sec=LOOK_AROUND)
    finally:
        node.destroy_node()
        rclpy.shutdown()


Show = Callable[[str, str, Any], None]  # a kind, a namespace without slashes around, a message


class Listener:
    """Subscribes to every stream topic in `namespace` (empty: all namespaces) and shows it."""

    def __init__(self, node: Any, namespace: str, embeddings: bool, show: Show) -> None:
        self.node = node
        self.show = show
        self.prefix = "/".join(["", *filter(None, namespace.split("/")), ""])  # "/" or "/a/b/"
        self.kinds = [kind for kind in KINDS if embeddings or kind != "embeddings"]
        self.subscriptions: dict[str, Any] = {}
        self.sources: dict[str, Any] = {}  # by namespace
        self.silent_since = self.looked = float("-inf")
        # At the usual names at once: what is found by looking around may miss its first message.
        for kind in self.kinds:
            self._subscribe(self.prefix + kind, kind)
        self._heard()

    def look_around(self) -> None:
        """Subscribe to stream topics that appeared; say so when nobody publishes any."""
        now = time.monotonic()
        if now - self.looked < LOOK_AROUND:
            return
        self.looked = now
        kinds = {f"vljepa_ros/msg/{KINDS[kind]}": kind for kind in self.kinds}
        for topic, types in self.node.get_topic_names_and_types():
            if topic in self.subscriptions or not topic.startswith(self.prefix):
                continue
            for kind in (kinds[name] for name in types if name in kinds):
                self._subscribe(topic, kind)
        if any(self.node.count_publishers(topic) for topic in self.subscriptions):
            self._heard()
        elif now - self.silent_since > SILENCE:
            self.silent_since = float("inf")  # once, until somebody publishes
            notice(self._nobody())

    def _heard(self) -> None:
        self.silent_since = time.monotonic()

    def _nobody(self) -> str:
        where = "" if self.prefix == "/" else f" in {self.prefix[:-1]}"
        domain = os.environ.get("ROS_DOMAIN_ID", "0")
        nobody = f"Nobody publishes {' or '.join(self.kinds)}{where} in ROS domain {domain} yet; "
        if others := self._elsewhere():
            return f"{nobody}there are streams in {', '.join(others)} (--namespace). Waiting."
        return f"{nobody}start vljepa up or the launch file, with the same ROS_DOMAIN_ID. Waiting."

    def _elsewhere(self) -> list[str]:
        """The other namespaces that have streams."""
        kinds = {f"vljepa_ros/msg/{KINDS[kind]}" for kind in self.kinds}
        return sorted(
            {
                topic.rpartition("/")[0] or "/"
                for topic, types in self.node.get_topic_names_and_types()
                if kinds & set(types) and topic not in self.subscriptions
                and self.node.count_publishers(topic)
            }
        )  # fmt: skip

    def _subscribe(self, topic: str, kind: str) -> None:
        import vljepa_ros.msg as interfaces

        prefix = topic[: -len(kind)].strip("/") if topic.endswith("/" + kind) else topic

        sources = self._sources_of(topic.rpartition("/")[0])
        takes = sources.takes_words if kind == "utterances" else sources.takes

        def show(message: Any) -> None:
            if takes(message):
                self.show(kind, prefix, message)

        self.subscriptions[topic] = self.node.create_subscription(
            getattr(interfaces, KINDS[kind]), topic, show, 10
        )

    def _sources_of(self, namespace: str) -> Any:
        """The streams of a namespace, of which each camera is shown from one."""
        from vljepa_ros.client.source import Sources
        from vljepa_ros.msg import ModelInfo

        if namespace not in self.sources:
            sources = self.sources[namespace] = Sources(notice)
            self.node.create_subscription(ModelInfo, f"{namespace}/model_info", sources.on_info, 10)
        return self.sources[namespace]


def show_line(kind: str, namespace: str, message: Any) -> None:
    """Print one message as a line: time, stream, what happened."""
    console.print(line(kind, namespace, message))


def show_json(kind: str, namespace: str, message: Any) -> None:
    """Print one message as a line of JSON."""
    about = {
        "namespace": namespace, "camera": message.camera, "query": message.query,
        "model_id": message.model_id, "stream_id": message.stream_id,
        "segment_id": message.segment_id, "stamp": to_ns(message.header.stamp),
        "familiarity": message.familiarity,
    }  # fmt: skip
    if kind == "utterances":
        found = record(
            "listen: utterance", **about, start=to_ns(message.segment_start), text=message.text,
            source=message.source, confidence=message.confidence, decode_time=message.decode_time,
        )  # fmt: skip
    elif kind == "changes":
        found = record(
            "listen: change", **about, start=to_ns(message.segment_start),
            change_score=message.change_score,
        )  # fmt: skip
    else:
        found = record(
            "listen: embedding", **about, window_start=to_ns(message.window_start),
            sequence=message.sequence, change_score=message.change_score, reused=message.reused,
            latency=message.latency, embedding=message.embedding.tolist(),
        )  # fmt: skip
    print_json(found, line=True)


def line(kind: str, namespace: str, message: Any) -> str:
    """One message as a line: time, stream, what happened.

    A change and its words stand under the time at which their meaning began, as in `vljepa up`.
    """
    stream = "/".join(part for part in (namespace, message.camera) if part)
    seen = clock(to_ns(message.header.stamp))
    at = seen if kind == "embeddings" else clock(to_ns(message.segment_start))
    head = f"{at}  {stream}  segment {message.segment_id}"
    if kind == "utterances":
        decode_ms = message.decode_time * 1e3
        source = f", {message.source}" if message.source else ""
        told = f"{message.confidence:.2f}, {decode_ms:.0f} ms{source}{_familiar(message)}"
        return f"{head}  says  {message.text}  ({told})"
    head = f"{head}  score {message.change_score:.2f}"
    if kind == "changes":
        return f"{head}  change, noticed at {seen}{_familiar(message)}"
    reused = ", reused" if message.reused else ""
    latency = message.latency
    age = "stamped by another clock" if other_clock(latency) else f"{latency * 1e3:.0f} ms old"
    return f"{head}  embedding {message.sequence}, {age}{reused}{_familiar(message)}"


def _familiar(message: Any) -> str:
    """How familiar it is; empty where the model cannot tell."""
    return f", familiar {message.familiarity:.2f}" if message.familiarity >= 0 else ""
