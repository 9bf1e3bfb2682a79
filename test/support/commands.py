"""Runs of `vljepa` in processes of their own that cost little: forks of one that has imported all.

`Commands` starts that one, this file as a program, and asks it for runs. Each run is a process as
a user's: its own stdin, stdout and stderr, signals and exit code.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

GONE = "gone"  # a pipe that nobody reads any more
DEADLINE = 60.0  # seconds, which only what hangs needs
# Of the environment: what may colour pipes, or tell another width than that of the terminal.
COLOURS = ("COLUMNS", "FORCE_COLOR", "GITHUB_ACTIONS", "NO_COLOR", "PY_COLORS", "TERMINAL_WIDTH")


class Run:
    """A command that runs, or has run."""

    def __init__(self, commands: Commands, pid: int, out: Path, err: Path) -> None:
        self._commands, self.pid, self._out, self._err = commands, pid, out, err
        self._code: int | None = None

    @property
    def out(self) -> str:
        """What it has written to stdout so far."""
        return self._out.read_text("utf-8") if self._out.is_file() else ""

    @property
    def err(self) -> str:
        """What it has written to stderr so far."""
        return self._err.read_text("utf-8")

    def poll(self) -> int | None:
        """The exit code, negative after a signal; None while it runs."""
        if self._code is None:
            self._code = self._commands.ask({"poll": self.pid})
        return self._code

    def code(self) -> int:
        """The exit code, once it has ended; an error where it does not end."""
        end = time.monotonic() + DEADLINE
        while self.poll() is None:
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError(f"it did not end:\n{self.out}\n{self.err}")
            time.sleep(0.01)
        assert self._code is not None
        return self._code

    def until(self, condition: Callable[[], Any]) -> None:
        """Until the condition holds, while it runs."""
        end = time.monotonic() + DEADLINE
        while not condition():
            assert self.poll() is None, f"it has ended:\n{self.out}\n{self.err}"
            assert time.monotonic() < end, f"it is not there yet:\n{self.out}\n{self.err}"
            time.sleep(0.01)

    def takes(self, number: int) -> bool:
        """Whether it handles a signal, or waits for it, instead of being ended by it."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        masks = [int(line.split()[1], 16) for line in status.splitlines()
                 if line.startswith(("SigBlk", "SigCgt"))]  # fmt: skip
        return any(mask >> (number - 1) & 1 for mask in masks)


class Commands:
    """The process that forks the runs. `environment`: of all of them."""

    def __init__(self, **environment: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._count = 0
        given = {**os.environ, "PYTHONUNBUFFERED": "", **environment}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={name: value for name, value in given.items() if name not in COLOURS},
            cwd=self._folder.name,
        )  # fmt: skip

    def close(self) -> None:
        """End it; runs that have not ended end with it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(DEADLINE)
        self._folder.cleanup()

    def start(self, *arguments: object, stdout: str = "", at: str = "", number: int = 0) -> Run:
        """Start `vljepa` with these arguments.

        `stdout`: a file to write to, as a terminal's, or GONE. `at`: the run gets the signal
        `number` as it opens a file whose path ends so, or raises the audit event of that name.
        """
        self._count += 1
        out, err = (Path(self._folder.name) / f"{self._count}.{name}" for name in ("out", "err"))
        pid = self.ask({
            "run": [str(one) for one in arguments], "out": stdout or str(out), "err": str(err),
            "at": at, "number": number,
        })  # fmt: skip
        return Run(self, pid, out, err)

    def run(self, *arguments: object, **options: Any) -> Run:
        """A command that has ended."""
        run = self.start(*arguments, **options)
        run.code()
        return run

    def ask(self, question: dict[str, Any]) -> Any:
        """An answer of the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())


def _serve() -> None:
    """Fork a run for each line that asks for one, until stdin ends; then end those that run."""
    _import_all()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    alive = set[int]()
    for line in sys.stdin:
        asked = json.loads(line)
        if "run" in asked:
            pid = os.fork()
            if pid == 0:
                answers.close()
                _become(asked)
            alive.add(pid)
            answer: int | None = pid
        else:
            done, status = os.waitpid(asked["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if done else None
            alive -= {done}
        print(json.dumps(answer), file=answers, flush=True)
    for pid in alive:
        os.killpg(pid, signal.SIGKILL)
    os._exit(0)  # its libraries take seconds to end


def _import_all() -> None:
    """Import what the commands import, so that no run has to."""
    import importlib

    import rclpy  # noqa: F401

    import vljepa_ros.client
    import vljepa_ros.inference.runtime
    import vljepa_ros.msg
    import vljepa_ros.srv  # noqa: F401
    from vljepa_ros.cli.app import COMMANDS

    for module, _ in COMMANDS.values():
        importlib.import_module(f"vljepa_ros.cli.{module}")
    with contextlib.suppress(ImportError):  # of the extra `train`
        for module in ("calibrate", "comparison.compare", "finetune", "finetune_export", "release",
                       "site.export", "site.learn"):  # fmt: skip
            importlib.import_module(f"vljepa_ros.training.{module}")
        importlib.import_module("vljepa_ros.evaluation.run")


def _become(asked: dict[str, Any]) -> None:
    """Be `vljepa`, with a process group of its own, and end."""
    os.setsid()
    for number, path in enumerate((os.devnull, asked["out"], asked["err"])):
        if path == GONE:
            unread, opened = os.pipe()
            os.close(unread)
        else:
            way = os.O_WRONLY | os.O_CREAT | os.O_NOCTTY if number else os.O_RDONLY
            opened = os.open(path, way, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin, sys.stdout, sys.stderr = (
        open(0, closefd=False),  # noqa: SIM115
        open(1, "w", encoding="utf-8", closefd=False),  # noqa: SIM115
        open(2, "w", encoding="utf-8", buffering=1, closefd=False),  # noqa: SIM115
    )
    sys.argv = ["vljepa", *asked["run"]]
    if asked["at"]:
        _interrupt_at(asked["at"], asked["number"])
    code = 1
    try:
        from vljepa_ros.cli import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(code)


def _interrupt_at(wanted: str, number: int) -> None:
    waiting = True

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal waiting
        path = str(arguments[0]) if event == "open" else event
        if waiting and path.endswith(wanted):
            waiting = False
            os.kill(os.getpid(), number)

    sys.addaudithook(hook)


if __name__ == "__main__":
    _serve()
