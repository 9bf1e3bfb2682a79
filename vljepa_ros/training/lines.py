"""A user's lines: which part of which recording is the answer to what.

Invariant: every problem of every line is reported at once, a sentence each, as file:line and what
to do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vljepa_ros.errors import VLJepaError
from vljepa_ros.recordings.bags import bag_info
from vljepa_ros.recordings.json_lines import json_lines
from vljepa_ros.recordings.left_out import LeftOut
from vljepa_ros.recordings.lerobot.dataset import Episode, EpisodeError
from vljepa_ros.recordings.lerobot.language import subtasks, tasks
from vljepa_ros.recordings.lerobot.rows import Rows
from vljepa_ros.recordings.lerobot.selection import (
    choose,
    fetch_episodes,
    is_meant,
    may_be_of_hub,
    open_dataset,
)

YEAR = 366 * 86400  # s
KEYS = {"video": str, "bag": str, "topic": str, "start": float, "end": float, "query": str,
        "answer": str}  # fmt: skip


class RecordingsError(VLJepaError):
    """Lines of a file of recordings that cannot be used."""


@dataclass(frozen=True)
class Source:
    """One camera of one recording: a video (no topic), a bag, or an episode of a data set."""

    path: Path
    topic: str = ""
    episode: Episode | None = None

    @property
    def recording(self) -> tuple[Path, int]:
        """The same for all cameras that saw the same."""
        return self.path, -1 if self.episode is None else self.episode.index

    def __str__(self) -> str:
        return self.path.name if self.episode is None else str(self.episode)


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


@dataclass(frozen=True)
class Choice:
    """What is learnt from a LeRobot data set. `camera`, `episodes`: as of `choose`.

    `tasks`: what each episode is for, in the place of what is done in it when.
    """

    camera: str = ""
    episodes: str = ""
    tasks: bool = False


WHOLE = Choice()  # nothing is chosen


@dataclass
class Given:
    """What there is to learn from. `name`, `sha256`: of what it comes from.

    `problems`: what is wrong with which line, for `refuse`; `left_out`: sentences.
    """

    file: Path
    name: str
    sha256: str
    lines: list[Line]
    problems: dict[int, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def read(source: Path, default_query: str | None, choice: Choice = WHOLE) -> Given:
    """The lines of a JSONL file, or of the labels of a LeRobot data set. Raises RecordingsError.

    `default_query`: as of `read_lines`; the labels of a data set are its answers.
    """
    if is_meant(source, bool(choice.camera)):
        return _of_dataset(source, default_query or "", choice)
    if may_be_of_hub(source):
        raise RecordingsError(
            f"There is no {source}; if it is a LeRobot data set of the Hub, name its --camera."
        )
    if choice != WHOLE:
        raise RecordingsError(
            f"--camera, --episodes and --tasks are for a LeRobot data set, and {source} is none."
        )
    problems: dict[int, str] = {}
    lines = read_lines(source, default_query, problems)
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    return Given(source, source.name, sha256, lines, problems)


def _of_dataset(source: Path, query: str, choice: Choice) -> Given:
    dataset = open_dataset(source)
    episodes = choose(dataset, choice.camera, choice.episodes)
    fetch_episodes(episodes)
    left_out, lines = LeftOut(), list[Line]()
    for problem in dataset.problems:
        left_out.say(problem)
    for episode in episodes:
        try:
            rows = Rows(episode)
        except EpisodeError as error:
            left_out.episode(dataset.name, episode.index, error.reason)
            continue
        it = Source(episode.root, episode.camera, episode)
        labels = tasks(rows) if choice.tasks else subtasks(rows)
        for number, label in enumerate(labels, len(lines) + 1):
            lines.append(Line(number, it, label.start, label.end, query, label.text))
    if not lines:
        less = "tasks." if choice.tasks else (
            "language at its time (subtasks in language_persistent); add --tasks to learn which "
            "task an episode is of."
        )  # fmt: skip
        why = " ".join(left_out.sentences())
        raise RecordingsError(f"{dataset.name} has no {less} {why}".strip())
    said = [(str(one.source), one.start, one.end, one.answer) for one in lines]
    sha256 = hashlib.sha256(json.dumps([episodes[0].camera, said]).encode()).hexdigest()
    name = f"{dataset.name} ({episodes[0].camera})"
    return Given(source, name, sha256, lines, left_out=left_out.sentences())


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
