"""The table of commands. Invariant: a command's module is imported when it is asked for."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import typer

from vljepa_ros.console import console, reader_has_gone

from .usage import INTERRUPTED, Command, Group

# Name: (module in this package, its function or Typer application), in the order of --help.
COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("live.up", "up"),
    "status": ("live.status", "status"),
    "listen": ("live.listen", "listen"),
    "ask": ("live.ask", "ask"),
    "classify": ("live.ask", "classify"),
    "watch": ("live.ask", "watch"),
    "mcp": ("live.agents", "mcp"),
    "index": ("memory.index", "index"),
    "timeline": ("timeline", "timeline"),
    "recall": ("memory.recall", "recall"),
    "memory": ("memory.memory", "app"),
    "calibrate": ("calibrate", "calibrate"),
    "doctor": ("doctor", "doctor"),
    "bundle": ("bundle", "app"),
    "engines": ("engines", "app"),
    "bench": ("bench", "app"),
    "data": ("train.train", "data"),
    "train": ("train.train", "train"),
    "export": ("train.export", "export"),
    "evaluate": ("train.evaluate", "evaluate"),
    "compare": ("train.compare", "compare"),
}


class LazyGroup(Group):
    """A command group that looks its commands up in `COMMANDS`."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command, imported now; None where there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name]
        found = getattr(import_module(f"vljepa_ros.cli.{module}"), attribute)
        if not isinstance(found, typer.Typer):
            function, found = found, typer.Typer(add_completion=False)
            found.command(cmd_name, cls=Command)(function)
        command = typer.main.get_command(found)
        command.name = cmd_name
        return command

    def invoke(self, ctx: Any) -> Any:
        """Run the command; its ends that are no error are the same with every version of Typer."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except BrokenPipeError:
            if reader_has_gone():
                console.on_broken_pipe()
            raise


app = typer.Typer(
    cls=LazyGroup,
    help="VL-JEPA for ROS 2: cameras in, a semantic stream out, words when the meaning changes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        from vljepa_ros import __version__

        typer.echo(f"vljepa_ros {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    pass
