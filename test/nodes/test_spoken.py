"""The topic `spoken`: what is said as text, and a sentence where its message is missing."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")

import rclpy
from bundles import make_bundle
from graph import domain
from rclpy.context import Context
from rclpy.parameter import Parameter
from std_msgs.msg import Header

from vljepa_ros.msg import SemanticChange
from vljepa_ros.nodes.decoder import DecoderNode
from vljepa_ros.nodes.decoder.spoken import Spoken
from vljepa_ros.ros.parameters import ParameterError
from vljepa_ros.words.speaker import Said


class Marker:
    """As visualization_msgs/msg/Marker, which is not everywhere."""

    ADD, DELETE, TEXT_VIEW_FACING = 0, 2, 9

    def __init__(self, header: Any, ns: str, id: int) -> None:
        self.header, self.ns, self.id = header, ns, id
        self.pose = SimpleNamespace(position=SimpleNamespace(), orientation=SimpleNamespace())
        self.scale, self.color = SimpleNamespace(), SimpleNamespace()


class Publisher:
    """Keeps what is published, instead of a node's."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.made: list[Any] = []

    def create_lifecycle_publisher(self, *arguments: Any) -> Publisher:
        self.made.append(arguments)
        return self

    def publish(self, message: Any) -> None:
        self.sent.append(message)


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Publisher:
    messages = ModuleType("visualization_msgs.msg")
    messages.Marker = Marker  # type: ignore[attr-defined]
    package = ModuleType("visualization_msgs")
    monkeypatch.setitem(sys.modules, "visualization_msgs", package)
    monkeypatch.setitem(sys.modules, "visualization_msgs.msg", messages)
    return Publisher()


def change(camera: str = "front", query: str = "") -> SemanticChange:
    header = Header(frame_id=f"{camera}_optical")
    header.stamp.sec = 7
    return SemanticChange(header=header, camera=camera, query=query)


def test_text_stands_at_the_camera_s_frame_until_nothing_is_said(published: Publisher) -> None:
    spoken = Spoken(published)  # type: ignore[arg-type]
    assert published.made == [(Marker, "spoken", 10)]
    spoken.say(change(), "a cube falls")
    spoken.say(change(query="who?"), "nobody")
    spoken.say(change("rear"), "a wall")
    spoken.say(change(), "")
    first, below, rear, gone = published.sent
    assert (first.header.frame_id, first.header.stamp.sec) == ("front_optical", 7)
    assert (first.type, first.action, first.text) == (Marker.TEXT_VIEW_FACING, 0, "a cube falls")
    assert first.scale.z > 0 and first.color.a == 1.0 and first.pose.position.z > 0
    assert (below.ns, below.id) == ("front", 1)
    assert below.pose.position.y >= first.pose.position.y + first.scale.z  # not over each other
    assert (rear.ns, rear.id, rear.header.frame_id) == ("rear", 0, "rear_optical")
    assert (gone.ns, gone.id, gone.action) == (first.ns, first.id, Marker.DELETE)


@pytest.mark.parametrize("asked", [False, True])
def test_the_decoder_node_says_it_where_it_is_asked(
    tmp_path: Path, published: Publisher, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    real = DecoderNode.create_lifecycle_publisher

    def publisher(node: Any, kind: Any, topic: str, *rest: Any) -> Any:
        if kind is Marker:
            return published.create_lifecycle_publisher(kind, topic, *rest)
        return real(node, kind, topic, *rest)

    monkeypatch.setattr(DecoderNode, "create_lifecycle_publisher", publisher)
    monkeypatch.setattr(Spoken, "close", lambda spoken, node: None)
    bundle = make_bundle(tmp_path / "tiny")
    context = Context()
    rclpy.init(context=context, domain_id=domain())
    given = {"bundle": str(bundle), "autostart": False, "spoken": asked}
    node = DecoderNode(
        context=context, parameter_overrides=[Parameter(k, value=v) for k, v in given.items()]
    )
    try:
        assert node.trigger_configure().name == "SUCCESS"
        node._say(change(), Said("a cube falls", 0.5, "decoder"), 0.1)
        node._say(change(), None, 0.1)
    finally:
        node.trigger_cleanup()
        node.destroy_node()
        rclpy.shutdown(context=context)
    assert [one.action for one in published.sent] == ([Marker.ADD, Marker.DELETE] if asked else [])


def test_without_the_message_a_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "visualization_msgs", None)
    with pytest.raises(ParameterError, match=r"'spoken' needs visualization_msgs.*apt-get install"):
        Spoken(Publisher())  # type: ignore[arg-type]
