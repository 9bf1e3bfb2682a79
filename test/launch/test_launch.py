"""Runs the launch tests with launch_testing's own runner, where that is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")
pytest.importorskip(
    "launch_testing",
    reason="launch_testing is not installed (it comes with a ROS 2 distribution, not from the "
    "Python index): the launch file is not tested here",
)
pytest.importorskip("launch_ros", reason="launch_ros is not installed")

from bundles import make_bundle
from graph import domain, noise

HERE = Path(__file__).resolve().parent


def test_the_launch_file(tmp_path: Path) -> None:
    import cv2

    folder = tmp_path / "video"
    folder.mkdir()
    for k in range(100):
        cv2.imwrite(str(folder / f"{k}.png"), noise(k // 10)[..., ::-1])
    params = tmp_path / "params.yaml"
    params.write_text("/**/web:\n  ros__parameters: {port: 0}\n")
    environment = {
        **os.environ,
        "TEST_PARAMS": str(params),
        "VLJEPA_MEMORY": str(tmp_path / "memory"),
        "TEST_BUNDLE": str(make_bundle(tmp_path / "tiny")),
        "TEST_VIDEO": str(folder),
        "ROS_DOMAIN_ID": str(domain()),
        "ROS_LOG_DIR": str(tmp_path / "log"),
    }
    command = [sys.executable, "-m", "launch_testing.launch_test"]
    run = subprocess.run(
        [*command, str(HERE / "launch_perception.py")],
        env=environment, capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-6000:]


def test_every_argument_is_described() -> None:
    from launch.launch_description_sources import PythonLaunchDescriptionSource

    from launch import LaunchContext

    path = HERE.parents[1] / "launch" / "perception.launch.py"
    source = PythonLaunchDescriptionSource(str(path))
    description = source.get_launch_description(LaunchContext())
    arguments = {a.name: a.description for a in description.get_launch_arguments()}
    assert set(arguments) == {
        "params_file", "namespace", "autostart", "use_sim_time", "bundle", "backend", "cameras",
        "video", "memory", "web", "web_port", "log_level", "use_respawn",
    }  # fmt: skip
    assert all(text.endswith(".") for text in arguments.values())
