"""What is written of an episode: tasks, and subtasks at their times.

Invariant: a label holds from `start` to `end` within its episode; `tasks` do not overlap, nor do
`subtasks`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .rows import Rows

TASK, SUBTASK = "task", "subtask"


@dataclass(frozen=True)
class Label:
    """From `start` to `end`, in seconds from the start of its episode, `text` holds."""

    kind: str
    start: float
    end: float
    text: str


def labels(rows: Rows) -> list[Label]:
    """All that is written of the episode: tasks, in all their words, and subtasks."""
    found = tasks(rows)
    known = {label.text for label in found}
    others = [label for label in rewordings(rows) if label.text not in known]
    return [*found, *others, *subtasks(rows)]


def tasks(rows: Rows) -> list[Label]:
    """What was to be done when, by the rows; else, from start to end, what the episode says."""
    found = _runs(rows, TASK, rows.episode.dataset.tasks)
    return found or rewordings(rows)[:1]


def rewordings(rows: Rows) -> list[Label]:
    """Every task that the episode says, from start to end: one may stand there in many words."""
    texts = dict.fromkeys(filter(None, map(_line, rows.episode.tasks)))
    return [Label(TASK, 0.0, rows.end, text) for text in texts]


def subtasks(rows: Rows) -> list[Label]:
    """What was done when, as `language_persistent` says, else `subtask_index`."""
    said = [row for row in rows.longest("language_persistent") if _is_subtask(row, rows)]
    said.sort(key=lambda row: float(row["timestamp"]))
    ends = [*(float(row["timestamp"]) for row in said[1:]), rows.end]
    found = [
        Label(SUBTASK, max(0.0, float(row["timestamp"])), min(end, rows.end), _line(row["content"]))
        for row, end in zip(said, ends)
    ]
    # Of two that begin together the later holds.
    return [one for one in found if one.start < one.end] or _runs(
        rows, SUBTASK, rows.episode.dataset.subtasks
    )


def _is_subtask(row: Any, rows: Rows) -> bool:
    """Whether a row of `language_persistent` is a timed sentence of this camera."""
    return (
        isinstance(row, dict)
        and row.get("style") == SUBTASK
        and isinstance(row.get("timestamp"), float)
        and row["timestamp"] < rows.end
        and row.get("camera") in (None, "", rows.episode.camera)
        and bool(_line(row.get("content")))
    )


def _runs(rows: Rows, kind: str, texts: Mapping[int, str]) -> list[Label]:
    """The stretches over which the rows have one number, whose text is known."""
    numbers: Sequence[Any] = rows.column(f"{kind}_index") or ()
    found = []
    first = 0
    for row in range(1, len(numbers) + 1):
        if row < len(numbers) and numbers[row] == numbers[first]:
            continue
        end = float(rows.times[row]) if row < len(numbers) else rows.end
        number = numbers[first]
        if text := _line(texts.get(number) if isinstance(number, int) else None):
            found.append(Label(kind, float(rows.times[first]), end, text))
        first = row
    return found


def _line(text: Any) -> str:
    """A text as one line; empty where it is none."""
    return " ".join(text.split()) if isinstance(text, str) else ""
