"""The rooms: no circle of files, none too full, and the lower ones need neither ROS nor torch."""

from __future__ import annotations

import ast
import subprocess
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from blocked import run_without

import vljepa_ros

PACKAGE = Path(vljepa_ros.__file__ or "").parent


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
    code = "import importlib\n" + "".join(f"importlib.import_module({n!r})\n" for n in names)
    return run_without(blocked, code)


def present(*parts: str) -> list[str]:
    return [part for part in parts if (PACKAGE / part).is_dir()]


ROS = ("rclpy", "rosidl_runtime_py")
TORCH = ("torch", "transformers")


@pytest.mark.parametrize(
    "part", present("bundle", "inference", "perception", "recordings", "memory", "words")
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


def test_only_what_simulates_needs_the_simulator() -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install vljepa_ros[train]")
    found = [m for part in ("tabletop", "evaluation", "training") for m in modules(part)]
    done = import_without(("mujoco",), [m for m in found if ".tabletop.sim" not in m])
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not present("cli"), reason="this tree has no command")
def test_the_command_imports_without_ros_and_without_torch() -> None:
    done = import_without(ROS + TORCH, ["vljepa_ros.cli"])
    assert done.returncode == 0, done.stderr


def test_the_block_blocks() -> None:
    """Else the tests above would pass whatever is imported."""
    done = import_without(("wave",), ["wave"])
    assert done.returncode != 0 and "wave is blocked" in done.stderr


def imported_modules(file: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the package that a file imports, at any depth, type checking included."""
    found = set()
    own = ("vljepa_ros", *file.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(own[: len(own) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, (base, node.module)))
            for alias in node.names:
                name = f"{base}.{alias.name}"
                found.add(name if name in known else base)
    return found & known.keys()


def graph_of(files: dict[str, Path]) -> dict[str, set[str]]:
    return {name: imported_modules(file, files) - {name} for name, file in files.items()}


def test_no_circle_of_files() -> None:
    """What a room may import is for import-linter to say (pyproject.toml)."""
    files = {
        ".".join(("vljepa_ros", *f.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): f
        for f in PACKAGE.rglob("*.py")
        if f.relative_to(PACKAGE).parts[0] not in ("msg", "srv", "action")
    }
    graph = graph_of(files)
    assert graph["vljepa_ros.cli.app"] and len(graph) > 200
    TopologicalSorter(graph).prepare()  # CycleError names them


def test_a_circle_would_be_found() -> None:
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"c"}, "c": {"a"}}).prepare()


def test_rooms_and_files_stay_small() -> None:
    lines: Counter[str] = Counter()
    modules_in: Counter[Path] = Counter()
    for file in PACKAGE.rglob("*.py"):
        room, *rest = file.relative_to(PACKAGE).parts
        if room in ("msg", "srv", "action"):
            continue
        count = len(file.read_text(encoding="utf-8").splitlines())
        assert count < 500, f"{file} has {count} lines"
        lines[room if rest else "top"] += count
        modules_in[file.parent] += 1
    assert {str(folder): n for folder, n in modules_in.items() if n > 15} == {}
    total = sum(lines.values())
    assert {room: n / total for room, n in lines.items() if n > 0.13 * total} == {}
