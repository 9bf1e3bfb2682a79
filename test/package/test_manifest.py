"""package.xml, CMakeLists.txt, setup.py and the requirement files say the same."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from importlib import import_module
from pathlib import Path

import pytest

import vljepa_ros

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "scripts" / "requirements"
PACKAGE = ElementTree.parse(ROOT / "package.xml").getroot()
CMAKE = (ROOT / "CMakeLists.txt").read_text()


def depends(*kinds: str) -> set[str]:
    return {element.text or "" for kind in kinds for element in PACKAGE.findall(kind)}


def packages(file: Path) -> dict[str, str]:
    """Name in lower case: the whole line, for each package of a requirement file."""
    lines = [line for line in file.read_text().splitlines() if line and line[0] not in "#-"]
    return {re.split(r"[\[<>=~;]", line)[0].lower(): line for line in lines}


def test_one_version() -> None:
    assert PACKAGE.findtext("version") == vljepa_ros.__version__


def test_the_newest_section_of_the_changelog_is_this_version() -> None:
    text = (ROOT / "CHANGELOG.rst").read_text()
    sections = re.findall(r"^(\S+) \((\d{4}-\d\d-\d\d)\)\n(-+)$", text, re.M)
    assert sections[0][0] == vljepa_ros.__version__
    assert [date for _, date, _ in sections] == sorted((d for _, d, _ in sections), reverse=True)
    for version, date, line in sections:
        assert len(line) == len(f"{version} ({date})")


def test_the_maintainers_address_is_in_no_reserved_domain() -> None:
    for maintainer in PACKAGE.findall("maintainer"):
        domain = maintainer.attrib["email"].partition("@")[2]
        assert re.fullmatch(r"([\w-]+\.)+[a-z]+", domain)
        assert domain.rpartition(".")[2] not in ("invalid", "example", "test", "localhost")


def test_cmake_finds_what_the_package_depends_on() -> None:
    found = set(re.findall(r"^find_package\((\w+) REQUIRED\)", CMAKE, re.M))
    assert found == depends("buildtool_depend", "depend")


def test_colcon_tests_rooms_that_are_there() -> None:
    match = re.search(r"foreach\(room (.*)\)", (ROOT / "cmake" / "testing.cmake").read_text())
    assert match is not None
    assert {"bundle", "nodes"} < set(match[1].split())
    assert all((ROOT / "test" / room).is_dir() for room in match[1].split())


def test_the_package_is_an_interface_package_built_by_ament_cmake() -> None:
    assert PACKAGE.findtext("export/build_type") == "ament_cmake"
    assert depends("member_of_group") == {"rosidl_interface_packages"}


@pytest.mark.parametrize("name", ["launch", "launch_ros", "rclpy", "diagnostic_msgs"])
def test_the_nodes_dependencies_are_declared(name: str) -> None:
    assert name in depends("exec_depend", "depend")


def test_every_executable_has_a_main() -> None:
    match = re.search(r"foreach\(node (.*)\)", CMAKE)
    assert match is not None
    for node in match[1].split():
        assert callable(import_module(f"vljepa_ros.nodes.{node}").main)


def test_wheels_are_pinned_and_the_robot_needs_no_torch() -> None:
    pinned = packages(REQUIREMENTS / "constraints.txt")
    assert all("==" in line for line in pinned.values())
    listed = {name for file in REQUIREMENTS.glob("*.txt") for name in packages(file)}
    assert set(pinned) <= listed, "a pin that nothing asks for"
    for name in ("ros", "ros-jazzy"):  # each with its own versions
        assert all("==" in line for line in packages(REQUIREMENTS / f"{name}.txt").values())
    for name in ("robot", "memory", "web", "fleet", "data", "build", "export", "train", "test"):
        assert set(packages(REQUIREMENTS / f"{name}.txt")) <= set(pinned)
    assert "torch" not in packages(REQUIREMENTS / "robot.txt")
    assert pinned["torch"] == "torch==2.13.0"


def test_licence_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert PACKAGE.findtext("license") == "Apache-2.0"
