"""What the commands print with.

Invariant: results go to stdout, notices and errors to stderr; with `--json` nothing but JSON goes
to stdout, whoever else prints there.
"""

from __future__ import annotations

import json
import math
import os
import select
import sys
from typing import IO, Any, NoReturn

from rich.console import Console

GONE = 141  # exit code where nobody reads stdout any more: 128 + SIGPIPE, as of any other tool


class Output(Console):
    """Plain text; lines are not cut, and nothing in them means more than it says."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, soft_wrap=True, **options)

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
