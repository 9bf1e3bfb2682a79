"""JSON Lines, as editors and other programs write them.

Invariant: a line ends where an editor ends it, at LF, CR LF or CR, and never at U+2028, U+0085 or
another of Unicode's separators, which may stand within a text of JSON.
"""

from __future__ import annotations

from pathlib import Path


def json_lines(file: Path) -> list[tuple[int, str]]:
    """(number, text) of the lines of `file` that are not blank; a byte-order mark is no part of it.

    Raises OSError, and UnicodeDecodeError where it is not UTF-8.
    """
    rows = file.read_text(encoding="utf-8-sig").split("\n")
    return [(number, row) for number, row in enumerate(rows, 1) if row.strip()]
