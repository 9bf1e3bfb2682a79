"""What footage of a robot's own camera says of thresholds, without labels.

Invariant: what is found follows from the footage and the model alone. A threshold that was found
where the truth is known is not given up for a guess, and nothing becomes familiar by being seen:
a bundle that knows its world keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from vljepa_ros.errors import VLJepaError
from vljepa_ros.inference.familiarity import FEWEST, Familiarity, fit, pool
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.perception.change import ChangeDetector
from vljepa_ros.perception.gate import MOST
from vljepa_ros.perception.perceiver import Perceiver, Step
from vljepa_ros.perception.settings import Settings

from .offline import RecordedFrame, perceive

SHORTEST = 20.0  # seconds of footage
SMALL = 96  # pixels: the height of the pictures that are kept
FACTOR = 2.2  # times what noise ranges over in 2 s is more than it does to any block of a clip
LEAST = 1.0  # grey levels; below is no camera's noise
MOST_CHANGES = 60 / 2.85  # a minute: the paper's saving against 1 Hz
FLAT, ALIKE = 2.0, 0.9  # a curve is flat where it keeps that share over that factor of thresholds
THRESHOLDS = 48  # that the change detector is tried with
PIECE = 10.0  # seconds of footage that are fitted to, and as many that are held out
FIRED_NEVER = 0.05  # at most, of the conditions that do not hold, in a minute
UNKNOWN_SHARE = 0.01  # of the bundle's own world, that is muted
# What a robot's camera hardly ever sees.
NEVER = (
    "a volcano erupts", "a whale jumps out of the sea", "an elephant crosses a river",
    "a rocket starts", "a ship sinks", "an orchestra plays in a concert hall",
    "penguins walk over the ice", "a parachutist lands", "a train leaves the station",
    "a horse jumps over a fence", "a surfer rides a wave", "a bridge collapses",
    "a lion chases a zebra", "a plane takes off", "a skier races down a slope",
    "a judge speaks in court", "a shark swims by", "a camel walks through the desert",
    "fireworks explode over a city", "a tractor ploughs a field", "bees fly around a hive",
    "a boxer is knocked out", "a tornado tears a roof off", "a bride throws her bouquet",
    "a climber reaches the summit", "a cow is milked", "a submarine dives",
    "a footballer scores a goal", "a waterfall freezes", "soldiers march in a parade",
    "a snake sheds its skin", "a hot air balloon rises", "a racing car spins",
    "a diver finds a wreck", "a circus acrobat falls into the net", "a tree is felled",
    "a glacier breaks into the sea", "a shepherd leads his flock", "an astronaut floats in space",
    "a crane lifts a container onto a ship",
)  # fmt: skip


class CalibrationError(VLJepaError):
    """The footage does not say what it is to say."""


@dataclass(frozen=True)
class Source:
    """Footage that can be seen again: its name, its cameras, and its frames from the start."""

    name: str
    cameras: tuple[str, ...]
    frames: Callable[[], Iterable[RecordedFrame]]


@dataclass
class Footage:
    """What a model makes of one camera's footage, with nothing passed over; a row for each step.

    `seconds` since the first step, `embeddings` `[E]` of the first standing query, `pooled` visual
    tokens `[Dv]`, `pictures`, small, RGB uint8, of the newest frame. `noise`: grey levels, as
    the gate learns it, from when it knows any.
    """

    name: str
    steps: list[Step] = field(default_factory=list)
    pooled: list[np.ndarray] = field(default_factory=list)
    noise: list[float] = field(default_factory=list)
    pictures: list[np.ndarray] = field(default_factory=list)

    @property
    def seconds(self) -> np.ndarray:
        """float64 `[S]`."""
        stamps = np.array([step.stamp_ns for step in self.steps], np.int64)
        return (stamps - stamps[:1]) / 1e9

    @property
    def positions(self) -> np.ndarray:
        """Where the steps lie in the footage, seconds from its first frame, float64 `[S]`."""
        first = self.steps[0]
        return np.asarray(self.seconds + (first.stamp_ns - first.window_start_ns) / 1e9)

    @property
    def minutes(self) -> float:
        """How long it is, from its first step to its last."""
        return float(self.seconds[-1]) / 60 if self.steps else 0.0


def observe(model: Runtime, source: Source, tell: Callable[[RecordedFrame], None]) -> list[Footage]:
    """Every step of a source's cameras, each encoded; `tell(frame)` of each that has some."""
    perceiver = Perceiver(model, source.cameras, Settings(gate_threshold=0.0))
    found = {name: Footage(f"{source.name}: {name}") for name in source.cameras}
    for frame, picture, steps in _perceived(source, perceiver):
        tell(frame)
        seen, own = perceiver.seen(frame.camera), found[frame.camera]
        first = perceiver.first(steps)
        if seen is None or not first:
            continue
        own.steps += first
        own.pooled.append(pool(seen.tokens))
        level = perceiver.noise(frame.camera)
        own.noise += [] if level is None else [level]
        width = max(1, round(SMALL * picture.shape[1] / picture.shape[0]))
        own.pictures.append(cv2.resize(picture, (width, SMALL), interpolation=cv2.INTER_AREA))
    return [footage for footage in found.values() if len(footage.steps) > 1]


@dataclass(frozen=True)
class Run:
    """How a bundle does on footage, run as the node would: shares, and changes a minute."""

    passed_over: float
    changes_per_minute: float
    unfamiliar: float


def run(model: Runtime, sources: Sequence[Source], tell: Callable[[RecordedFrame], None]) -> Run:
    """As the robot runs it, by its bundle's thresholds."""
    steps: list[Step] = []
    minutes = 0.0
    for source in sources:
        perceiver = Perceiver(model, source.cameras, Settings())
        own = []
        for frame, _, found in _perceived(source, perceiver):
            tell(frame)
            own += perceiver.first(found)
        for name in source.cameras:
            stamps = [step.stamp_ns for step in own if step.camera == name]
            minutes += (stamps[-1] - stamps[0]) / 6e10 if stamps else 0.0
        steps += own
    count = max(1, len(steps))
    return Run(
        sum(step.encoded == 0 for step in steps) / count,
        sum(step.change is not None for step in steps) / max(minutes, 1e-9),
        sum(model.bundle.is_unfamiliar(step.familiarity) for step in steps) / count,
    )


def _perceived(
    source: Source, perceiver: Perceiver
) -> Iterator[tuple[RecordedFrame, np.ndarray, list[Step]]]:
    return perceive(source.frames(), perceiver, lambda frame, reason: None)


def check(footages: Sequence[Footage]) -> None:
    """CalibrationError where there is too little to say anything."""
    seconds = 60 * sum(footage.minutes for footage in footages)
    if seconds < SHORTEST:
        raise CalibrationError(
            f"There are {seconds:.1f} s of footage; {SHORTEST:g} s is the least, and some minutes "
            "of what the camera usually sees are better."
        )


def gate_noise(footages: Sequence[Footage]) -> float:
    """The gate's threshold, grey levels: more than a still scene of this camera does by itself.

    A gate that learns goes on from there, block by block; one that does not takes it for all.
    """
    levels = [level for footage in footages for level in footage.noise]
    if not levels:
        raise CalibrationError("No camera's footage is long enough in one piece; give more.")
    return round(float(np.clip(FACTOR * np.median(levels), LEAST, MOST)), 2)


def change_curve(model: Runtime, footages: Sequence[Footage]) -> tuple[np.ndarray, np.ndarray]:
    """Thresholds, rising, and how many changes a minute the footage has at each."""
    minutes = sum(footage.minutes for footage in footages)
    scores = np.concatenate([_scores(model, f, 1.0)[0] for f in footages])
    highest = float(scores.max())
    thresholds = np.geomspace(max(highest / 300, 1e-6), max(1.05 * highest, 2e-6), THRESHOLDS)
    rates = [
        sum(_scores(model, footage, float(t))[1] for footage in footages) / minutes
        for t in thresholds
    ]
    return thresholds, np.array(rates)


def _scores(model: Runtime, footage: Footage, threshold: float) -> tuple[np.ndarray, int]:
    """The change scores of footage, but for its first step, and how many changes there are."""
    change = model.bundle.change
    detector = ChangeDetector(threshold, change.candidate, change.min_segment, change.hysteresis)
    states = [detector.update(step.stamp_ns, step.embedding) for step in footage.steps]
    return np.array([s.score for s in states[1:]]), sum(s.changed for s in states[1:])


def at_rate(thresholds: np.ndarray, rates: np.ndarray, wanted: float) -> float:
    """The lowest threshold with at most `wanted` changes a minute."""
    return float(thresholds[np.flatnonzero(rates <= wanted)[0]])


def at_knee(thresholds: np.ndarray, rates: np.ndarray) -> float:
    """The middle of where the curve of rates is flat, right of its knee.

    Left of it every wobble is a change, right of it even what happens is none. Where it is flat
    nowhere, or higher than that, the lowest threshold with at most `MOST_CHANGES`.
    """
    if rates.max() <= 0:
        raise CalibrationError("Nothing changes in the footage; give some in which things happen.")
    most = at_rate(thresholds, rates, MOST_CHANGES)
    best, flat = FLAT, most
    for first, rate in enumerate(rates):
        alike = np.flatnonzero((rates > 0) & (rates >= ALIKE * rate))
        width = thresholds[alike[-1]] / thresholds[first] if len(alike) else 0.0
        if width > best and thresholds[first] >= most:
            best, flat = width, np.sqrt(thresholds[first] * thresholds[alike[-1]])
    return float(flat)


def watch_threshold(
    model: Runtime, footages: Sequence[Footage], never: Sequence[str] = NEVER
) -> float:
    """The lowest cosine at which few of the conditions fire that do not hold, in a minute."""
    texts = model.embed_text(list(never))
    highest = []
    for footage in footages:
        cosines = np.stack([step.embedding for step in footage.steps]) @ texts.T
        minute = (footage.seconds // 60).astype(int)
        highest += [cosines[minute == m].max(0) for m in np.unique(minute)]
    found = float(np.quantile(np.concatenate(highest), 1 - FIRED_NEVER))
    return float(np.clip(np.ceil(100 * found + 0.5) / 100, 0.01, 0.99))


def fit_familiarity(footages: Sequence[Footage]) -> Familiarity | None:
    """Fitted to every second piece of the footage, the others held out; None: there is too little.

    What is familiar then is what the camera saw here, which is not what the model knows.
    """
    parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for footage in footages:
        for second, pooled in zip(footage.seconds, footage.pooled, strict=True):
            parts[int(second // PIECE) % 2].append(pooled)
    if min(len(part) for part in parts) < FEWEST:
        return None
    return fit(np.stack(parts[0]), np.stack(parts[1]))


def adapted(threshold: float, footages: Sequence[Footage]) -> float:
    """The threshold of a bundle that knows its world, for another camera in it.

    It is lowered to what this camera sees, by half at most, where the footage is that world: where
    most of it is known. Elsewhere it stays, and the footage is what the bundle does not know.
    """
    values = np.array([step.familiarity for footage in footages for step in footage.steps])
    if np.median(values) < threshold:
        return threshold
    wanted = float(np.quantile(values, UNKNOWN_SHARE))
    return round(min(threshold, max(threshold / 2, wanted)), 3)
