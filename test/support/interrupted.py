"""Runs a program that gets SIGINT when it suits it least: while rclpy makes a message, in C++.

Usage: interrupted.py TYPE PROGRAM [ARGUMENT...]. TYPE is a message class, e.g.
vljepa_ros.msg.Utterance, and the signal comes when the first of it is made; PROGRAM is a Python
file, or `vljepa`.
"""

from __future__ import annotations

import functools
import importlib
import os
import runpy
import signal
import sys
from typing import Any


def main() -> None:
    kind, program = sys.argv[1:3]
    sys.argv = sys.argv[2:]
    package, module, *path = kind.split(".")
    made = functools.reduce(getattr, path, importlib.import_module(f"{package}.{module}"))
    init = made.__init__

    def interrupted(self: Any, *args: Any, **fields: Any) -> None:
        made.__init__ = init
        os.kill(os.getpid(), signal.SIGINT)  # its handler runs before the next line
        init(self, *args, **fields)

    made.__init__ = interrupted
    if program == "vljepa":
        from vljepa_ros.cli import main as command

        command()
    else:
        runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main()
