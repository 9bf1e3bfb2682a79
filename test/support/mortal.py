"""Openings for workers that die where a test wants it; importable, as workers import them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Mortal:
    """Opens what `opening` does; who works on `task` dies after `steps` of it, the first time.

    `grave`: a file that is made then, with the process's number.
    """

    opening: Callable[[], Any]
    task: str
    steps: int
    grave: Path

    def __call__(self) -> Any:
        work = self.opening()

        def mortal(task: Any) -> Generator[float, None, Any]:
            steps = work(task)
            if str(task) == self.task and not self.grave.exists():
                for _ in range(self.steps):
                    next(steps)
                self.grave.write_text(str(os.getpid()))
                die()
            return (yield from steps)

        return mortal


def squares() -> Any:
    """Squares numbers; it fails of a text, and dies of None."""

    def work(number: Any) -> Generator[float, None, tuple[int, int]]:
        yield 0.5
        if number is None:
            die()
        return number * number, os.getpid()

    return work


def no_file() -> Any:
    return Path("/not/there").read_text()


def dead() -> Any:
    die()
