"""How far a recording is. Invariant: bars go to stderr, and are gone when the work is done."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class RecordingBar:
    """A bar in time of the recordings, of `seconds` in all; 0: nobody knows."""

    def __init__(self, seconds: float) -> None:
        self._total = seconds
        self._bar = Progress(
            BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn(),
            console=Console(stderr=True), transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=seconds or None)
        self._began = time.monotonic()

    def __enter__(self) -> RecordingBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, seconds: float, more: str = "") -> None:
        """So many seconds of the recordings are done; `more`: what else there is to say."""
        speed = seconds / max(time.monotonic() - self._began, 1e-3)
        text = f"{seconds:.0f} s of {self._total:.0f} s, {speed:.1f} x{more}"
        self._bar.update(self._task, completed=seconds, description=text)
