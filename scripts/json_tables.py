#!/usr/bin/env python3
"""Writes the tables of docs/command-line.md from the records that the commands print.

Usage, in a shell with `. scripts/env.sh`: python scripts/json_tables.py

A table stands between `<!-- json: NAME -->` and `<!-- end -->`; the rest of the page is written by
hand. test/cli/test_json.py holds the page to this, and what the commands print to the same records.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from vljepa_ros.cli.records import FIELDS, KINDS, RECORDS, REPORTS, ordered

PAGE = Path(__file__).resolve().parents[1] / "docs" / "command-line.md"
TABLE = re.compile(r"(<!-- json: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def _records() -> Iterable[tuple[str, ...]]:
    yield "command", "`type`", "names"
    for kind, names in RECORDS.items():
        command, _, what = kind.partition(": ")
        yield f"`{command}`", f"`{what}`" if what else "", _names(ordered(names))


def _reports() -> Iterable[tuple[str, ...]]:
    yield "command", "names"
    for command, names in REPORTS.items():
        yield f"`{command}`", _names(names)


def _fields() -> Iterable[tuple[str, ...]]:
    yield "name", "is", "what"
    for name, field in FIELDS.items():
        yield f"`{name}`", field.kind, field.meaning


def _kinds() -> Iterable[tuple[str, ...]]:
    yield "is", "how it is written"
    yield from KINDS.items()


TABLES: dict[str, Callable[[], Iterable[tuple[str, ...]]]] = {
    "records": _records, "fields": _fields, "kinds": _kinds, "reports": _reports
}  # fmt: skip


def filled(text: str) -> str:
    """The page with its tables as they have to be."""
    return TABLE.sub(lambda found: found[1] + _table(TABLES[found[2]]()) + found[3], text)


def _table(rows: Iterable[tuple[str, ...]]) -> str:
    heading, *rest = rows
    lines = ["| " + " | ".join(row) + " |" for row in (heading, *rest)]
    lines.insert(1, "|---" * len(heading) + "|")
    return "\n".join(lines) + "\n"


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
