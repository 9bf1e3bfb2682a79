"""docs/architecture.md and CONTRIBUTING.md name files that are there, and the rule of imports."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "vljepa_ros"
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
ROOMS = dict(re.findall(r"^\| `(\w+)` \| .+? \| ([\w, ]+) \|$", PAGE, re.M))


def test_every_file_that_is_named_is_there() -> None:
    contributing = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    named = set(re.findall(r"`([\w/]+\.py)`", PAGE + contributing))
    named = {name for name in named if "NAME" not in name}
    assert len(named) > 40
    for name in named:
        inner = (
            "inference/trt",
            "tabletop/sim",
            "recordings",
            "recordings/lerobot",
            "recordings/indexing",
        )
        folders = (ROOT, PACKAGE, *(PACKAGE / folder for folder in inner))
        assert any((folder / name).is_file() for folder in folders), name


def test_every_room_is_there() -> None:
    folders = {f.parent.name for f in PACKAGE.glob("*/__init__.py")} - {"msg", "srv", "action"}
    assert set(ROOMS) == folders


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no tomllib")
def test_the_table_is_what_import_linter_holds() -> None:
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    held = {}
    for contract in settings["tool"]["importlinter"]["contracts"]:
        (source, *others) = [n.removeprefix("vljepa_ros.") for n in contract["source_modules"]]
        forbidden = {n.removeprefix("vljepa_ros.") for n in contract["forbidden_modules"]}
        if not others and forbidden & set(ROOMS):
            held[source] = set(ROOMS) - forbidden - {source}
    said = {room: allowed(words) - {room} for room, words in ROOMS.items() if room != "cli"}
    assert held == said


def allowed(words: str) -> set[str]:
    """The rooms that a cell of the table allows."""
    if words.startswith("all but "):
        return set(ROOMS) - set(re.split(r", | and ", words.removeprefix("all but ")))
    return set() if words in ("no other room", "the ROS interfaces") else set(words.split(", "))
