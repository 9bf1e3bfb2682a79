"""What a bundle made of a recording, or a store remembers, as tracks over time that can be drawn.

Invariant: a track holds what the nodes would have published, and nothing that was not seen. Truth
is not needed; where a video has it beside it, it says which sentences are right.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.memory.moment import Moment
from vljepa_ros.perception.compressed import compressed_to_rgb
from vljepa_ros.perception.images import FULL_RANGE
from vljepa_ros.perception.perceiver import Perceiver, Step
from vljepa_ros.perception.settings import Settings
from vljepa_ros.recordings.bags import Elapsed
from vljepa_ros.recordings.indexing.recording import Recording
from vljepa_ros.recordings.left_out import LeftOut
from vljepa_ros.recordings.offline import RecordedFrame, perceive
from vljepa_ros.stamps import SECOND_NS
from vljepa_ros.words.speaker import Speaker

HEIGHT = 120  # pixels of a key frame
PAUSE = 60.0  # seconds without a moment that end a session of a store

Spans = tuple[tuple[float, float], ...]  # from, to, in seconds


@dataclass(frozen=True)
class Mark:
    """A change. `at`: seconds, when it was detected; `start`: when the new meaning began.

    `text`: what was said of it; empty: nothing. `picture`: RGB uint8 `[H, W, 3]`, or None.
    `verdict`: by the truth, `right`, `half` (its kind alone) or `wrong`; empty: nobody knows.
    """

    at: float
    start: float
    text: str
    picture: np.ndarray | None
    verdict: str = ""


@dataclass
class Track:
    """One camera's stream from 0 to `length` seconds.

    `times`, `scores`: of the steps; empty where only moments are known, whose `segments` those are.
    `shaded`: what is to be set off. `origin_ns`: the stamp at 0 seconds where that is a date; else
    0. `skipped`: the share of steps that nothing was encoded for. `speaks`: whether anybody would
    put changes into words.
    """

    name: str
    length: float = 0.0
    times: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    segments: Spans = ()
    shaded: Spans = ()
    origin_ns: int = 0
    skipped: float = 0.0
    speaks: bool = True

    @property
    def said(self) -> int:
        """How many changes were put into words."""
        return sum(bool(mark.text) for mark in self.marks)


def of_recording(
    model: Runtime,
    recording: Recording,
    speaker: Speaker | None,
    left_out: LeftOut,
    tell: Callable[[float], None] = lambda seconds: None,
) -> list[Track]:
    """A track of each camera with a step, for the first standing query, run as the nodes would.

    `speaker`: who puts changes into words. `tell` gets the seconds that are done. Raises BagError,
    VideoError.
    """
    perceiver = Perceiver(model, list(recording.cameras.values()), Settings())
    writers = {
        name: _Writer(recording, Track(name, speaks=speaker is not None))
        for name in perceiver.cameras
    }

    def reject(frame: RecordedFrame, reason: str) -> None:
        left_out.image(f"of camera '{frame.camera}' cannot be used", reason)

    for frame, picture, steps in perceive(
        recording.frames(left_out, FULL_RANGE), perceiver, reject
    ):
        at = writers[frame.camera].at(frame)
        for step in perceiver.first(steps):
            writers[frame.camera].step(at, step, picture, _words(model, speaker, step))
        tell(at)
    found = [writer.track() for writer in writers.values() if writer.steps]
    return [_judged(track, recording.path) for track in found] if recording.is_video else found


def _words(model: Runtime, speaker: Speaker | None, step: Step) -> str:
    """What is said of a step: nothing, unless it is a change to something known."""
    if speaker is None or step.change is None or model.bundle.is_unfamiliar(step.familiarity):
        return ""
    said = speaker.say(step.embedding)
    return "" if said.doubt else said.text


class _Writer:
    """Makes the track of one camera, step by step."""

    def __init__(self, recording: Recording, track: Track) -> None:
        self._track = track
        self._elapsed = Elapsed()
        self._first_ns = recording.first_ns
        self.steps = self._encoded = 0

    def at(self, frame: RecordedFrame) -> float:
        """Where a frame lies, in seconds: its position in a video.

        In a bag, whose clock may have been set, the time since the first, as it was recorded.
        """
        if self._first_ns:
            return (frame.stamp_ns - self._first_ns) / 1e9
        if not self.steps:
            self._track.origin_ns = frame.stamp_ns
        return self._elapsed.add(frame.log_ns)

    def step(self, at: float, step: Step, picture: np.ndarray, text: str) -> None:
        track = self._track
        self.steps += 1
        self._encoded += step.encoded > 0
        track.times.append(at)
        track.scores.append(step.change_score)
        if step.change is not None:
            ago = (step.stamp_ns - step.change.segment_start_ns) / 1e9
            track.marks.append(Mark(at, max(0.0, at - ago), text, _small(picture)))

    def track(self) -> Track:
        track = self._track
        track.length = max(track.times[-1], 1e-3)
        track.skipped = 1 - self._encoded / self.steps
        return track


def of_moments(moments: Sequence[Moment]) -> list[Track]:
    """A track of each camera, episode and session of a store's moments, in the order of their time.

    A session ends where nothing was seen for `PAUSE` seconds. Of several standing questions the one
    with the most moments is taken.
    """
    found: list[Track] = []
    streams: dict[tuple[int, str], list[Moment]] = defaultdict(list)
    for moment in sorted(moments, key=lambda m: m.start_ns):
        streams[moment.episode, moment.camera].append(moment)
    for _, stream in sorted(streams.items()):
        query, _ = Counter(moment.query for moment in stream).most_common(1)[0]
        session: list[Moment] = []
        for moment in (m for m in stream if m.query == query):
            if session and moment.start_ns - session[-1].end_ns > PAUSE * SECOND_NS:
                found.append(_session(session))
                session = []
            session.append(moment)
        found.append(_session(session))
    return sorted(found, key=lambda track: track.origin_ns)


def _session(moments: Sequence[Moment]) -> Track:
    first = moments[0].start_ns
    dated = first >= 10**9 * SECOND_NS
    origin = first if dated else 0  # a video's times are positions in it

    def seconds(stamp_ns: int) -> float:
        return (stamp_ns - origin) / 1e9

    camera, episode = moments[0].camera, moments[0].episode
    name = f"{camera}, episode {episode}" if episode >= 0 else camera
    track = Track(name, max(seconds(moments[-1].end_ns), 1e-3), origin_ns=origin)
    track.marks = [
        Mark(seconds(m.start_ns), seconds(m.start_ns), m.text, _decoded(m.thumbnail))
        for m in moments
    ]
    track.segments = tuple((seconds(m.start_ns), seconds(m.end_ns)) for m in moments)
    return track


def _judged(track: Track, video: Path) -> Track:
    """The track with what is true, where that lies beside the video as the table's truth."""
    events = _truth(video)
    if not events:
        return track
    from .tasks.shipped import judge

    def verdict(mark: Mark) -> str:
        if not mark.text:
            return ""
        _, kind_right, right = judge(mark.text, mark.start, mark.at, events)
        return "right" if right else "half" if kind_right else "wrong"

    track.marks = [Mark(m.at, m.start, m.text, m.picture, verdict(m)) for m in track.marks]
    track.shaded = tuple((e["start"], e["end"]) for e in events if e["kind"] != "still")
    return track


def _truth(video: Path) -> list[dict[str, Any]]:
    """The events of a video of the simulated table; none where nothing of the kind is beside it."""
    try:
        data = json.loads(video.with_suffix(".json").read_text(encoding="utf-8"))
        events = data["events"]
        wanted = {"kind", "object", "start", "end", "text"}
        return list(events) if all(wanted <= event.keys() for event in events) else []
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []


def _small(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    size = (max(1, round(width * HEIGHT / height)), HEIGHT)
    shrinks = height > HEIGHT
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(small, np.uint8)


def _decoded(jpeg: bytes) -> np.ndarray | None:
    try:
        return _small(compressed_to_rgb("jpeg", jpeg))
    except ValueError:
        return None
