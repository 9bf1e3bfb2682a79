"""`pip install .` on a workstation without ROS: the command, the ROS-free layers, the bundles."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = "pyproject.toml setup.py MANIFEST.in package.xml CHANGELOG.rst LICENSE README.md".split()
FOLDERS = "vljepa_ros scripts config msg".split()


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package is installed, from a copy of the sources: pip builds inside them."""
    folder = tmp_path_factory.mktemp("pip")
    source = folder / "source"
    source.mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, source / name)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    (source / "engines" / "stand-in").mkdir(parents=True)
    (source / "engines" / "stand-in" / "bundle.yaml").write_text("schema: 1\n")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--quiet",
         "--no-index", "--ignore-installed", "--no-warn-script-location",
         "--prefix", folder / "prefix", source],
        check=True, timeout=100,
    )  # fmt: skip
    return folder / "prefix"


def python_without_ros(prefix: Path, code: str) -> str:
    packages = next((prefix / "lib").glob("python3*/site-packages"))
    return subprocess.check_output(
        [sys.executable, "-c", f"import sys; sys.modules['rclpy'] = None\n{code}"],
        env={**os.environ, "PYTHONPATH": str(packages)},
        cwd=prefix,
        text=True,
    )


def test_the_command_is_installed(prefix: Path) -> None:
    assert (prefix / "bin" / "vljepa").exists()
    code = "from vljepa_ros.cli import main; sys.argv[1:] = ['--version']; main()"
    assert python_without_ros(prefix, code).startswith("vljepa_ros ")
    version = ElementTree.parse(ROOT / "package.xml").findtext("version")
    assert python_without_ros(prefix, code).strip() == f"vljepa_ros {version}"


def test_every_ros_free_layer_is_installed(prefix: Path) -> None:
    layers = (
        "inference.runtime perception.perceiver recordings.video model.networks training cli.app"
    )
    imports = ", ".join(f"vljepa_ros.{layer}" for layer in layers.split())
    where = python_without_ros(prefix, f"import {imports}; print(vljepa_ros.inference.__file__)")
    assert where.startswith(str(prefix))


def test_the_page_and_the_messages_are_installed(prefix: Path) -> None:
    """The web node serves the one; vljepa index --export writes the other into the file."""
    packages = next((prefix / "lib").glob("python3*/site-packages"))
    assert (packages / "vljepa_ros" / "web" / "static" / "index.html").exists()
    assert (prefix / "share" / "vljepa_ros" / "msg" / "SemanticEmbedding.msg").exists()


def test_bundles_lie_where_they_are_looked_for(prefix: Path) -> None:
    code = (
        f"sys.prefix = {str(prefix)!r}\n"
        "from vljepa_ros.bundle.locate import find_bundle; print(find_bundle('stand-in'))"
    )
    assert Path(python_without_ros(prefix, code).strip()).is_relative_to(prefix / "share")
