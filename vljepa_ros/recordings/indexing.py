"""Recordings into moments, for `vljepa index`.

Invariant: the moments are those that the live nodes would have kept. What is indexed again
replaces itself, and nothing that is known of it otherwise is forgotten.
"""

from __future__ import annotations

import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from vljepa_ros.errors import VLJepaError
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.memory.moment import Moment
from vljepa_ros.memory.recorder import Recorder
from vljepa_ros.memory.store import MomentStore
from vljepa_ros.memory.writer import Writer
from vljepa_ros.perception.images import FULL_RANGE, Levels, Note
from vljepa_ros.perception.perceiver import Perceiver, Step
from vljepa_ros.perception.settings import Settings
from vljepa_ros.perception.thumbnails import thumbnail

from .bags import bag_info
from .offline import Frame, bag_frames, perceive, video_frames
from .stream_file import StreamFile
from .video import VideoSource

BATCH = 64  # moments that are written at once
BAG_FILES = (".db3", ".mcap")
# Ends of image topics that are no part of a camera's name.
IMAGE_NAMES = re.compile(r"/(image(_raw|_mono|_color|_rect|_rect_color)?|compressed)$")


class IndexingError(VLJepaError):
    """Recordings cannot be indexed."""


@dataclass(frozen=True)
class Recording:
    """A bag or a video: `cameras` by topic (a video's topic is empty), and about its length.

    `begin_ns`: when it begins, by its log times.
    """

    path: Path
    cameras: dict[str, str]
    seconds: float
    begin_ns: int

    @property
    def is_video(self) -> bool:
        """Whether it is a video, or a folder of images."""
        return "" in self.cameras

    def frames(self, levels: Levels, note: Note) -> Iterator[Frame]:
        """Its frames; `levels`, `note`: as for `to_rgb`."""
        if self.is_video:
            source = VideoSource(self.path, levels=levels, note=note)
            return video_frames(source, self.cameras[""], self.begin_ns)
        return bag_frames(self.path, self.cameras, levels, note)


def find_recordings(
    paths: Sequence[Path], topics: Sequence[str], names: Sequence[str], start_ns: int
) -> list[Recording]:
    """What the paths are, with their cameras. Raises VLJepaError."""
    if not paths:
        raise IndexingError("Say what to index: vljepa index BAG...")
    if names and len(names) != max(1, len(topics)):
        raise IndexingError("Give one --camera for each --topic.")
    found = [_recording(path, topics, names, start_ns) for path in paths]
    videos = Counter(one.cameras[""] for one in found if one.is_video)
    for name, count in videos.items():
        if count > 1:
            raise IndexingError(
                f"{count} videos are of camera '{name}' and begin at the same time; index them one "
                "by one, with --camera or --start."
            )
    return found


def _recording(path: Path, topics: Sequence[str], names: Sequence[str], start_ns: int) -> Recording:
    if not path.exists():
        raise IndexingError(f"There is no recording {path}.")
    if not _is_bag(path):
        if topics:
            raise IndexingError(f"{path} is no bag, and has no --topic.")
        seconds = VideoSource(path).seconds
        return Recording(path, {"": names[0] if names else _name(path.stem)}, seconds, start_ns)
    info = bag_info(path)
    for topic in topics:
        if topic not in info.image_topics:
            there = ", ".join(info.image_topics) or "no topic"
            raise IndexingError(f"{path} has no images on '{topic}', but on {there}.")
    if not info.image_topics:
        raise IndexingError(f"{path} holds no images (sensor_msgs Image or CompressedImage).")
    cameras: dict[str, str] = {}
    for topic in topics or info.image_topics:
        name = names[len(cameras)] if names else camera_of(topic)
        if name not in cameras.values():  # else the same camera, compressed
            cameras[topic] = name
        elif topics:
            raise IndexingError(f"Two topics are of camera '{name}'; give each a --camera.")
    return Recording(path, cameras, (info.end_ns - info.start_ns) / 1e9, info.start_ns)


def _is_bag(path: Path) -> bool:
    if path.is_dir():
        files = (path / "metadata.yaml", *path.iterdir())
        return any(file.is_file() and file.suffix in (*BAG_FILES, ".yaml") for file in files)
    return path.suffix in BAG_FILES


def camera_of(topic: str) -> str:
    """The camera's name from its topic: /front/image_raw/compressed is of front."""
    while (shorter := IMAGE_NAMES.sub("", topic)) != topic:
        topic = shorter
    return _name(topic)


def _name(text: str) -> str:
    """Letters, digits and underscores, as cameras are named."""
    name = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_")
    return name if name[:1].isalpha() else f"camera_{name}".rstrip("_")


@dataclass
class Indexer:
    """Makes moments of recordings, and counts; tells `show(seconds done, moments)`."""

    model: Runtime
    settings: Settings
    store: MomentStore
    robot: str
    words: bool
    file: StreamFile | None
    show: Callable[[float, int], None]
    levels: Levels = FULL_RANGE  # of 16-bit images
    moments: int = 0
    _done: float = 0.0  # seconds of recordings
    _began: float = field(default_factory=time.monotonic)
    # Reasons by the camera, and by what they have in common.
    _rejected: dict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))
    _silent: list[Path] = field(default_factory=list)
    _notes: dict[tuple[Path, str], str] = field(default_factory=dict)

    def index(self, recording: Recording) -> None:
        """Make moments of one recording. What was made stays where this is cut off."""
        perceiver = Perceiver(self.model, list(recording.cameras.values()), self.settings)
        writer = Writer(self.store)
        recorder = Recorder(self.robot, lambda m: writer.keep(self._completed(m)), writer.say)
        frames = recording.frames(self.levels, partial(self._note, recording.path))
        steps = 0
        try:
            for frame, picture, found in perceive(frames, perceiver, self._reject):
                recorder.thumbnail(frame.camera, frame.stamp_ns, thumbnail(picture))
                for step in found:
                    self._record(recorder, frame, step)
                steps += len(found)
                if writer.waiting >= BATCH:
                    writer.write()
                self.show(self._done + (frame.log_ns - recording.begin_ns) / 1e9, self.moments)
            recorder.flush()
        finally:
            writer.write()
        self._done += recording.seconds
        self.show(self._done, self.moments)
        if not steps:
            self._silent.append(recording.path)

    def _record(self, recorder: Recorder, frame: Frame, step: Step) -> None:
        place = (step.camera, step.query)
        recorder.step(*place, step.stamp_ns, step.segment_id, step.embedding)
        if self.file is not None:
            self.file.step(frame, step)
        change = step.change
        if change is None:
            return
        recorder.change(
            *place, change.segment_id, change.segment_start_ns,
            change.previous_segment_id, change.previous_segment_start_ns,
        )  # fmt: skip
        if self.words:
            began = time.monotonic()
            text = self.model.decode(step.embedding)
            confidence = self.model.confidence(text, step.embedding)
            recorder.words(*place, change.segment_id, text, confidence)
            if self.file is not None:
                self.file.utterance(frame, step, text, confidence, time.monotonic() - began)

    def _completed(self, moment: Moment) -> Moment:
        """The moment, with what the robot knew of it and the recording does not say."""
        self.moments += 1
        known = self.store.get(moment.id)
        if known is None:
            return moment
        if known.text and not moment.text:
            moment = replace(moment, text=known.text, confidence=known.confidence)
        return replace(moment, pose=known.pose)

    def _note(self, path: Path, text: str) -> None:
        """Keep what is to be said of a recording's pictures, once."""
        self._notes.setdefault((path, re.sub(r"\d+", "#", text)), text)

    def _reject(self, frame: Frame, reason: str) -> None:
        self._rejected[frame.camera, re.sub(r"\d+", "#", reason)].append(reason)

    def problems(self) -> list[str]:
        """What went wrong, in sentences."""
        clip = self.model.bundle.clip
        short = (
            f"{path} is too short: the model needs {clip.frames} frames in a row, "
            f"{1 / clip.sample_rate:g} s from one to the next."
            for path in self._silent
        )
        rejected = (
            f"{len(reasons)} images of camera '{camera}' cannot be used: {reasons[0]}"
            for (camera, _), reasons in self._rejected.items()
        )
        notes = (f"{path}: {text}" for (path, _), text in self._notes.items())
        return [*short, *rejected, *notes]

    def pace(self) -> str:
        """How long it took."""
        took = time.monotonic() - self._began
        return f"{self._done:.1f} s of recordings in {took:.1f} s, {self._done / took:.1f} x"
