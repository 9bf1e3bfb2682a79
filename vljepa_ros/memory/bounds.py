"""Which moments a search may find, for SQL, for those who compare floats, and in Python."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .moment import Moment


@dataclass(frozen=True)
class Bounds:
    """Which moments: of these cameras (none: all), within these times (0: no bound)."""

    cameras: tuple[str, ...] = ()
    after_ns: int = 0
    before_ns: int = 0

    @property
    def after_float(self) -> float:
        """`after_ns` for those who compare 64 bit floats; at most 128 ns earlier."""
        found = float(self.after_ns)
        return math.nextafter(found, -math.inf) if found > self.after_ns else found

    @property
    def before_float(self) -> float:
        """`before_ns` for those who compare 64 bit floats; at most 128 ns later."""
        found = float(self.before_ns)
        return math.nextafter(found, math.inf) if found < self.before_ns else found

    def hold(self, moment: Moment) -> bool:
        """The moment lies within the bounds."""
        return (
            (not self.cameras or moment.camera in self.cameras)
            and (not self.after_ns or moment.end_ns >= self.after_ns)
            and (not self.before_ns or moment.start_ns <= self.before_ns)
        )

    def sql(self, plus: str = "") -> tuple[str, list[Any]]:
        """A condition and its values. With `plus` "+", SQLite finds the rows by something else."""
        terms, values = ["1"], list[Any]()
        if self.cameras:
            terms.append(f"{plus}camera IN ({marks(self.cameras)})")
            values += self.cameras
        if self.after_ns:
            terms.append(f"{plus}end_ns >= ?")
            values.append(self.after_ns)
        if self.before_ns:
            terms.append(f"{plus}start_ns <= ?")
            values.append(self.before_ns)
        return " AND ".join(terms), values


def marks(values: Sequence[Any]) -> str:
    """A question mark for each value, for SQL."""
    return ", ".join("?" * len(values))
