"""Nodes as programs: their usage, and what they do not know."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tempfile

import pytest

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")

from vljepa_ros.ros.arguments import WIDTH, check_arguments, usage
from vljepa_ros.ros.parameters import Spec

NODES = {
    "perception_node": ("nodes.perception.node", "PerceptionNode"),
    "decoder_node": ("nodes.decoder", "DecoderNode"),
    "memory_node": ("nodes.memory.node", "MemoryNode"),
    "video_node": ("nodes.video", "VideoNode"),
    "web_node": ("web.node", "WebNode"),
}
SPECS = [Spec("speed", 0.5, "Metres per second. " * 9), Spec("names", ["a", "b"], "Some names.")]


@pytest.mark.parametrize("name", NODES)
def test_help_names_every_parameter_and_starts_nothing(name: str) -> None:
    module, kind = NODES[name]
    specs = getattr(importlib.import_module(f"vljepa_ros.{module}"), kind).specs
    shown = subprocess.run(
        [sys.executable, "-m", f"vljepa_ros.nodes.{name}", "--help"],
        env=os.environ, cwd=tempfile.gettempdir(), capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert (shown.returncode, shown.stderr) == (0, "")
    assert re.findall(r"^  ([\w.<>]+):=", shown.stdout, re.M) == [spec.name for spec in specs]


@pytest.mark.parametrize(
    "args", [[], ["--ros-args"], ["--ros-args", "-p", "a:=1", "--", "--ros-args", "-r", "x:=y"]]
)
def test_arguments_of_ros_pass(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    check_arguments("About.", SPECS, args)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("args", "word"),
    [(["cameras:=front"], "cameras:=front"), (["--ros-args", "-p", "a:=1", "--", "-x"], "-x")],
)
def test_others_are_refused(args: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        check_arguments("About.", SPECS, args)
    assert ended.value.code == 2
    out, error = capsys.readouterr()
    assert out == "" and f"unknown argument '{word}'" in error and "--help" in error


def test_the_usage_fits_a_terminal_and_shows_defaults_as_a_shell_takes_them() -> None:
    text = usage("patrol.py", """It drives.

        Far.
        """, SPECS)  # fmt: skip
    assert max(len(line) for line in text.splitlines()) <= WIDTH
    assert "\nIt drives.\n\nFar.\n" in text
    assert "  speed:=0.5\n" in text and '  names:="[a, b]"\n' in text
