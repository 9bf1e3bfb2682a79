"""The `vljepa` command. Invariant: starting it imports neither ROS nor torch nor an engine."""

from __future__ import annotations

import signal
import sys
from types import FrameType

RUN_UNTIL_STOPPED = ("listen", "mcp", "up")


def main() -> None:
    """Run the command line; an error is one sentence on stderr and exit code 1.

    Commands that run until they are stopped take SIGINT and SIGTERM as their regular end (exit
    code 0), from the first moment on; they may put handlers of their own in place. Any other ends
    with 130 on Ctrl-C, and where nobody reads its output any more with 141, without a word.
    """
    if any(argument in RUN_UNTIL_STOPPED for argument in sys.argv[1:2]):
        signal.signal(signal.SIGINT, _stop)
        signal.signal(signal.SIGTERM, _stop)
    try:
        _run()
    except KeyboardInterrupt:  # before the command began; LazyGroup has the others
        sys.exit(130)


def _run() -> None:
    from vljepa_ros.errors import VLJepaError

    try:
        from vljepa_ros.console import error_line, keep_stdout_for_json

        from .app import app
    except ModuleNotFoundError as error:
        sys.exit(
            f"vljepa needs the Python package {error.name}: run rosdep install for this package, "
            "or pip install -r scripts/requirements/robot.txt in its source folder."
        )

    if "--json" in sys.argv[1:] and "--help" not in sys.argv[1:]:
        keep_stdout_for_json()
    try:
        app(prog_name="vljepa")
    except VLJepaError as error:
        error_line(str(error))
        sys.exit(1)
    except OSError as error:  # a path that cannot be looked at: too long, not to be read, no disk
        if error.filename is None:
            raise
        error_line(f"{str(error.filename)[:200]}: {error.strerror}; check the path.")
        sys.exit(1)


def _stop(number: int, frame: FrameType | None) -> None:
    sys.exit(0)
