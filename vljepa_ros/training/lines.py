"""A user's lines: which part of which recording is the answer to what.

Invariant: every problem of every line is reported at once, a sentence each, as file:line and what
to do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vljepa_ros.errors import VLJepaError
from vljepa_ros.recordings.bags import bag_info
from vljepa_ros.recordings.json_lines import json_lines

YEAR = 366 * 86400  # s
KEYS = {"video": str, "bag": str, "topic": str, "start": float, "end": float, "query": str,
        "answer": str}  # fmt: skip


class RecordingsError(VLJepaError):
    """Lines of a file of recordings that cannot be used."""


@dataclass(frozen=True)
class Source:
    """One camera of one recording: a video (no topic) or a bag."""

    path: Path
    topic: str = ""


@dataclass(frozen=True)
class Line:
    """One line: from `start` to `end`, in seconds, `answer` is the answer to `query`."""

    number: int
    source: Source
    start: float
    end: float
    query: str
    answer: str

    @property
    def asked(self) -> tuple[str, str]:
        """Query and answer."""
        return self.query, self.answer


def read_lines(
    file: Path, default_query: str | None, problems: dict[int, str] | None = None
) -> list[Line]:
    """The lines of a JSONL file; paths in it are relative to its folder.

    `default_query` None: the model is asked nothing; the lines then have the query "".
    `problems` takes what is wrong with which line, for `refuse`; without it that is raised at once.
    Raises RecordingsError.
    """
    try:
        rows = json_lines(file)
    except (OSError, UnicodeDecodeError) as error:
        raise RecordingsError(
            f"{file} cannot be read ({error}); give a JSONL file in UTF-8."
        ) from error
    lines = []
    found: dict[int, str] = {} if problems is None else problems
    topics = _Topics()
    for number, row in rows:
        try:
            lines.append(_line(number, row, file.parent, default_query, topics))
        except VLJepaError as error:
            found[number] = " ".join(str(error).split())
    if problems is None:
        refuse(file, found)
    if not lines and not found:
        raise RecordingsError(
            f'{file} holds no lines; write one a segment: {{"video": "a.mp4", "start": 0, '
            '"end": 2.5, "answer": "the door opens"}.'
        )
    return lines


def refuse(file: Path, problems: Mapping[int, str], notes: Sequence[str] = ()) -> None:
    """Raise RecordingsError with every problem, by line, if there is one, and then the notes."""
    if problems:
        said = (f"{file}:{number}: {text}" for number, text in sorted(problems.items()))
        raise RecordingsError("\n".join([*said, *notes]))


class _Topics:
    """The image topics of every bag, looked up once."""

    def __init__(self) -> None:
        self.known: dict[Path, list[str]] = {}

    def of(self, path: Path) -> list[str]:
        if path not in self.known:
            self.known[path] = bag_info(path).image_topics
        return self.known[path]


def _line(number: int, row: str, folder: Path, default_query: str | None, topics: _Topics) -> Line:
    values = _values(row)
    if ("video" in values) == ("bag" in values):
        raise RecordingsError("give either 'video' or 'bag'.")
    kind = "video" if "video" in values else "bag"
    path = _path(folder, values[kind], kind)
    if kind == "video" and "topic" in values:
        raise RecordingsError("a video has no 'topic'; take it away, or give 'bag'.")
    topic = _topic(path, values.get("topic"), topics) if kind == "bag" else ""
    for key in ("start", "end", "answer"):
        if key not in values:
            raise RecordingsError(f"'{key}' is missing.")
    start, end = values["start"], values["end"]
    if not (0 <= start < end <= YEAR):
        raise RecordingsError(
            f"'start' ({start:g}) must be 0 or more and below 'end' ({end:g}); both are seconds "
            "from the start of the recording, which lasts less than a year."
        )
    if default_query is None and "query" in values:
        raise RecordingsError("'query' is given to a model that is asked nothing; take it away.")
    query = values.get("query", default_query or "").strip()
    answer = " ".join(values["answer"].split())
    for key, text in (("query", query), ("answer", answer)):
        if not text and (key, default_query) != ("query", None):
            raise RecordingsError(f"'{key}' is empty; say it in words.")
    return Line(number, Source(path, topic), start, end, query, answer)


def _path(folder: Path, name: str, kind: str) -> Path:
    """Where a recording lies, with links followed."""
    try:
        path = folder / Path(name).expanduser()
        there, resolved = path.exists(), path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise RecordingsError(f"the {kind} {name!r} cannot be looked for: {error}.") from error
    if not there:
        raise RecordingsError(f"there is no {kind} {path}; paths are relative to this file.")
    return resolved


def _values(row: str) -> dict[str, Any]:
    """The values of a row, each of the type of its key; numbers are floats."""
    try:
        values = json.loads(row, parse_int=float)  # which has no limit of digits
    except json.JSONDecodeError as error:
        raise RecordingsError(
            f"not JSON ({error.msg} at column {error.colno}); write one object a line."
        ) from error
    except RecursionError as error:
        raise RecordingsError("not JSON of a line: it is nested too deeply.") from error
    if not isinstance(values, dict):
        raise RecordingsError("not a JSON object; write one object a line.")
    unknown = sorted(values.keys() - KEYS)
    if unknown:
        raise RecordingsError(f"unknown key '{unknown[0]}'; keys are {', '.join(KEYS)}.")
    for key, value in values.items():
        if not isinstance(value, KEYS[key]):
            kind = "a number" if KEYS[key] is float else "a text"
            raise RecordingsError(f"'{key}' must be {kind}, not {json.dumps(value)[:80]}.")
        if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise RecordingsError(f"'{key}' holds half of a character (\\ud800 to \\udfff) alone.")
    return values


def _topic(path: Path, topic: str | None, topics: _Topics) -> str:
    there = topics.of(path)
    if topic is None and len(there) == 1:
        return there[0]
    if topic in there:
        return str(topic)
    said = "'topic' is missing" if topic is None else f"there are no images on '{topic}'"
    raise RecordingsError(f"{said}; {path.name} has images on {', '.join(there)}.")
