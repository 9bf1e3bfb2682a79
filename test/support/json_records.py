"""What a command has printed with --json, held to the table of vljepa_ros/cli/records.py."""

from __future__ import annotations

import math
from typing import Any

from vljepa_ros.cli.records import FIELDS, RECORDS, ordered
from vljepa_ros.stamps import iso

CHECKS = {
    "text": lambda value: isinstance(value, str),
    "flag": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int),
    "number": lambda value: isinstance(value, (int, float)) and math.isfinite(value),
    "list": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}


def check_record(kind: str, found: dict[str, Any]) -> None:
    """Whether an object that a command has printed is a record of that kind."""
    names = list[str]()
    for name in ordered(RECORDS[kind]):
        names += [name, f"{name}_ns"] if FIELDS[name].kind == "time" else [name]
    assert list(found) == names, kind
    for name, value in found.items():
        if FIELDS.get(name, FIELDS["text"]).kind == "time":
            stamp_ns = found[f"{name}_ns"]
            assert value == (None if stamp_ns is None else iso(stamp_ns)), name
        elif name.endswith("_ns"):
            assert value is None or isinstance(value, int), name
        else:
            assert value is None or CHECKS[FIELDS[name].kind](value), (name, value)
    assert found.get("type", kind.partition(": ")[2]) == kind.partition(": ")[2]
