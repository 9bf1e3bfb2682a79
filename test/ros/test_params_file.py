"""Parameter files: what ROS would take and not use is refused, as it is by the launch file."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not there")

import rclpy
from graph import domain

from vljepa_ros.errors import VLJepaError
from vljepa_ros.ros.params_file import check_params

LAUNCH = Path(__file__).resolve().parents[2] / "launch" / "perception.launch.py"
BODY = "\n  ros__parameters: {rate: 2.0}\n"
KEYS = (
    "perception", "/perception", "/**/perception", "/**", "/*", "/*/perception", "**/perception",
    "/robot/perception", "robot/perception", "/a/**/perception", "/robot/**", "/robot/*",
)  # fmt: skip


@pytest.fixture(scope="module")
def domain_id() -> int:
    return domain()


@pytest.mark.parametrize("namespace", ["", "/robot", "/a/b"])
@pytest.mark.parametrize("key", KEYS)
def test_what_passes_is_what_ros_gives_to_the_node(
    key: str, namespace: str, tmp_path: Path, domain_id: int
) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(f"'{key}':{BODY}")
    context = rclpy.Context()
    arguments = ["--ros-args", "--params-file", str(file), "-r", f"__ns:={namespace or '/'}"]
    rclpy.init(context=context, domain_id=domain_id, args=arguments)
    try:
        node = rclpy.create_node("perception", context=context)
        given = bool(node._parameter_overrides)
        node.destroy_node()
    finally:
        rclpy.shutdown(context=context)
    if given:
        check_params(file, namespace)
    else:
        with pytest.raises(VLJepaError, match=r"write (e\.g\. )?/\*\*/perception"):
            check_params(file, namespace)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"perception:{BODY}", r"'perception' is not the node /robot/perception that is started; "
         r"write /\*\*/perception, which is right in every namespace\.$"),
        (f"percepton:{BODY}", r"has parameters for percepton and for no node of this package; "
         r"write e\.g\. /\*\*/perception\.$"),
        (f"/**/decoder:{BODY}perception:{BODY}", "'perception' is not the node"),
        (f"other:\n  perception:{BODY.replace('  ', '    ')}", "'other/perception' is not"),
        ("rate: 2.0\n", "is not a parameter file"),
        ("- 1\n", "is not a parameter file"),
        ("a: [", "is not valid YAML"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_one_sentence(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(text)
    with pytest.raises(VLJepaError, match=words):
        check_params(file, "/robot")


def test_other_nodes_may_have_parameters_in_it(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(f"/camera/camera:{BODY}/**/memory:{BODY}driver:{BODY}")
    check_params(file, "/robot")
    with pytest.raises(VLJepaError, match="'/camera/camera' is not the node /robot/camera"):
        check_params(file, "/robot", ["perception", "camera"])


@pytest.fixture
def launch_file(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The launch file, with stand-ins for `launch`, which no Python index has."""
    for name in ("launch", "launch.actions", "launch.substitutions", "launch_ros",
                 "launch_ros.actions", "launch_ros.substitutions"):  # fmt: skip
        monkeypatch.setitem(sys.modules, name, MagicMock())

    class Configuration:
        def __init__(self, name: str) -> None:
            self.name = name

        def perform(self, context: dict[str, str]) -> str:
            return context[self.name]

    sys.modules["launch.substitutions"].LaunchConfiguration = Configuration  # type: ignore[attr-defined]
    spec = importlib.util.spec_from_file_location("perception_launch", LAUNCH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_launch_file_refuses_them_too(launch_file: Any, tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    given = {name: default or "" for name, (default, _) in launch_file.ARGUMENTS.items()}
    given |= {"params_file": str(file), "namespace": "robot/", "memory": "true", "video": "0"}
    with pytest.raises(VLJepaError, match=f"There is no parameter file {file}"):
        launch_file._nodes(given)
    file.write_text(f"perception:{BODY}")
    with pytest.raises(VLJepaError, match="is not the node /robot/perception"):
        launch_file._nodes(given)
    file.write_text(f"/**/perception:{BODY}/**/memory:{BODY}")
    assert len(launch_file._nodes(given)) == 4
    with pytest.raises(VLJepaError, match="Launch argument 'namespace': '1a' is no namespace"):
        launch_file._nodes({**given, "namespace": "1a"})
