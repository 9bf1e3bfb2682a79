#!/usr/bin/env python3
"""Writes the parameter tables of docs/ros-api.md from the specs that the nodes declare.

Usage, in a shell with `. scripts/env.sh`: python scripts/api_tables.py

A table stands between `<!-- parameters: NODE -->` and `<!-- end -->`; the rest of the page is
written by hand, and test/package/test_api_page.py holds both against the nodes.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from vljepa_ros.nodes.decoder import DecoderNode
from vljepa_ros.nodes.memory.node import MemoryNode
from vljepa_ros.nodes.perception.node import PerceptionNode
from vljepa_ros.nodes.video import VideoNode
from vljepa_ros.ros.parameters import Spec
from vljepa_ros.web.node import WebNode

PAGE = Path(__file__).resolve().parents[1] / "docs" / "ros-api.md"
SPECS: dict[str, Sequence[Spec]] = {
    "perception": PerceptionNode.specs,
    "decoder": DecoderNode.specs,
    "memory": MemoryNode.specs,
    "camera": VideoNode.specs,
    "web": WebNode.specs,
}
KINDS = {bool: "bool", int: "integer", float: "double", str: "string", list: "string list"}
TABLE = re.compile(r"(<!-- parameters: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(specs: Iterable[Spec]) -> str:
    """The parameters as a Markdown table."""
    rows = ["| parameter | type | default | may be | while running | what |", "|---" * 6 + "|"]
    for spec in specs:
        cells = (
            f"`{spec.name}`",
            KINDS[type(spec.default)],
            _value(spec.default),
            _range(spec),
            "yes" if spec.live else "",
            spec.description.replace("|", "\\|"),
        )
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def filled(text: str) -> str:
    """The page with its tables as they have to be."""
    return TABLE.sub(lambda found: found[1] + table(SPECS[found[2]]) + found[3], text)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(_value(item) for item in value)}]"
    return f'"{value}"' if isinstance(value, str) else f"{value}"


def _range(spec: Spec) -> str:
    if spec.choices:
        return ", ".join(spec.choices)
    if spec.low is None or spec.high is None:
        return ""
    return f"{spec.low:.12g} to {spec.high:.12g}"


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
