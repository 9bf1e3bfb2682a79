"""The layers: imports point down only, and the lower ones need neither ROS nor torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vljepa_ros

PACKAGE = Path(vljepa_ros.__file__ or "").parent

# What a room may import, itself, `errors` and `stamps` aside.
INTERFACES = {"msg", "srv", "action"}
EVALUATION = {"tabletop", "recordings", "perception", "memory", "bundle", "inference"}
MAY_IMPORT = {
    "bundle": set(),
    "memory": set(),
    "client": INTERFACES,
    "inference": {"bundle"},
    "perception": {"bundle", "inference"},
    "model": {"bundle", "inference"},
    "recordings": {"inference", "perception", "memory"},
    "ros": {"bundle", "inference", *INTERFACES},
    "nodes": {"ros", "bundle", "inference", "perception", "memory", "recordings", *INTERFACES},
    "web": {"ros", "client", *INTERFACES},
    "tabletop": {"inference"},
    "evaluation": EVALUATION,
    "training": {*EVALUATION, "evaluation", "model"},
}
ROS_FREE = (
    "bundle", "inference", "perception", "recordings", "memory", "model", "tabletop", "evaluation",
    "training",
)  # fmt: skip

BLOCKER = """
import importlib, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

sys.meta_path.insert(0, Blocker())
for module in {modules!r}:
    importlib.import_module(module)
"""


def modules(part: str) -> list[str]:
    files = sorted((PACKAGE / part).rglob("*.py"))
    return [
        ".".join(("vljepa_ros", *f.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
            ".__init__"
        )
        for f in files
        if f.stem != "__main__"
    ]


def import_without(blocked: tuple[str, ...], names: list[str]) -> subprocess.CompletedProcess[str]:
    """Import modules in a fresh process in which the blocked packages do not exist."""
    code = BLOCKER.format(blocked=blocked, modules=names)
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{code}"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def present(*parts: str) -> list[str]:
    return [part for part in parts if (PACKAGE / part).is_dir()]


ROS = ("rclpy", "rosidl_runtime_py")
TORCH = ("torch", "transformers")


@pytest.mark.parametrize(
    "part", present("bundle", "inference", "perception", "recordings", "memory")
)
def test_the_lower_layers_import_without_ros_and_without_torch(part: str) -> None:
    done = import_without(ROS + TORCH, modules(part))
    assert done.returncode == 0, done.stderr


def test_model_and_training_import_without_ros() -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install vljepa_ros[train]")
    done = import_without(
        ROS,
        [
            m
            for part in present("model", "tabletop", "evaluation", "training")
            for m in modules(part)
        ],
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not present("cli"), reason="this tree has no command")
def test_the_command_imports_without_ros_and_without_torch() -> None:
    done = import_without(ROS + TORCH, ["vljepa_ros.cli"])
    assert done.returncode == 0, done.stderr


def test_the_block_blocks() -> None:
    """Else the tests above would pass whatever is imported."""
    done = import_without(("wave",), ["wave"])
    assert done.returncode != 0 and "wave is blocked" in done.stderr


def imported_parts(file: Path) -> set[str]:
    """The parts of the package that a file imports, at any depth."""
    parts = set()
    own = ("vljepa_ros", *file.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(own[: len(own) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, (base, node.module)))
            names = [f"{base}.{alias.name}" for alias in node.names]
        for name in names:
            top, *rest = name.split(".")
            if top == "vljepa_ros" and rest:
                parts.add(rest[0])
    return parts


@pytest.mark.parametrize("part", present(*MAY_IMPORT))
def test_imports_point_down(part: str) -> None:
    wrong = {
        f"{file.relative_to(PACKAGE)} imports {found}"
        for file in (PACKAGE / part).rglob("*.py")
        for found in imported_parts(file) - MAY_IMPORT[part] - {part, "errors", "stamps"}
        if (PACKAGE / found).exists() or found in MAY_IMPORT
    }
    assert not wrong


@pytest.mark.parametrize("part", present(*ROS_FREE))
def test_ros_is_imported_by_nodes_and_client_alone(part: str) -> None:
    for file in (PACKAGE / part).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not any(a.name.split(".")[0] == "rclpy" for a in node.names), file
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] != "rclpy", file
