"""A user's own recordings: the clips that the lines which describe them hold.

Invariant: a frame of a clip is the picture that the camera had shown last by that time, so a clip
is a function of the recording and its time alone; a line in whose time the camera showed nothing
new is refused.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from vljepa_ros.bundle.spec import ClipSpec
from vljepa_ros.errors import VLJepaError
from vljepa_ros.inference.preprocess import prepare
from vljepa_ros.recordings.bags import bag_pictures
from vljepa_ros.recordings.left_out import LeftOut
from vljepa_ros.recordings.lerobot.dataset import EpisodeError
from vljepa_ros.recordings.lerobot.pictures import Picture, pictures
from vljepa_ros.recordings.lerobot.rows import Rows
from vljepa_ros.recordings.video import VideoSource
from vljepa_ros.tabletop.clips import View, augment

from .lines import Given, Line, RecordingsError, Source, refuse

FINER = 2  # pictures kept for one frame of a clip, so that clips may begin in between
HELD_OUT = 5  # one part in so many
RECORDINGS = 5  # from so many on, whole recordings are held out
LOOKS = 3  # clips that a held-out line is judged by
ENDS_LATE = 0.1  # s that an `end` may lie behind the last picture
EQUAL = 1e-6  # s by which times that are equal may differ


@dataclass
class Frames:
    """The pictures of one source that its lines need, small, on a grid of times.

    `row[k]` is the row in `pictures` (uint8 `[n, S, S, 3]`) of the picture at grid time k.
    """

    row: dict[int, int] = field(default_factory=dict)
    pictures: list[np.ndarray] = field(default_factory=list)


class Recordings:
    """All lines with their frames in memory.

    `resample` and `resize`: how the model wants its pictures (`prepare`). Raises RecordingsError
    with every line of a file that is wrong or whose clips cannot be cut. What cannot be used of a
    data set is left out, as far as anything is left.
    """

    def __init__(
        self, given: Given, clip: ClipSpec, resample: str = "area", resize: str = "shorter_side"
    ) -> None:
        self.clip = clip
        self.resample, self.resize = resample, resize
        self.rate = FINER * clip.sample_rate  # of the grid
        self.span = clip.span_ns / 1e9
        self.frames: dict[Source, Frames] = {}
        self.left_out = list(given.left_out)  # sentences
        by_source = defaultdict(list)
        for line in given.lines:
            by_source[line.source].append(line)
        found, unused = dict(given.problems), LeftOut()
        lost = set[int]()
        for source, its in by_source.items():
            wrong = self._wrong(source, its)
            if source.episode is None:
                found.update(wrong)
                continue
            for problem in wrong.values():
                unused.episode(source.episode.dataset.name, source.episode.index, problem)
            lost.update(wrong)
        self.left_out += unused.sentences()
        self.lines = [line for line in given.lines if line.number not in lost]
        refuse(given.file, found, self.left_out)
        if not self.lines:
            raise RecordingsError(
                "\n".join([f"{given.name} gives nothing to learn from.", *self.left_out])
            )

    def _wrong(self, source: Source, lines: Sequence[Line]) -> dict[int, str]:
        """Read the frames of these lines of a source; what is wrong with which line."""
        try:
            self.frames[source], times, seconds = self._read(source, lines)
        except EpisodeError as error:
            return {line.number: error.reason for line in lines}
        except VLJepaError as error:
            return {line.number: str(error) for line in lines}
        problems = {line.number: _problem(line, times, seconds) for line in lines}
        return {number: problem for number, problem in problems.items() if problem}

    def _read(self, source: Source, lines: Sequence[Line]) -> tuple[Frames, list[float], float]:
        """The frames that `lines` need, the times of the pictures, the length in seconds.

        What lies behind the last line is not looked at; the length is then infinite.
        """
        needed = self._needed(lines)
        wanted = next(needed, None)
        behind = max(line.end for line in lines) + EQUAL
        frames, times, left_out = Frames(), list[float](), LeftOut()
        shown: Picture | None = None

        def take(until: float) -> None:
            """Give the picture that is shown now to the needed times before `until`."""
            nonlocal wanted
            before = wanted
            while wanted is not None and wanted / self.rate < until - EQUAL:
                frames.row[wanted] = len(frames.pictures)
                wanted = next(needed, None)
            if wanted != before and shown is not None:
                frames.pictures.append(self._prepared(shown()))

        footage = _Footage(source, left_out)
        for at, picture in footage.pictures():
            if shown is not None:
                take(at)
            shown = picture
            times.append(at)
            if wanted is None and at > behind:
                seconds = math.inf
                break
        else:
            if shown is None:
                why = "; ".join(left_out.sentences()) or "there are none."
                raise RecordingsError(f"{source.path} gives no pictures on {source.topic}: {why}")
            seconds = footage.seconds(times)
            take(seconds + ENDS_LATE + 2 * EQUAL)
        self.left_out += left_out.sentences()
        return frames, times, seconds

    def _prepared(self, picture: np.ndarray) -> np.ndarray:
        return prepare(picture, self.clip.image_size, self.resample, self.resize)

    def _needed(self, lines: Iterable[Line]) -> Iterator[int]:
        """The grid times of all clips of `lines`, rising."""
        spans = [(self.grid(newest[0])[0], newest[-1]) for newest in map(self.newest, lines)]
        following = 0
        for first, last in sorted(spans):
            yield from range(max(first, following), last + 1)
            following = max(following, last + 1)

    def newest(self, line: Line) -> range:
        """The grid times at which a clip of `line` may end.

        It ends in the line's later half, or earlier where all of it lies inside the line; what it
        shows first may lie before `start`.
        """
        first = min(line.start + self.span, (line.start + line.end) / 2)
        last = math.floor(line.end * self.rate + 1e-6)
        return range(min(math.ceil(first * self.rate - 1e-6), last), last + 1)

    def grid(self, newest: int) -> list[int]:
        """The grid times of a clip's frames; what would lie before the start is the start."""
        return [max(0, newest - FINER * back) for back in range(self.clip.frames)][::-1]

    def cut(self, line: Line, newest: int) -> np.ndarray:
        """The clip of `line` that ends at grid time `newest`: uint8 `[T, S, S, 3]`."""
        frames = self.frames[line.source]
        return np.stack([frames.pictures[frames.row[k]] for k in self.grid(newest)])

    def looks(self, line: Line) -> list[int]:
        """The few grid times, spread over `line`, by which it is judged."""
        newest = self.newest(line)
        return sorted({newest[round(i)] for i in np.linspace(0, len(newest) - 1, LOOKS)})

    @property
    def megabytes(self) -> float:
        """Memory that the frames take."""
        pictures = (p for frames in self.frames.values() for p in frames.pictures)
        return sum(p.nbytes for p in pictures) / 1e6


class _Footage:
    """The pictures of a source, and how long it lasts."""

    def __init__(self, source: Source, left_out: LeftOut) -> None:
        self._source, self._left_out = source, left_out
        self._rows = Rows(source.episode) if source.episode is not None else None
        is_video = self._rows is None and not source.topic
        self._video = VideoSource(source.path, tell=left_out.say) if is_video else None

    def pictures(self) -> Iterator[tuple[float, Picture]]:
        """(seconds from the start, what makes RGB uint8 `[H, W, 3]`) of every picture."""
        if self._rows is not None:
            yield from pictures(self._rows)
        elif self._video is not None:
            for offset, picture in self._video.frames():
                yield offset / 1e9, partial(np.asarray, picture)
        else:
            for at, picture in bag_pictures(self._source.path, self._source.topic, self._left_out):
                yield at, partial(np.asarray, picture)

    def seconds(self, times: Sequence[float]) -> float:
        """Its length, after a whole run that gave pictures at `times`."""
        if self._rows is not None:
            return self._rows.end
        if self._video is not None:
            return self._video.seconds
        return 2 * times[-1] - times[max(0, len(times) - 2)]


def _problem(line: Line, times: Sequence[float], seconds: float) -> str:
    """Why `line` has no clips in a recording of `seconds` with pictures at `times`, or ""."""
    name = str(line.source)
    if line.end > seconds + ENDS_LATE:
        return f"'end' is {line.end:g}, and {name} lasts {seconds:.2f} s."
    following = bisect_left(times, line.start - EQUAL)
    if following < len(times) and times[following] <= line.end + EQUAL:
        return ""
    there = [f"{at:.3f} s" for at in times[max(0, following - 1) : following + 1]]
    return (
        f"{name} shows no new picture from {line.start:g} to {line.end:g} s, but at "
        f"{' and then at '.join(there)}."
    )


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
    if len({line.source.recording for line in lines}) >= RECORDINGS:
        return [line.source.recording for line in lines]
    units: dict[Line, Any] = {}
    ends: dict[Any, float] = {}
    segment = 0
    for line in sorted(lines, key=lambda line: (line.source.recording, line.start)):
        its = line.source.recording
        if line.start >= ends.get(its, -1.0):
            segment += 1
        ends[its] = max(line.end, ends.get(its, 0.0))
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
