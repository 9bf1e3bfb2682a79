"""What the commands print with.

Invariant: results go to stdout, notices and errors to stderr; with `--json` nothing but JSON goes
to stdout, whoever else prints there.

Nothing is cut. On a terminal lines end between words; a word longer than the terminal stays whole,
for the terminal to wrap. In a file or a pipe no line is wrapped.
"""

from __future__ import annotations

import json
import math
import os
import re
import select
import sys
from collections.abc import Collection, Sequence
from typing import IO, Any, NoReturn

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

GONE = 141  # exit code where nobody reads stdout any more: 128 + SIGPIPE, as of any other tool
GAP = 2  # blanks between two columns
LEAST = 10  # characters of a line that is set in; where there are fewer, it is not


class Output(Console):
    """Plain text; lines are not cut, and nothing in them means more than it says."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, soft_wrap=True, **options)

    def print(self, *objects: Any, hang: int = 0, **options: Any) -> None:
        """As rich does; on a terminal, text is wrapped between words.

        `hang`: characters by which what is wrapped is set in, but for the first line; it is as far
        as the first line is, at least.
        """
        if self.is_terminal and all(isinstance(one, (str, Text)) for one in objects):
            text = Text(" ").join(Text(one) if isinstance(one, str) else one for one in objects)
            objects = (_paragraph(text, self.width, hang),)
        super().print(*objects, **options)

    @property
    def room(self) -> int | None:
        """Characters of a line; None in a file or a pipe: any number."""
        return self.width if self.is_terminal else None

    def on_broken_pipe(self) -> NoReturn:
        """Nobody reads any more, as behind `| head -1`: the command ends, and says nothing."""
        self.quiet = True
        _end_unread(self.file)


console = Output()
errors = Output(stderr=True)
_json: IO[str] | None = None  # stdout as it was, once it is for JSON alone


def notice(text: str) -> None:
    """A line on stderr that is no result: progress, or a hint."""
    errors.print(text, style="yellow")


def error_line(text: str) -> None:
    """One sentence in red on stderr."""
    errors.print(text, style="red")


def keep_stdout_for_json() -> None:
    """Let what anybody but `print_json` writes to stdout, libraries in C, too, go to stderr."""
    global _json
    if _json is None and sys.stdout is not None:
        sys.stdout.flush()
        # Half a character, of a file's name, is written as JSON writes it.
        _json = open(os.dup(1), "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        os.dup2(2, 1)


def print_json(value: Any, line: bool = False) -> None:
    """One JSON value on stdout; `line`: on a line of its own, as one of many. Written at once.

    A number that JSON does not have (NaN, infinity) is null.
    """
    text = json.dumps(_finite(value), ensure_ascii=False, indent=None if line else 2)
    out = _json or sys.stdout
    try:
        print(text, file=out, flush=True)
    except BrokenPipeError:
        _end_unread(out)


def reader_has_gone() -> bool:
    """Whether nobody reads stdout any more; a command that has nothing to say learns it only so."""
    poll = select.poll()
    try:
        poll.register(_json or sys.stdout, 0)
    except (OSError, TypeError, ValueError):  # no file of the system's
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _end_unread(out: IO[str]) -> NoReturn:
    """End, and let what waits to be written go nowhere: else Python would fail at it as it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, out.fileno())
    raise SystemExit(GONE)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return value


def print_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Collection[str] = (),
    title: str = "",
) -> None:
    """Print a table, whole, with the columns of the headings in `right` at their right."""
    if title:
        console.print(title, style="bold")
    for line in table_lines(headings, rows, right, console.room):
        console.print(line)


def table_lines(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Collection[str] = (),
    room: int | None = None,
) -> list[str]:
    """The lines of a table in `room` characters (None: any number).

    Cells are wrapped between words. Where the longest words of the columns do not fit side by side,
    each row becomes lines of its own, `heading  cell`, with an empty line between two rows.
    """
    columns = list(zip(headings, *rows, strict=True))
    natural = [max(map(cell_len, column)) for column in columns]
    least = [max(cell_len(word) for cell in column for word in cell.split() or [""])
             for column in columns]  # fmt: skip
    if room is None:
        widths = natural
    else:
        left = room - GAP * (len(columns) - 1)
        if sum(least) > left:
            return _one_by_one(headings, rows, room)
        widths = _shared(natural, least, left)
    lines = []
    for row in (headings, *rows):
        cells = [_wrapped(cell, width) for cell, width in zip(row, widths, strict=True)]
        for k in range(max(map(len, cells))):
            parts = [cell[k] if k < len(cell) else "" for cell in cells]
            lines.append(_line(parts, widths, [heading in right for heading in headings]))
    return lines


def _shared(natural: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """Widths of columns, `room` in all: the least, and more for those first that want little."""
    widths, spare = list(least), room - sum(least)
    wanting = sorted(range(len(widths)), key=lambda k: natural[k] - least[k])
    for done, k in enumerate(wanting):
        more = min(natural[k] - least[k], spare // (len(wanting) - done))
        widths[k] += more
        spare -= more
    return widths


def _one_by_one(headings: Sequence[str], rows: Sequence[Sequence[str]], room: int) -> list[str]:
    """Each row as lines of `heading  cell`, without its empty cells."""
    width = max(map(cell_len, headings))
    lines: list[str] = []
    for row in rows:
        if lines:
            lines.append("")
        for heading, cell in zip(headings, row, strict=True):
            for k, part in enumerate(_wrapped(cell, max(1, room - width - GAP)) if cell else []):
                lines.append(_line(["" if k else heading, part], [width, 0], [False, False]))
    return lines


def _wrapped(text: str, width: int) -> list[str]:
    """A text in lines of `width` characters at most, but for longer words; as it is if it fits."""
    if cell_len(text) <= width:
        return [text]
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and cell_len(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _paragraph(text: Text, width: int, hang: int) -> Text:
    """A text in lines of `width` characters at most, but for longer words. Rich would cut these."""
    lines: list[Text] = []
    for line in text.split("\n", allow_blank=True):
        plain = line.plain
        inset = max(hang, len(plain) - len(plain.lstrip()))
        inset = inset if width - inset >= LEAST else 0
        breaks, start, room = list[int](), 0, width
        for word in re.finditer(r"\S+", plain):
            before = plain[start or inset : word.start()].strip()
            if before and cell_len(plain[start : word.end()]) > room:
                breaks.append(word.start())
                start, room = word.start(), width - inset
        parts = line.divide(breaks)
        for part in parts[:-1]:
            part.rstrip()
        for part in parts[1:]:
            part.pad_left(inset)
        lines += parts
    return Text("\n").join(lines)


def _line(parts: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    padded = []
    for part, width, at_right in zip(parts, widths, right, strict=True):
        blanks = " " * (width - cell_len(part))
        padded.append(blanks + part if at_right else part + blanks)
    return (" " * GAP).join(padded).rstrip()
