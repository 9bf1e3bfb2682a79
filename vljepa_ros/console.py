"""What the commands print with. Invariant: results go to stdout, notices and errors to stderr."""

from __future__ import annotations

from rich.console import Console

console = Console(highlight=False, markup=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def notice(text: str) -> None:
    """A line on stderr that is no result: progress, or a hint."""
    errors.print(text, style="yellow")


def error_line(text: str) -> None:
    """One sentence in red on stderr."""
    errors.print(text, style="red")
