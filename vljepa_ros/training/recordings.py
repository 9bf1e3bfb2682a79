"""A user's own recordings: the lines that describe them, and the clips that they hold.

Invariant: every problem of every line is reported at once, as file:line and what to do; a frame of
a clip is the picture that the camera had shown last by that time, so a clip is a function of the
recording and its time alone.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from vljepa_ros.bundle.spec import ClipSpec
from vljepa_ros.errors import VLJepaError
from vljepa_ros.inference.preprocess import prepare
from vljepa_ros.recordings.bags import bag_info, bag_pictures
from vljepa_ros.recordings.left_out import LeftOut
from vljepa_ros.recordings.video import VideoSource
from vljepa_ros.tabletop.clips import View, augment

FINER = 2  # pictures kept for one frame of a clip, so that clips may begin in between
HELD_OUT = 5  # one part in so many
RECORDINGS = 5  # from so many on, whole recordings are held out
LOOKS = 3  # clips that a held-out line is judged by
ENDS_LATE = 0.1  # s that an `end` may lie behind the last picture
KEYS = {"video": str, "bag": str, "topic": str, "start": float, "end": float, "query": str,
        "answer": str}  # fmt: skip


class RecordingsError(VLJepaError):
    """Lines of a file of recordings that cannot be used."""


@dataclass(frozen=True)
class Source:
    """One camera of one recording: a video (no topic) or a bag."""

    path: Path
    topic: str = ""

    def pictures(self, left_out: LeftOut) -> Iterator[tuple[float, np.ndarray]]:
        """(seconds from the start, RGB uint8 `[H, W, 3]`), times rising."""
        if self.topic:
            yield from bag_pictures(self.path, self.topic, left_out)
            return
        for offset, picture in VideoSource(self.path, tell=left_out.say).frames():
            yield offset / 1e9, picture


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


def read_lines(file: Path, default_query: str) -> list[Line]:
    """The lines of a JSONL file; paths in it are relative to its folder. Raises RecordingsError."""
    try:
        rows = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecordingsError(f"{file} cannot be read ({error}); give a JSONL file.") from error
    lines, problems = [], []
    topics = _Topics()
    for number, row in enumerate(rows, 1):
        if not row.strip():
            continue
        try:
            lines.append(_line(number, row, file.parent, default_query, topics))
        except VLJepaError as error:
            problems.append(f"{file}:{number}: {error}")
    if problems:
        raise RecordingsError("\n".join(problems))
    if not lines:
        raise RecordingsError(
            f'{file} holds no lines; write one a segment: {{"video": "a.mp4", "start": 0, '
            '"end": 2.5, "answer": "the door opens"}.'
        )
    return lines


class _Topics:
    """The image topics of every bag, looked up once."""

    def __init__(self) -> None:
        self.known: dict[Path, list[str]] = {}

    def of(self, path: Path) -> list[str]:
        if path not in self.known:
            self.known[path] = bag_info(path).image_topics
        return self.known[path]


def _line(number: int, row: str, folder: Path, default_query: str, topics: _Topics) -> Line:
    values = _values(row)
    if ("video" in values) == ("bag" in values):
        raise RecordingsError("give either 'video' or 'bag'.")
    kind = "video" if "video" in values else "bag"
    path = folder / Path(values[kind]).expanduser()
    if not path.exists():
        raise RecordingsError(f"there is no {kind} {path}; paths are relative to this file.")
    if kind == "video" and "topic" in values:
        raise RecordingsError("a video has no 'topic'; take it away, or give 'bag'.")
    topic = _topic(path, values.get("topic"), topics) if kind == "bag" else ""
    for key in ("start", "end", "answer"):
        if key not in values:
            raise RecordingsError(f"'{key}' is missing.")
    start, end = float(values["start"]), float(values["end"])
    if not (math.isfinite(end) and 0 <= start < end):
        raise RecordingsError(
            f"'start' ({start:g}) must be 0 or more and below 'end' ({end:g}); both are seconds "
            "from the start of the recording."
        )
    query = values.get("query", default_query).strip()
    answer = " ".join(values["answer"].split())
    for key, text in (("query", query), ("answer", answer)):
        if not text:
            raise RecordingsError(f"'{key}' is empty; say it in words.")
    return Line(number, Source(path.resolve(), topic), start, end, query, answer)


def _values(row: str) -> dict[str, Any]:
    try:
        values = json.loads(row)
    except json.JSONDecodeError as error:
        raise RecordingsError(f"not JSON ({error}); write one object a line.") from error
    if not isinstance(values, dict):
        raise RecordingsError("not a JSON object; write one object a line.")
    unknown = sorted(values.keys() - KEYS)
    if unknown:
        raise RecordingsError(f"unknown key '{unknown[0]}'; keys are {', '.join(KEYS)}.")
    for key, value in values.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (number if KEYS[key] is float else isinstance(value, str)):
            kind = "a number" if KEYS[key] is float else "a text"
            raise RecordingsError(f"'{key}' must be {kind}, not {json.dumps(value)}.")
    return values


def _topic(path: Path, topic: str | None, topics: _Topics) -> str:
    there = topics.of(path)
    if topic is None and len(there) == 1:
        return there[0]
    if topic in there:
        return str(topic)
    said = "'topic' is missing" if topic is None else f"there are no images on '{topic}'"
    raise RecordingsError(f"{said}; {path.name} has images on {', '.join(there)}.")


@dataclass
class Frames:
    """The pictures of one source that its lines need, small, on a grid of times.

    `row[k]` is the row in `pictures` (uint8 `[n, S, S, 3]`) of the picture at grid time k.
    """

    row: dict[int, int] = field(default_factory=dict)
    pictures: list[np.ndarray] = field(default_factory=list)


class Recordings:
    """All lines with their frames in memory. Raises RecordingsError where one cannot be cut."""

    def __init__(self, file: Path, lines: Sequence[Line], clip: ClipSpec) -> None:
        self.lines, self.clip = list(lines), clip
        self.rate = FINER * clip.sample_rate  # of the grid
        self.span = clip.span_ns / 1e9
        self.frames: dict[Source, Frames] = {}
        self.left_out: list[str] = []  # sentences
        by_source = defaultdict(list)
        for line in self.lines:
            by_source[line.source].append(line)
        problems: dict[int, str] = {}
        for source, its in by_source.items():
            try:
                self.frames[source], seconds = self._read(source, its)
            except VLJepaError as error:
                problems[its[0].number] = str(error)
                continue
            for line in its:
                if line.end > seconds + ENDS_LATE:
                    problems[line.number] = (
                        f"'end' is {line.end:g}, and {source.path.name} lasts {seconds:.2f} s."
                    )
        if problems:
            said = (f"{file}:{number}: {text}" for number, text in sorted(problems.items()))
            raise RecordingsError("\n".join([*said, *self.left_out]))

    def _read(self, source: Source, lines: Sequence[Line]) -> tuple[Frames, float]:
        """The frames that `lines` need, and the length of the recording in seconds."""
        needed = self._needed(lines)
        frames, position, left_out = Frames(), 0, LeftOut()
        shown: np.ndarray | None = None
        last = period = 0.0

        def take(until: float) -> None:
            """Give the picture that is shown now to the needed times before `until`."""
            nonlocal position
            begin = position
            while position < len(needed) and needed[position] / self.rate < until - 1e-6:
                frames.row[needed[position]] = len(frames.pictures)
                position += 1
            if position > begin and shown is not None:
                frames.pictures.append(prepare(shown, self.clip.image_size))

        for at, picture in source.pictures(left_out):
            if shown is not None:
                take(at)
                period = at - last
            shown, last = picture, at
            if position == len(needed):
                last = math.inf  # longer than any line: the rest is not looked at
                break
        if shown is None:
            why = "; ".join(left_out.sentences()) or "there are none."
            raise RecordingsError(f"{source.path} gives no pictures on {source.topic}: {why}")
        take(math.inf)
        self.left_out += left_out.sentences()
        return frames, last + period

    def _needed(self, lines: Iterable[Line]) -> list[int]:
        """The grid times of all clips of `lines`, rising."""
        needed: set[int] = set()
        for line in lines:
            newest = self.newest(line)
            needed.update(range(self._grid(newest[0])[0], newest[-1] + 1))
        return sorted(needed)

    def newest(self, line: Line) -> range:
        """The grid times at which a clip of `line` may end.

        It ends in the line's later half, or earlier where all of it lies inside the line; what it
        shows first may lie before `start`.
        """
        first = min(line.start + self.span, (line.start + line.end) / 2)
        last = math.floor(line.end * self.rate + 1e-6)
        return range(min(math.ceil(first * self.rate - 1e-6), last), last + 1)

    def _grid(self, newest: int) -> list[int]:
        """The grid times of a clip's frames; what would lie before the start is the start."""
        return [max(0, newest - FINER * back) for back in range(self.clip.frames)][::-1]

    def cut(self, line: Line, newest: int) -> np.ndarray:
        """The clip of `line` that ends at grid time `newest`: uint8 `[T, S, S, 3]`."""
        frames = self.frames[line.source]
        return np.stack([frames.pictures[frames.row[k]] for k in self._grid(newest)])

    def looks(self, line: Line) -> list[int]:
        """The few grid times, spread over `line`, by which it is judged."""
        newest = self.newest(line)
        return sorted({newest[round(i)] for i in np.linspace(0, len(newest) - 1, LOOKS)})

    @property
    def megabytes(self) -> float:
        """Memory that the frames take."""
        pictures = (p for frames in self.frames.values() for p in frames.pictures)
        return sum(p.nbytes for p in pictures) / 1e6


def split(lines: Sequence[Line], seed: int) -> tuple[list[Line], list[Line]]:
    """(lines to learn from, held-out lines), about one in five held out, the same for a seed.

    Whole recordings are held out where there are at least five, else segments: lines of a
    recording that overlap in time stay together. What is held out has been heard in training:
    every query and answer stays there at least once. Raises RecordingsError where none is left.
    """
    unit_of = _units(lines)
    units: dict[Any, list[Line]] = defaultdict(list)
    for line, unit in zip(lines, unit_of, strict=True):
        units[unit].append(line)
    left = Counter(asked for its in units.values() for asked in {line.asked for line in its})
    names = list(units)
    wanted = max(1, round(len(lines) / HELD_OUT))
    held: set[Any] = set()
    count = 0
    for index in np.random.default_rng(seed).permutation(len(names)):
        its = units[names[index]]
        asked = {line.asked for line in its}
        if count >= wanted or any(left[one] < 2 for one in asked):
            continue
        held.add(names[index])
        count += len(its)
        left.subtract(asked)
    if not held:
        raise RecordingsError(
            "No segment can be held out to judge by: every answer is there once; record what is "
            "to be learnt at least twice, better ten times."
        )
    parts: tuple[list[Line], list[Line]] = ([], [])
    for line, unit in zip(lines, unit_of, strict=True):
        parts[unit in held].append(line)
    return parts


def _units(lines: Sequence[Line]) -> list[Any]:
    """What each line is held out together with: its recording, or its segment of one."""
    if len({line.source.path for line in lines}) >= RECORDINGS:
        return [line.source.path for line in lines]
    units: dict[Line, Any] = {}
    ends: dict[Path, float] = {}
    segment = 0
    for line in sorted(lines, key=lambda line: (line.source.path, line.start)):
        path = line.source.path
        if line.start >= ends.get(path, -1.0):
            segment += 1
        ends[path] = max(line.end, ends.get(path, 0.0))
        units[line] = segment
    return [units[line] for line in lines]


class RecordedClips(IterableDataset):
    """An endless stream of clips of `lines`, answers balanced, the same for a seed.

    Items are those of `ClipDataset` without `state`, with one question each. Views are zoomed,
    shifted and recoloured a little, never mirrored: left and right keep their meaning.
    """

    def __init__(self, recordings: Recordings, lines: Sequence[Line], seed: int) -> None:
        self.recordings, self.seed = recordings, seed
        by_answer = defaultdict(list)
        for line in lines:
            by_answer[line.asked].append(line)
        self.by_answer = list(by_answer.values())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        rng = np.random.default_rng(self.seed)
        while True:
            yield self.draw(rng)

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """One clip of a random answer."""
        lines = self.by_answer[rng.integers(len(self.by_answer))]
        line = lines[rng.integers(len(lines))]
        newest = self.recordings.newest(line)
        clip = self.recordings.cut(line, newest[rng.integers(len(newest))])
        view = View(np.eye(2) * rng.uniform(0.92, 1.12), rng.uniform(-0.04, 0.04, 2))
        return item(augment(np.stack([view.picture(frame) for frame in clip]), rng), line)


def item(frames: np.ndarray, line: Line) -> dict[str, Any]:
    """A clip and what is asked of it; two answers mean the same if only their case differs."""
    return {
        "frames": frames, "queries": [line.query], "answers": [line.answer],
        "meanings": [meaning(line.answer)],
    }  # fmt: skip


def meaning(answer: str) -> str:
    """What an answer means: itself, but for its case and a full stop."""
    return answer.casefold().rstrip(".! ")
