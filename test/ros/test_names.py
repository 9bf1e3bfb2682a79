"""Names that ROS takes pass; others are one sentence that says whose they are and what to write."""

from __future__ import annotations

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not there")

import rclpy
from graph import domain
from hypothesis import given
from hypothesis import strategies as st
from rclpy.expand_topic_name import expand_topic_name
from rclpy.validate_full_topic_name import validate_full_topic_name
from rclpy.validate_namespace import validate_namespace

from vljepa_ros.errors import VLJepaError
from vljepa_ros.ros.names import LONGEST, check_camera, check_topic, checked_namespace

LETTERS = st.text(st.sampled_from("ab1_/~{} .é"), max_size=6)
TOPICS = st.one_of(
    LETTERS, st.sampled_from(["~/a", "{node}/a", "/{ns}x", "a{node}", "~", "/", "a//b", "{x}"])
)


@given(TOPICS)
def test_topics_that_pass_are_those_that_rcl_takes(topic: str) -> None:
    try:
        check_topic("It", topic)
    except VLJepaError as error:
        assert str(error)[-1] == "."  # noqa: PT017 - what is not refused is told apart below
        try:
            validate_full_topic_name(expand_topic_name(topic, "node", "/space"))
        except Exception:
            return
        assert topic == "~", f"rcl takes {topic!r}"  # the node's own name, which is no topic's
    else:
        validate_full_topic_name(expand_topic_name(topic, "node", "/space"))


@given(LETTERS)
def test_namespaces_that_pass_are_those_that_rcl_takes(text: str) -> None:
    try:
        namespace = checked_namespace("--namespace", text)
    except VLJepaError:
        with pytest.raises(Exception):  # noqa: B017 - rclpy's have no common base
            validate_namespace("/" + "/".join(part for part in text.split("/") if part))
    else:
        validate_namespace(namespace or "/")


@pytest.mark.parametrize(
    ("name", "example"), [("1st", "camera_1st"), ("a b", "a_b"), ("é", "camera"), ("", "camera")]
)
def test_a_camera_gets_an_example_that_passes(name: str, example: str) -> None:
    with pytest.raises(VLJepaError, match=rf"^Parameter 'cameras': .*begin with a letter, e\.g\. "
                                          rf"{example}\.$"):  # fmt: skip
        check_camera("Parameter 'cameras'", name)
    check_camera("", example)


def test_the_longest_names_fit_together() -> None:
    """Namespace, topic and what image transport adds, as long as they may be."""
    topic, namespace = "t" * LONGEST, "/" + "n" * (LONGEST - 1)
    check_topic("It", topic)
    assert checked_namespace("It", namespace) == namespace
    with pytest.raises(VLJepaError, match="at most 120"):
        check_topic("It", topic + "t")
    with pytest.raises(VLJepaError, match="at most 120"):
        checked_namespace("It", namespace + "n")
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain(), args=[])
    node = rclpy.create_node("node", context=context, namespace=namespace)
    try:
        from sensor_msgs.msg import Image

        assert node.create_publisher(Image, topic, 1).topic_name == f"{namespace}/{topic}"
    finally:
        node.destroy_node()
        rclpy.shutdown(context=context)
