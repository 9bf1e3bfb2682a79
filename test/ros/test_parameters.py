"""config/perception.yaml is the truth: it lists every parameter of every node with its default."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")

import itertools

import rclpy
from graph import domain
from rclpy.parameter import Parameter

from vljepa_ros.nodes.decoder import DecoderNode
from vljepa_ros.nodes.memory.node import MemoryNode
from vljepa_ros.nodes.perception.node import PerceptionNode
from vljepa_ros.nodes.video import VideoNode
from vljepa_ros.ros.parameters import ParameterError, Spec, unknown
from vljepa_ros.web.node import WebNode

FILE = Path(__file__).resolve().parents[2] / "config" / "perception.yaml"
NODES = {
    "perception": PerceptionNode, "decoder": DecoderNode, "memory": MemoryNode,
    "camera": VideoNode, "web": WebNode,
}  # fmt: skip
OF_ROS = ("use_sim_time", "start_type_description_service")


@pytest.fixture(scope="module")
def context() -> Iterator[rclpy.Context]:
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain(), args=[])
    yield context
    rclpy.shutdown(context=context)


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


@pytest.mark.parametrize("name", list(NODES))
def test_the_file_lists_what_is_declared(name: str, context: rclpy.Context) -> None:
    file = yaml.safe_load(FILE.read_text())
    assert set(file) == {f"/**/{node}" for node in NODES}
    listed = flat(file[f"/**/{name}"]["ros__parameters"])
    node = NODES[name](context=context)
    try:
        assert node.get_name() == name
        declared = {
            key: parameter.value
            for key, parameter in node.get_parameters_by_prefix("").items()
            if key not in OF_ROS
        }
        assert listed == declared
        assert {k: type(v) for k, v in listed.items()} == {k: type(v) for k, v in declared.items()}
        for key in declared:
            described = node.describe_parameter(key)
            assert described.description.split()
            numeric = isinstance(declared[key], (int, float)) and not isinstance(
                declared[key], bool
            )
            assert bool(described.floating_point_range or described.integer_range) == numeric
            assert described.read_only == ("Read-only" in described.description)
    finally:
        node.destroy_node()


def test_every_line_of_the_file_has_a_comment() -> None:
    lines = FILE.read_text().splitlines()
    for above, line in itertools.pairwise(lines):
        if ":" in line and not line.lstrip().startswith(("#", "ros__parameters", "/**")):
            assert above.lstrip().startswith("#"), line


def test_the_cameras_have_parameters_of_their_own(context: rclpy.Context) -> None:
    given = [
        Parameter("cameras", value=["front", "rear"]),
        Parameter("rear.rate", value=2),  # a whole number will do
        Parameter("autostart", value=False),
    ]
    node = PerceptionNode(context=context, parameter_overrides=given)
    try:
        assert node.get_parameter("rear.rate").value == 2.0
        assert node.get_parameter("front.rate").value == 0.0
        assert not node.has_parameter("camera.rate")
    finally:
        node.destroy_node()


def test_what_is_not_declared_is_named_but_for_spare_defaults(context: rclpy.Context) -> None:
    given = [
        Parameter("cameras", value=["front"]),
        Parameter("camera.topic", value=""),  # as in the shipped file
        Parameter("camera.rate", value=2.0),
        Parameter("gate_treshold", value=2.0),
        Parameter("autostart", value=False),
    ]
    node = PerceptionNode(context=context, parameter_overrides=given)
    try:
        rate, gate = unknown(node, PerceptionNode.spare)
        assert "'camera.rate' does not exist" in rate
        assert "did you mean 'gate_threshold'?" in gate
    finally:
        node.destroy_node()


@pytest.mark.parametrize(
    ("default", "value", "words"),
    [
        (1.0, "x", "a number, not 'x'"),
        (1.0, True, "a number, not True"),
        (1.0, 11.0, "in 0..10, not 11"),
        (1.0, float("nan"), "in 0..10, not nan"),
        (1, 1.5, "a whole number, not 1.5"),
        (True, 1, "true or false, not 1"),
        ("a", 1, "a text, not 1"),
        (["a"], "a", "a list of texts"),
        (["a"], [1], "a list of texts"),
        ("a", 7, "a text, not 7; put quotes around it."),  # bundle: 007
        (["a"], "b", "a list of texts; write [b] for one."),
        (["a"], [1, 2], "a list of texts, not [1, 2]; put quotes around each."),
        (["a"], [], "a list of texts with at least one, e.g. ['a']."),
        (["a"], None, "a list of texts with at least one, e.g. ['a']."),  # [] in a file
    ],
)
def test_a_wrong_value_is_one_sentence(default: Any, value: Any, words: str) -> None:
    spec = Spec("it", default, "It.", low=0, high=10)
    with pytest.raises(ParameterError, match="Parameter 'it' must be") as caught:
        spec.checked(value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"camera.topic": "/192.168.0.155/image_raw"},
         "Parameter 'camera.topic': '/192.168.0.155/image_raw' is not the name of a topic: write "
         "letters, digits and underscores between slashes, and begin no part with a digit, e.g. "
         "/front/image_raw."),
        ({"camera.topic": "a b"},
         "Parameter 'camera.topic': 'a b' is not the name of a topic: write letters, digits and "
         "underscores between slashes, and begin no part with a digit, e.g. /front/image_raw."),
        ({"cameras": ["1st"]},
         "Parameter 'cameras': '1st' is not a name for a camera: write letters, digits and "
         "underscores, and begin with a letter, e.g. camera_1st."),
        ({"cameras": None},
         "Parameter 'cameras' must be a list of texts with at least one, e.g. ['camera']."),
        ({"bundle": 7}, "Parameter 'bundle' must be a text, not 7; put quotes around it."),
        ({"bundle": "a" * 300},
         "[Errno 36] File name too long: '" + "a" * 300 + "/bundle.yaml'"),
    ],
)  # fmt: skip
def test_a_wrong_name_is_one_sentence(
    given: dict[str, Any], sentence: str, context: rclpy.Context
) -> None:
    overrides = [Parameter(key, value=value) for key, value in given.items()]
    overrides.append(Parameter("autostart", value=False))
    node = PerceptionNode(context=context, parameter_overrides=overrides)
    try:
        node.trigger_configure()
        assert node.failure == sentence
        assert node.state == "unconfigured"
    finally:
        node.destroy_node()


def test_a_camera_that_is_played_has_a_name(context: rclpy.Context) -> None:
    given = [Parameter("camera", value="192.168.0.155")]
    node = VideoNode(context=context, parameter_overrides=given)
    try:
        node._play()
        assert node.exit_code == 1 and "e.g. camera_192_168_0_155." in node._problems[0]
    finally:
        node.destroy_node()


def test_a_live_parameter_takes_what_a_file_would(context: rclpy.Context) -> None:
    """`ros2 param set /perception rate 2` and `labels []`, which rclpy refuses."""
    node = PerceptionNode(
        context=context, parameter_overrides=[Parameter("autostart", value=False)]
    )

    def set_to(name: str, value: Any) -> str:
        result = node.set_parameters_atomically([Parameter(name, value=value)])
        return "" if result.successful else result.reason

    try:
        assert set_to("rate", 2) == "" and node.get_parameter("rate").value == 2.0
        assert set_to("labels", ["a"]) == "" and node.get_parameter("labels").value == ["a"]
        assert set_to("labels", []) == "" and node.get_parameter("labels").value == [""]
        assert set_to("rate", "x") == "Parameter 'rate' must be a number, not 'x'."
        assert set_to("hysteresis", 3) == "Parameter 'hysteresis' must be in 0..1, not 3."
        assert set_to("bundle", "b") == (
            "Parameter 'bundle' is read-only while the node runs; start it with bundle set."
        )
        assert set_to("labels", "a") == (
            "Parameter 'labels' must be a list of texts; write [a] for one."
        )
    finally:
        node.destroy_node()
