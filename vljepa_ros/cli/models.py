"""Models as the commands open them. Invariant: no engine is built without a word."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from vljepa_ros.bundle.spec import Bundle
from vljepa_ros.console import errors, notice
from vljepa_ros.inference.runtime import Runtime

SAID = 0.25  # of a build, between two lines where there is no terminal


class BuildProgress:
    """How far engines are built: bars in a terminal, else lines now and then, both on stderr.

    Called with a part of the model, the phase in words, and how much of it is done, 0..1.
    """

    def __init__(self) -> None:
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, tuple[str, float]] = {}

    def __enter__(self) -> BuildProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, part: str, phase: str, done: float) -> None:
        if not errors.is_terminal:
            self._say(part, phase, done)
            return
        if self._bars is None:
            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(),
                       TimeElapsedColumn())  # fmt: skip
            self._bars = Progress(*columns, console=errors, transient=True)
            self._bars.start()
        if part not in self._tasks:
            self._tasks[part] = self._bars.add_task(part, total=1.0)
        self._bars.update(self._tasks[part], description=f"{part}: {phase}", completed=done)

    def _say(self, part: str, phase: str, done: float) -> None:
        said, last = self._said.get(part, ("", 0.0))
        if phase != said or done - last >= SAID or done >= 1 > last:
            self._said[part] = phase, done
            notice(f"Building {part}: {phase}, {done:.0%}.")


def open_model(
    bundle: Bundle, backend: str = "auto", parts: Sequence[str] = ("x_encoder", "predictor"),
    threads: int = 0, precision: str = "auto",
) -> Runtime:  # fmt: skip
    """A model whose engines are built first, where they have to be, with their progress shown."""
    with BuildProgress() as report:
        return Runtime(bundle, backend, threads, parts, precision, report=report)
