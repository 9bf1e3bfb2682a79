"""Parameter files, held to the parameters that the nodes declare."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

TABLES = Path(__file__).resolve().parents[2] / "scripts" / "api_tables.py"


def check_parameters(text: str, where: str) -> dict[str, dict[str, Any]]:
    """Values by node and parameter; each is one that there is, and may have that value."""
    found: dict[str, dict[str, Any]] = {}
    for name, content in yaml.safe_load(text).items():
        node = name.rsplit("/", 1)[-1]
        known, found[node] = specs(node), dict(flat(content["ros__parameters"]))
        for parameter, value in found[node].items():
            assert parameter in known, f"{where}: {name} has no {parameter}"
            known[parameter].checked(value)
    return found


def specs(node: str) -> dict[str, Any]:
    """The parameters of a node, of its camera `front` and `rear`, too."""
    pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")
    spec = importlib.util.spec_from_file_location("tables", TABLES)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    named = {one.name: one for one in module.SPECS[node]}
    for name in [name for name in named if name.startswith("<camera>.")]:
        for camera in ("front", "rear"):
            named[name.replace("<camera>", camera)] = named[name]
    return named


def flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names, with dots, and values of a tree of parameters."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
