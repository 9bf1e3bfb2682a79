"""The command line of a program that is one node: its usage, and what it does not know.

Invariant: neither a question for the usage nor a mistyped argument starts anything.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import wrap

from .parameters import Spec

WIDTH = 80  # columns


def check_arguments(about: str, specs: Iterable[Spec], args: Sequence[str] | None = None) -> None:
    """Let ROS arguments pass. `args`: the command line without the program; None: sys.argv's.

    SystemExit with 0 where -h or --help asks for the usage, which is then printed: `about`, and the
    parameters with their defaults; with 2, after a sentence, for any other argument.
    """
    name = Path(sys.argv[0]).name
    others = _not_for_ros(sys.argv[1:] if args is None else args)
    if {"-h", "--help"} & set(others):
        print(usage(name, about, specs))
        raise SystemExit(0)
    if others:
        print(
            f"{name}: unknown argument '{others[0]}'; parameters are given after --ros-args, as "
            f"-p NAME:=VALUE: see {name} --help.",
            file=sys.stderr,
        )
        raise SystemExit(2)


def usage(name: str, about: str, specs: Iterable[Spec]) -> str:
    """What a person is told about the program, in lines of 80 columns."""
    lines = [
        f"Usage: {name} [--ros-args [-p NAME:=VALUE]... [--params-file FILE]]",
        "", inspect.cleandoc(about), "", "Parameters, and their defaults:",
    ]  # fmt: skip
    for spec in specs:
        lines += ["", f"  {spec.name}:={_written(spec.default)}"]
        lines += wrap(spec.description, WIDTH, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def _not_for_ros(args: Sequence[str]) -> list[str]:
    """Arguments outside of `--ros-args ... --`, as rcl reads them."""
    others, inside = [], False
    for arg in args:
        if inside:
            inside = arg != "--"
        elif arg == "--ros-args":
            inside = True
        else:
            others.append(arg)
    return others


def _written(value: object) -> str:
    """A default as a shell takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return '"[' + ", ".join(str(item) for item in value) + ']"'
    return f'"{value}"' if isinstance(value, str) else f"{value:g}"
