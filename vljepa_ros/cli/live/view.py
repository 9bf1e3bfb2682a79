"""What `vljepa up` shows: the state of the stream, drawn for a terminal or as plain lines.

Invariant: this module only collects and draws; it knows neither nodes nor ROS.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from vljepa_ros.console import table_lines
from vljepa_ros.errors import counted
from vljepa_ros.stamps import clock, other_clock

BAR = 40  # characters of a score of FULL; all fits a terminal of 60 columns
FULL = 1.5  # change score at the bar's right end
HISTORY = 56  # scores in the sparkline
SAID = 10  # utterances on the screen
_BLOCKS = " ▁▂▃▄▅▆▇█"
UNIFORM = 1.0  # decodes per second of the baseline


@dataclass(frozen=True)
class Said:
    """One utterance. `start_ns`: the stamp at which the new meaning begins."""

    start_ns: int
    camera: str
    query: str
    text: str
    confidence: float
    source: str = ""


@dataclass
class CameraView:
    """One camera: rates in Hz, age of the newest frame in seconds, counters since the start."""

    rate_in: float = 0.0
    rate_out: float = 0.0
    age: float = 0.0
    dropped: int = 0
    encodes: int = 0
    reused: int = 0
    changes: int = 0
    decodes: int = 0
    unfamiliar: int = 0  # changes to what the model does not know
    first_ns: int | None = None
    last_ns: int = 0
    score: float = 0.0
    scores: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    problem: str = ""

    def seconds(self) -> float:
        """Seconds of stream time, which begins with the first clip."""
        return 0.0 if self.first_ns is None else (self.last_ns - self.first_ns) / 1e9

    def step(self, stamp_ns: int, window_start_ns: int, score: float) -> None:
        """A step came."""
        if self.first_ns is None:
            self.first_ns = window_start_ns
        self.last_ns = stamp_ns
        self.score = score
        self.scores.append(score)

    def numbers(self) -> str:
        """Rates, age and drops."""
        age = "of another clock" if other_clock(self.age) else f"{self.age * 1e3:.0f} ms"
        return (
            f"{self.rate_in:.1f} Hz in, {self.rate_out:.1f} Hz out, age {age}, "
            f"{self.dropped} dropped"
        )


@dataclass
class StreamView:
    """All cameras, what was said, and which model."""

    cameras: dict[str, CameraView]
    queries: int = 1
    model: str = "loading the model ..."
    said: list[Said] = field(default_factory=list)

    def seconds(self) -> float:
        """Seconds of stream time, summed over the cameras."""
        return sum(camera.seconds() for camera in self.cameras.values())

    def savings(self) -> tuple[int, int, int, int]:
        """Encodes, steps, decodes, and decodes of a uniform decoder at 1 Hz."""
        cameras = self.cameras.values()
        encodes = sum(c.encodes for c in cameras)
        steps = encodes + sum(c.reused for c in cameras)
        uniform = round(self.seconds() * UNIFORM) * self.queries
        return encodes, steps, sum(c.decodes for c in cameras), uniform

    def render(self) -> RenderableType:
        """The screen."""
        lines = Text("\n").join(line for c in self.cameras.items() for line in _lines(*c))
        said = Text()
        for item in self.said[-SAID:]:
            said.append(self._said(item) + "\n")
        return Group(
            Panel(lines, title=self.model, title_align="left"),
            Panel(said if self.said else Text("nothing yet", "dim"), title="said",
                  title_align="left"),
            Text(self.saved(), "dim"),
        )  # fmt: skip

    def saved(self) -> str:
        """Encodes and decodes saved, in a line."""
        encodes, steps, decodes, uniform = self.savings()
        return (
            f"{counted(steps, 'step')}, {encodes} encoded: the gate saved "
            f"{_percent(steps - encodes, steps)}. {counted(decodes, 'decode')} where uniform "
            f"decoding at {UNIFORM:g} Hz takes {uniform}: {_percent(uniform - decodes, uniform)} "
            f"saved{self._calls()}."
        )

    def _calls(self) -> str:
        """What a VLM that was asked on changes was spared, where one has spoken."""
        calls = sum(item.source == "vlm" for item in self.said)
        uniform = self.savings()[3]
        return f"; a VLM spoke {counted(calls, 'time')} instead of {uniform}" if calls else ""

    def _said(self, item: Said) -> str:
        who = f"{item.camera}: " if len(self.cameras) > 1 else ""
        asked = f"  [{item.query}]" if self.queries > 1 else ""
        return f"{clock(item.start_ns)}  {who}{item.text}  ({item.confidence:.2f}){asked}"

    def say(self, item: Said) -> str:
        """Take in an utterance; returns it as a plain line."""
        self.said.append(item)
        self.cameras[item.camera].decodes += 1
        return self._said(item)

    def status(self) -> str:
        """A plain line for where there is no terminal."""
        parts = [
            f"{name}: {c.problem}" if c.problem else f"{name}: {c.numbers()}, score {c.score:.2f}"
            for name, c in self.cameras.items()
        ]
        return "; ".join(parts)

    def summary(self) -> list[str]:
        """What is left to say at the end, in lines."""
        cameras = self.cameras.values()
        facts = (
            f"{self.seconds():.1f} s of stream, "
            f"{counted(sum(c.changes for c in cameras), 'change')}, "
            f"{counted(sum(c.dropped for c in cameras), 'frame')} dropped."
        )
        if unknown := sum(c.unfamiliar for c in cameras):
            facts += f" {unknown} of the changes are to what the model does not know."
        return [*([] if self.said else ["Nothing was said."]), facts, self.saved()]

    def words(self, room: int | None) -> list[str]:
        """What was said, as a table in `room` characters (None: any number)."""
        headings = ("time", "camera", "text", "confidence", "by")
        rows = [
            (clock(item.start_ns), item.camera, item.text, f"{item.confidence:.2f}", item.source)
            for item in self.said
        ]
        table = table_lines(headings, rows, ("confidence",), room)
        return ["What was said", *table, ""] if rows else []


def _lines(name: str, camera: CameraView) -> list[Text]:
    """One camera on the screen."""
    if camera.problem:
        return [Text(f"{name}  {camera.problem}", "yellow")]
    return [Text(f"{name}  {camera.numbers()}"), bar(camera.score), sparkline(camera.scores)]


def bar(score: float) -> Text:
    """A score as a bar with a mark at the threshold."""
    filled = round(BAR * min(max(score, 0.0) / FULL, 1.0))
    mark = round(BAR / FULL)
    cells = ["█" if i < filled else "·" for i in range(BAR)]
    cells[mark] = "┃"
    return Text(f"{''.join(cells)} {score:5.2f} change", "red" if score >= 1.0 else "green")


def sparkline(scores: deque[float]) -> Text:
    """The last scores as blocks; full height is FULL, changes are red."""
    line = Text()
    for score in scores:
        level = round((len(_BLOCKS) - 1) * min(max(score, 0.0) / FULL, 1.0))
        line.append(_BLOCKS[level], "red" if score >= 1.0 else "green")
    return line


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "nothing"
