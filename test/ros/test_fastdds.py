"""What Fast DDS is told, and that it understands it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")

from graph import domain

from vljepa_ros.ros import process

NAMES = (process.FASTDDS_VARIABLE, *process.FASTDDS_PROFILES)
NODE = (
    "import sys; from vljepa_ros.ros.process import set_fastdds; set_fastdds()\n"
    "import rclpy; rclpy.init(args=[]); rclpy.create_node('alone').destroy_node(); rclpy.shutdown()"
)


@pytest.fixture(autouse=True)
def _nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_both_settings_where_the_user_has_none() -> None:
    assert set(process.fastdds_settings()) == set(NAMES[:2])


@pytest.mark.parametrize(("name", "left"), list(zip(NAMES, (NAMES[1], NAMES[0], NAMES[0]))))
def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch, name: str, left: str) -> None:
    monkeypatch.setenv(name, "mine")
    assert set(process.fastdds_settings()) == {left}


def test_fast_dds_takes_the_file() -> None:
    assert _said() == ""


def test_fast_dds_reads_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this, the test before would pass with any file."""
    path = Path(process.fastdds_settings()[process.FASTDDS_PROFILES[0]])
    wrong = tmp_path / "wrong.xml"
    wrong.write_text(path.read_text().replace("propertiesPolicy", "properties_policy"))
    for name in process.FASTDDS_PROFILES:  # Jazzy's looks at the old one alone
        monkeypatch.setenv(name, str(wrong))
    assert "properties_policy" in _said()


def _said() -> str:
    """What a process with one node says, all in all."""
    environment = {**os.environ, "ROS_DOMAIN_ID": str(domain())}
    environment.setdefault("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp")
    done = subprocess.run(
        [sys.executable, "-c", NODE], env=environment, capture_output=True, text=True,
        timeout=100, check=True,
    )  # fmt: skip
    return done.stdout + done.stderr
