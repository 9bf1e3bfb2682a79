"""Tracks over time, drawn: key frames, change score, and what was said.

Invariant: whatever the length, letters keep their size, and no two sentences lie on each other:
long streams are drawn in rows, and what finds no room is counted instead.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import FuncFormatter, MultipleLocator

from .tracks import Mark, Spans, Track

INK, FAINT, QUIET = "#1f3a5f", "#7d8ea3", "#e8ecf1"
VERDICTS = {"right": "#1b7f4d", "half": "#a8740a", "wrong": "#b3402a", "": INK}

# Inches.
WIDTH, LEFT, RIGHT, TOP, BOTTOM = 15.0, 0.62, 0.25, 0.72, 0.12
FRAME, CAPTION, LEADERS = 1.05, 0.17, 0.2  # a key frame, its time, the lines to its place
SCORE, SEGMENTS, AXIS, BETWEEN = 1.0, 0.3, 0.36, 0.3
LINE = 0.19  # of a sentence
ROOM = WIDTH - LEFT - RIGHT
DPI = 110

LETTERS = 9  # points
LONGEST = 64  # characters of a sentence
LANES = 12  # of sentences in a row
ROWS = 8  # of a picture
STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)  # of ticks
_MEASURE, _FONT = RendererAgg(1, 1, DPI), FontProperties(size=LETTERS)
SPANS = (90, 120, 180, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)  # seconds of a row


@dataclass(frozen=True)
class _Row:
    """A stretch of a track, `end` in its seconds, with the sentences that find room in it."""

    track: Track
    start: float
    end: float
    marks: list[Mark]
    lanes: list[list[tuple[float, Mark]]]  # of each: (left in inches, mark)

    @property
    def height(self) -> float:
        """In inches."""
        middle = SCORE if self.track.times else SEGMENTS
        return FRAME + CAPTION + LEADERS + middle + self.words + AXIS

    @property
    def words(self) -> float:
        """What the sentences take, in inches."""
        return LINE * max(1, len(self.lanes)) + 0.08 if self.track.speaks else 0.02

    def place(self, at: float) -> float:
        """Where a time lies, in inches from the left of the row."""
        return ROOM * (at - self.start) / (self.end - self.start)


def draw(title: str, tracks: Sequence[Track], out: Path, legend: str = "") -> str:
    """Write the picture, of one track at least; returns what found no room in it, in words.

    `legend`: what colours and shades mean. Raises OSError where it cannot be written.
    """
    rows = _rows(tracks)
    heights = [row.height + BETWEEN for row in rows]
    figure = plt.figure(figsize=(WIDTH, TOP + sum(heights) - BETWEEN + BOTTOM))
    _heading(figure, title, legend)
    top = figure.get_figheight() - TOP
    several = len(tracks) > 1
    for row, height in zip(rows, heights, strict=True):
        _draw_row(figure, row, top, several)
        top -= height
    figure.savefig(out, dpi=DPI)
    plt.close(figure)
    return _left_out(tracks, rows)


def _heading(figure: Figure, title: str, legend: str) -> None:
    up = figure.get_figheight()
    lines = textwrap.wrap(title, 150, max_lines=2, placeholder=" …")
    figure.text(LEFT / WIDTH, 1 - 0.16 / up, "\n".join(lines), fontsize=12, color=INK, va="top")
    if legend:
        figure.text(1 - RIGHT / WIDTH, 1 - 0.42 / up, legend, fontsize=LETTERS, color=FAINT,
                    va="top", ha="right")  # fmt: skip


def _rows(tracks: Sequence[Track]) -> list[_Row]:
    """The tracks in rows; the last ones where they are too many."""
    shown = list(tracks)[-ROWS:]
    each = max(1, ROWS // len(shown))
    rows = []
    for track in shown:
        span = next((s for s in SPANS if track.length <= s * each), track.length / each)
        span = min(span, track.length)
        for number in range(max(1, int(np.ceil(track.length / span - 1e-6)))):
            rows.append(_row(track, number * span, (number + 1) * span))
    return rows


def _row(track: Track, start: float, end: float) -> _Row:
    last = end >= track.length
    marks = [m for m in track.marks if start <= m.at < end or (last and m.at >= end)]
    row = _Row(track, start, end, marks, [])
    free: list[float] = []  # of each lane, from where on it is empty
    for mark in marks:
        if not mark.text:
            continue
        width = _width(_shown(mark))
        left = min(row.place(mark.at), ROOM - width)
        lane = next((i for i, begin in enumerate(free) if begin <= left), len(free))
        if lane >= LANES:
            continue
        free[lane : lane + 1] = [left + width + 0.12]
        row.lanes[lane : lane + 1] = [[*(row.lanes[lane] if lane < len(row.lanes) else []),
                                       (left, mark)]]  # fmt: skip
    return row


def _shown(mark: Mark) -> str:
    return textwrap.shorten(mark.text, LONGEST, placeholder=" …")


def _width(text: str) -> float:
    """Of a sentence, in inches."""
    width, _, _ = _MEASURE.get_text_width_height_descent(text, _FONT, False)
    return float(width) / DPI


def _left_out(tracks: Sequence[Track], rows: Sequence[_Row]) -> str:
    drawn = {id(row.track) for row in rows}
    said = sum(track.said for track in tracks)
    written = sum(len(lane) for row in rows for lane in row.lanes)
    parts = []
    if len(drawn) < len(tracks):
        parts.append(f"the last {len(drawn)} of {len(tracks)} stretches are drawn")
    if written < said:
        parts.append(f"{written} of {said} sentences find room")
    return "; ".join(parts)


# ------------------------------------------------------------------ a row


def _draw_row(figure: Figure, row: _Row, top: float, named: bool) -> None:
    clock = _clock(row.track)

    def axes(height: float) -> Axes:
        nonlocal top
        top -= height
        up = figure.get_figheight()
        return figure.add_axes((LEFT / WIDTH, top / up, ROOM / WIDTH, height / up))

    _key_frames(axes(FRAME + CAPTION + LEADERS), row, clock)
    middle = axes(SCORE if row.track.times else SEGMENTS)
    (_score if row.track.times else _segments)(middle, row)
    words = axes(row.words)
    _words(words, row)
    for one in (middle, words):
        one.set_xlim(row.start, row.end)
        _shade(one, row.track.shaded)
        one.spines[["top", "right", "left"]].set_visible(False)
    middle.spines["bottom"].set_visible(False)
    middle.tick_params(axis="x", bottom=False, labelbottom=False)
    step = next((s for s in STEPS if (row.end - row.start) / s <= 13), STEPS[-1])
    words.xaxis.set_major_locator(MultipleLocator(step, -(row.track.origin_ns / 1e9 % step)))
    words.xaxis.set_major_formatter(FuncFormatter(lambda at, _: clock(at, 0)))
    words.tick_params(axis="x", labelsize=LETTERS, colors=INK)
    label = ", ".join(filter(None, (row.track.name if named else "", _day(row.track))))
    words.set_xlabel(label, fontsize=LETTERS, color=INK, loc="left", labelpad=1)


def _clock(track: Track) -> Callable[[float, int], str]:
    """How a time of the track is written: as time of day where that is known, else from its start.

    It takes seconds, and how many digits of a second are to be there.
    """
    dated = track.origin_ns >= 10**18

    def write(at: float, digits: int) -> str:
        if dated:
            when = datetime.fromtimestamp(track.origin_ns / 1e9 + at)
            return when.strftime("%H:%M:%S") + (f".{when.microsecond // 100000}" * (digits > 0))
        if track.length < 60:
            return f"{at:.{max(digits, int(track.length < 10))}f} s"
        minutes, seconds = divmod(round(at, digits), 60)
        hours, minutes = divmod(int(minutes), 60)
        rest = f"{minutes:02d}" if hours else f"{minutes}"
        width = 2 if not digits else 3 + digits
        return f"{f'{hours}:' if hours else ''}{rest}:{seconds:0{width}.{digits}f}"

    return write


def _day(track: Track) -> str:
    if track.origin_ns < 10**18:
        return ""
    return datetime.fromtimestamp(track.origin_ns / 1e9).strftime("from %Y-%m-%d %H:%M:%S on")


def _key_frames(axes: Axes, row: _Row, clock: Callable[[float, int], str]) -> None:
    """The pictures of changes, as near to their times as they fit; of many an even choice."""
    axes.set_xlim(0, ROOM)
    axes.set_ylim(0, FRAME + CAPTION + LEADERS)
    axes.axis("off")
    marks = [(mark.at, mark.picture) for mark in row.marks if mark.picture is not None]
    if not marks:
        why = "no pictures" if row.marks else "nothing changed"
        axes.text(ROOM / 2, LEADERS + CAPTION + FRAME / 2, why, ha="center", color=FAINT,
                  fontsize=LETTERS)  # fmt: skip
        return
    widest = max(picture.shape[1] / picture.shape[0] for _, picture in marks) * FRAME
    most = max(1, int(ROOM / (widest + 0.06)))
    kept = np.unique(np.linspace(0, len(marks) - 1, min(len(marks), most)).round().astype(int))
    chosen = [marks[i] for i in kept]
    places = [row.place(at) for at, _ in chosen]
    lefts = _apart([place - widest / 2 for place in places], widest + 0.06, ROOM - widest)
    bottom = LEADERS + CAPTION
    for (at, picture), place, left in zip(chosen, places, lefts, strict=True):
        width = picture.shape[1] / picture.shape[0] * FRAME
        begin = left + (widest - width) / 2
        axes.imshow(picture, extent=(begin, begin + width, bottom, bottom + FRAME),
                    aspect="auto", interpolation="antialiased", zorder=2)  # fmt: skip
        middle = left + widest / 2
        axes.text(middle, LEADERS + 0.03, clock(at, 1), fontsize=7.5, color=INK, ha="center",
                  va="bottom")  # fmt: skip
        axes.plot([middle, place], [LEADERS, 0], color=FAINT, lw=0.6)
    axes.set_xlim(0, ROOM)
    axes.set_ylim(0, FRAME + CAPTION + LEADERS)


def _apart(wanted: Sequence[float], step: float, last: float) -> list[float]:
    """Places from 0 to `last`, in order, `step` apart at least, each near the one that it wants."""
    found: list[float] = []
    for place in wanted:
        found.append(max(place, 0.0 if not found else found[-1] + step))
    limit = last
    for i in reversed(range(len(found))):
        found[i] = min(found[i], limit)
        limit = found[i] - step
    return found


def _score(axes: Axes, row: _Row) -> None:
    track = row.track
    times, scores = np.array(track.times), np.array(track.scores)
    axes.plot(times, scores, color=INK, lw=1.1)
    axes.axhline(1.0, color=FAINT, lw=0.8, ls="--")
    _ticks(axes, row)
    axes.set_ylim(0, max(2.0, float(np.percentile(scores[1:], 99)) * 1.1 if len(scores) > 1 else 0))
    axes.set_yticks([0, 1], ["0", "1"], fontsize=LETTERS, color=INK)
    axes.tick_params(axis="y", colors=INK, length=2)
    axes.set_ylabel("change score", fontsize=LETTERS, color=INK)


def _segments(axes: Axes, row: _Row) -> None:
    """The moments side by side, every second one lighter."""
    for number, (start, end) in enumerate(row.track.segments):
        axes.axvspan(start, end, 0.15, 0.85, color=INK, alpha=0.65 if number % 2 else 0.35, lw=0)
    axes.set_yticks([])
    axes.set_ylabel("moments", fontsize=7.5, color=INK, rotation=0, ha="right", va="center",
                    labelpad=3)  # fmt: skip


def _words(axes: Axes, row: _Row) -> None:
    axes.set_ylim(-row.words, 0)
    axes.set_yticks([])
    scale = (row.end - row.start) / ROOM
    for number, lane in enumerate(row.lanes):
        y = -LINE * (number + 0.5) - 0.04
        for left, mark in lane:
            colour = VERDICTS[mark.verdict]
            axes.plot([mark.at, mark.at], [y, 0], color=colour, lw=0.6, alpha=0.6, zorder=2)
            axes.text(
                row.start + left * scale, y, _shown(mark), fontsize=LETTERS, color=colour,
                va="center", zorder=3,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85},
            )  # fmt: skip
    if not row.lanes and row.track.speaks:
        axes.text(row.start + 0.02 * scale, -row.words / 2, "nothing said", fontsize=LETTERS,
                  color=FAINT, va="center")  # fmt: skip


def _ticks(axes: Axes, row: _Row) -> None:
    """A line at each change."""
    for mark in row.marks:
        axes.axvline(mark.at, color=VERDICTS[mark.verdict], lw=0.7, alpha=0.6)


def _shade(axes: Axes, spans: Spans) -> None:
    for start, end in spans:
        axes.axvspan(start, end, color=QUIET, lw=0, zorder=0)
