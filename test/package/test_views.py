"""The layouts for Foxglove and RViz show topics, types and fields that there are.

Which those are say docs/ros-api.md, which a test holds against the running nodes, and `msg/`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
LAYOUT = json.loads((ROOT / "foxglove" / "vljepa.json").read_text(encoding="utf-8"))
RVIZ = yaml.safe_load((ROOT / "config" / "perception.rviz").read_text(encoding="utf-8"))
CAMERA = "camera"  # as the only camera is named where nobody says otherwise
IMAGES = {"sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"}
SHOWS = {
    "rviz_default_plugins/Image": "sensor_msgs/msg/Image",
    "rviz_default_plugins/Marker": "visualization_msgs/msg/Marker",
}
PANELS = {"Image", "Plot", "StateTransitions", "RawMessages", "DiagnosticSummary"}
NUMBERS = r"u?int(8|16|32|64)|float(32|64)"


def topics() -> dict[str, tuple[str, str]]:
    """Type and QoS of what the nodes publish, by topic in the root namespace."""
    found: dict[str, tuple[str, str]] = {}
    published = False
    for line in (ROOT / "docs" / "ros-api.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if not cells or cells[0] == "publishes":
            published = bool(cells)
        elif published and (name := re.fullmatch(r"`(.+)`", cells[0])) is not None:
            topic = name[1].replace("<camera>", CAMERA)
            found[topic if topic[0] in "/~" else f"/{topic}"] = cells[1], cells[2]
    return found


TOPICS = topics()


def fields(kind: str) -> dict[str, str]:
    """Type by name of the fields of a message of this package."""
    text = (ROOT / "msg" / f"{kind.removeprefix('vljepa_ros/msg/')}.msg").read_text("utf-8")
    found = re.findall(r"^([\w/]+(?:\[\])?) (\w+)", text, re.M)
    return {name: type_ for type_, name in found}


def leaves(node: Any) -> Iterator[str]:
    """The panels of a layout, in their order; what is no split is a panel."""
    if isinstance(node, str):
        yield node
        return
    assert set(node) == {"direction", "first", "second", "splitPercentage"}
    assert node["direction"] in ("row", "column") and 0 < node["splitPercentage"] < 100
    yield from leaves(node["first"])
    yield from leaves(node["second"])


def panels(kind: str) -> list[dict[str, Any]]:
    """The settings of the panels of a kind; at least one."""
    found = [one for name, one in LAYOUT["configById"].items() if name.split("!")[0] == kind]
    assert found
    return found


def test_the_layout_has_foxglove_s_form() -> None:
    parts = {"configById", "globalVariables", "userNodes", "playbackConfig", "layout"}
    assert set(LAYOUT) == parts
    shown = list(leaves(LAYOUT["layout"]))
    assert sorted(shown) == sorted(LAYOUT["configById"])  # each once
    assert {name.split("!")[0] for name in shown} == PANELS


def test_the_layout_s_pictures_are_topics_of_images() -> None:
    shown = [one["imageMode"]["imageTopic"] for one in panels("Image")]
    assert {TOPICS[topic][0] for topic in shown} == IMAGES  # live, and what is exported


@pytest.mark.parametrize("kind", ["Plot", "StateTransitions"])
def test_the_layout_s_series_are_fields_of_messages(kind: str) -> None:
    for path in (path for one in panels(kind) for path in one["paths"]):
        match = re.fullmatch(r"(/\w+)\.(\w+)(\[\d\])?", path["value"])
        assert match is not None, path
        there = fields(TOPICS[match[1]][0])
        type_ = there[match[2]]
        assert type_.endswith("[]") == bool(match[3])
        assert there["header"] == "std_msgs/Header" and path["timestampMethod"] == "headerStamp"
        states = kind == "StateTransitions" and type_ == "string"
        assert states or re.fullmatch(NUMBERS, type_.removesuffix("[]")), path


def test_the_layout_s_other_panels_are_topics() -> None:
    for one in panels("RawMessages"):
        assert one["topicPath"] in TOPICS
    for one in panels("DiagnosticSummary"):
        assert TOPICS[one["topicToRender"]][0] == "diagnostic_msgs/msg/DiagnosticArray"


def test_the_displays_of_rviz_take_topics_as_they_are_published() -> None:
    manager = RVIZ["Visualization Manager"]
    assert manager["Global Options"]["Fixed Frame"] == CAMERA
    for display in manager["Displays"]:
        topic = display["Topic"]
        type_, qos = TOPICS[topic["Value"]]
        assert type_ == SHOWS[display["Class"]]
        assert topic["Reliability Policy"].lower() in (qos.split(",")[0], "best effort")
        assert topic["Durability Policy"] == "Volatile" and topic["History Policy"] == "Keep Last"
    assert manager["Displays"]
