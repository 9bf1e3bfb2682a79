"""What every group of commands does with a command line that cannot be understood.

Invariant: it ends with exit code 2 and one sentence on stderr, which names what may have been
meant, whichever version of Typer and Rich is there.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from vljepa_ros.console import error_line

INTERRUPTED = 130  # exit code on Ctrl-C: 128 + SIGINT
# Typer's own, or Click's, which older versions of Typer build on.
UsageError: Any = typer.BadParameter.__mro__[1]


RAY = typer.Option(
    None, metavar="[ADDRESS]",
    help="Work on a Ray cluster: HOST:PORT, auto; without, this machine's, or a new one.",
)  # fmt: skip
# Options that may stand without a value: what is one.
OPTIONAL = {"--ray": re.compile(r"auto|\w+://.*|[^/\s]+:\d+")}


class Command(TyperCommand):
    """A command, of whose options those of OPTIONAL may stand without a value; it is empty then."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Read the command line."""
        return super().parse_args(ctx, list(_with_values(args)))


def _with_values(args: list[str]) -> Iterator[str]:
    for at, arg in enumerate(args):
        follows = args[at + 1] if at + 1 < len(args) else ""
        if arg in OPTIONAL and not OPTIONAL[arg].fullmatch(follows):
            yield f"{arg}="
        else:
            yield arg


class Group(TyperGroup):
    """A group of commands; of `vljepa` itself and of those that have commands of their own."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is named first; UsageError where there is none."""
        if args and self.get_command(ctx, args[0]) is None:
            meant = _meant(args[0], self.list_commands(ctx))
            raise UsageError(f"{ctx.command_path} has no command {args[0]!r}{meant}", ctx)
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, standalone_mode: bool = True, **options: Any) -> Any:
        """Run, and end the process, unless `standalone_mode` is False."""
        run: Any = super().main
        if not standalone_mode:
            return run(*args, standalone_mode=False, **options)
        try:
            code = run(*args, standalone_mode=False, **options)
        except UsageError as error:
            _refuse(error)
        except typer.Abort:
            code = INTERRUPTED
        sys.exit(code if isinstance(code, int) else 0)


def _refuse(error: Any) -> NoReturn:
    said = error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":  # the help has been printed, or is the message
        if said:
            error.show()
        sys.exit(error.exit_code)
    ctx = error.ctx
    if ctx is not None:
        option = getattr(error, "option_name", None)
        if option is not None and "no such option" in said.lower():
            names = [name for one in ctx.command.get_params(ctx)
                     for name in (*one.opts, *one.secondary_opts)]  # fmt: skip
            said = f"{ctx.command_path} has no option {option}{_meant(option, names)}"
        stop = "" if said.endswith((".", "?")) else "."
        said = f"{said}{stop} See {ctx.command_path} --help."
    error_line(said)
    sys.exit(error.exit_code)


def _meant(typed: str, names: Iterable[str]) -> str:
    """The end of a sentence: what may have been meant."""
    close = get_close_matches(typed, list(names))
    return f"; did you mean {' or '.join(close)}?" if close else "."
