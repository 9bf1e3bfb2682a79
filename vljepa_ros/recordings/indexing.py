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

from vljepa_ros.errors import VLJepaError, counted
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.memory.moment import Moment
from vljepa_ros.memory.recorder import Recorder
from vljepa_ros.memory.store import MomentStore
from vljepa_ros.memory.writer import Writer
from vljepa_ros.perception.images import FULL_RANGE, Levels
from vljepa_ros.perception.perceiver import Perceiver, Step
from vljepa_ros.perception.settings import Settings
from vljepa_ros.perception.thumbnails import thumbnail
from vljepa_ros.stamps import SECOND_NS
from vljepa_ros.words.speaker import Speaker

from .bag_files import is_bag
from .bags import Elapsed, bag_info
from .left_out import LeftOut, ranges
from .lerobot.dataset import Dataset, DatasetError, Episode, EpisodeError
from .lerobot.language import TASK, labels
from .lerobot.pictures import recorded_frames
from .lerobot.rows import Rows
from .lerobot.selection import (
    choose,
    fetch_episodes,
    is_meant,
    may_be_of_hub,
    open_dataset,
    unseen,
)
from .offline import RecordedFrame, bag_frames, perceive, video_frames
from .stream_file import StreamFile
from .video import VideoSource
from .video_file import VideoError

BATCH = 64  # moments that are written at once
# Ends of image topics that are no part of a camera's name.
IMAGE_NAMES = re.compile(r"/(image(_raw|_mono|_color|_rect|_rect_color)?|compressed)$")


class IndexingError(VLJepaError):
    """Recordings cannot be indexed."""


@dataclass(frozen=True)
class Recording:
    """A bag, a video or an episode: `cameras` by topic, and about its length.

    A video's topic is empty, an episode's the key of its camera. `named`: whether the user named
    the topics. `start_ns`: the stamp at which a video or an episode begins; 0, of a video: nobody
    said. `note`: what is odd about it.
    """

    path: Path
    cameras: dict[str, str]
    seconds: float
    named: bool = False
    start_ns: int = 0
    episode: Episode | None = None
    note: str = ""

    def __str__(self) -> str:
        return str(self.path if self.episode is None else self.episode)

    @property
    def first_ns(self) -> int:
        """The stamp of the first frame of a video or an episode: above 0, as a frame's has to be.

        Of a bag, whose frames have stamps of their own, 0.
        """
        return self.start_ns or (SECOND_NS if self.is_video else 0)

    @property
    def lead_ns(self) -> int:
        """By how much the stamps of its frames are ahead of the times that are remembered.

        Those are positions in an episode, and in a video unless somebody said when it begins.
        """
        return self.first_ns if self.episode is not None or not self.start_ns else 0

    @property
    def is_video(self) -> bool:
        """Whether it is a video, or a folder of images."""
        return "" in self.cameras

    def frames(self, left_out: LeftOut, levels: Levels) -> Iterator[RecordedFrame]:
        """Its frames; `levels`: as for `to_rgb`. Raises BagError, VideoError, EpisodeError."""
        if self.episode is not None:
            if self.note:
                left_out.note(self.episode.dataset.name, self.note)
            camera = self.cameras[self.episode.camera]
            return recorded_frames(Rows(self.episode), camera, self.first_ns)
        note = partial(left_out.note, str(self.path))
        if self.is_video:
            source = VideoSource(self.path, levels=levels, note=note, tell=left_out.say)
            return video_frames(source, self.cameras[""], self.first_ns)
        return bag_frames(self.path, self.cameras, left_out, levels, note)


def find_recordings(
    paths: Sequence[Path],
    topics: Sequence[str],
    names: Sequence[str],
    start_ns: int = 0,
    episodes: str = "",
) -> tuple[list[Recording], list[VLJepaError]]:
    """What the paths are, with their cameras, and why others cannot be read.

    `names`: of the topics' cameras, or the keys of a data set's; `start_ns`: as of `Recording`;
    `episodes`: as of `choose`. Those of a data set of the Hub are fetched. Raises IndexingError
    where the command is to be given otherwise.
    """
    if not paths:
        raise IndexingError("Say what to index: vljepa index BAG...")
    if any(is_meant(path, bool(names)) for path in paths):
        if start_ns:
            raise IndexingError(
                "Times of a data set are positions in its episodes; leave out --start."
            )
        return _of_datasets(paths, topics, names, episodes)
    if episodes:
        raise IndexingError("--episodes are of a LeRobot data set, and none is given.")
    if names and len(names) != max(1, len(topics)):
        raise IndexingError("Give one --camera for each --topic.")
    found: list[Recording] = []
    refused: list[VLJepaError] = []
    for path in paths:
        try:
            found.append(_recording(path, topics, names, start_ns))
        except IndexingError:
            raise
        except VLJepaError as error:  # of what it holds: the others may be whole
            refused.append(error)
    videos = Counter(one.cameras[""] for one in found if one.is_video)
    for name, count in videos.items():
        if count > 1:
            raise IndexingError(
                f"{count} videos are of camera '{name}' and begin at the same time; index them one "
                "by one, with --camera or --start."
            )
    return found, refused


def _of_datasets(
    paths: Sequence[Path], topics: Sequence[str], keys: Sequence[str], chosen: str
) -> tuple[list[Recording], list[VLJepaError]]:
    """The episodes of LeRobot data sets as their cameras saw them, as for `find_recordings`."""
    others = [path for path in paths if not is_meant(path, bool(keys))]
    if others or topics:
        what = f"{others[0]} is none" if others else "they have no --topic"
        raise IndexingError(f"Index LeRobot data sets by themselves: {what}.")
    found: list[Recording] = []
    refused: list[VLJepaError] = []
    owners: dict[str, set[Path]] = defaultdict(set)
    for path in paths:
        try:
            dataset = open_dataset(path)
            for key in keys or [""]:
                as_seen = _as_seen(dataset, key, chosen)
                owners[next(iter(as_seen[0].cameras.values()))].add(dataset.root.resolve())
                found += as_seen
        except DatasetError as error:
            refused.append(error)
        else:
            refused += map(DatasetError, dataset.problems)
    for name, roots in owners.items():
        if len(roots) > 1:
            raise IndexingError(
                f"{len(roots)} data sets have a camera '{name}'; give each a store of its own."
            )
    return found, refused


def _as_seen(dataset: Dataset, key: str, chosen: str) -> list[Recording]:
    """The chosen episodes as the camera `key` saw them, fetched."""
    episodes = choose(dataset, key, chosen)
    key = episodes[0].camera
    name = camera_in(dataset, key)
    less = unseen(dataset, episodes, chosen)
    note = f"{key} has no pictures in episode {ranges(less)}." if less else ""
    fetch_episodes(episodes)
    return [
        Recording(
            Path(dataset.hub or dataset.root), {key: name}, one.seconds, True,
            SECOND_NS * (1 + one.begins), one, note,
        )
        for one in episodes
    ]  # fmt: skip


def _recording(path: Path, topics: Sequence[str], names: Sequence[str], start_ns: int) -> Recording:
    try:
        path.stat()
    except (OSError, ValueError) as error:
        of_hub = " If it is a data set of the Hub, name its --camera." * may_be_of_hub(path)
        said = f"There is no recording {path} ({_reason(error)}).{of_hub}"
        raise IndexingError(said) from error
    if not is_bag(path):
        if topics:
            raise IndexingError(f"{path} is no bag, and has no --topic.")
        try:
            seconds = VideoSource(path).seconds
        except VideoError as error:
            if path.is_dir() and any(one.is_dir() and is_bag(one) for one in path.iterdir()):
                raise IndexingError(f"{path} is a folder of bags; name them: {path}/*.") from error
            raise
        camera = names[0] if names else _name(path.stem)
        return Recording(path, {"": camera}, seconds, True, start_ns)
    info = bag_info(path)
    if names and not topics and len(info.image_topics) > 1:
        there = ", ".join(info.image_topics)
        raise IndexingError(f"Give the --topic that --camera is of: {path} has images on {there}.")
    for topic in topics:
        if topic not in info.image_topics:
            there = ", ".join(info.image_topics)
            raise IndexingError(f"{path} has no images on '{topic}', but on {there}.")
    cameras: dict[str, str] = {}
    for topic in topics or info.image_topics:
        name = names[len(cameras)] if names else camera_of(topic)
        if name not in cameras.values():  # else the same camera, compressed
            cameras[topic] = name
        elif topics:
            raise IndexingError(f"Two topics are of camera '{name}'; give each a --camera.")
    return Recording(path, cameras, info.seconds, bool(topics))


def _apart(moment: Moment, at_ns: int) -> int:
    """How far a moment is from a time; 0 where it holds it."""
    return max(0, moment.start_ns - at_ns, at_ns - moment.end_ns)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def camera_of(topic: str) -> str:
    """The camera's name from its topic: /front/image_raw/compressed is of front."""
    while (shorter := IMAGE_NAMES.sub("", topic)) != topic:
        topic = shorter
    return _name(topic)


def camera_in(dataset: Dataset, key: str) -> str:
    """The camera's name from a data set's and the key: cubes, observation.images.top: cubes_top."""
    return _name(f"{dataset.name}_{key.removeprefix('observation.').removeprefix('images.')}")


def _name(text: str) -> str:
    """Letters, digits and underscores, as cameras are named."""
    name = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_")
    return name if name[:1].isalpha() else f"camera_{name}".rstrip("_")


@dataclass
class Indexer:
    """Makes moments of recordings, and counts; tells `show(seconds done, moments)`.

    `tell(recording, moment)`: each moment as it closes, a little before the store has it.
    """

    model: Runtime
    settings: Settings
    store: MomentStore
    robot: str
    speaker: Speaker | None  # None: the moments get no words
    file: StreamFile | None
    show: Callable[[float, int], None]
    tell: Callable[[Path, Moment], None]
    levels: Levels = FULL_RANGE  # of 16-bit images
    moments: int = 0
    done: float = 0.0  # seconds of recordings
    _began: float = field(default_factory=time.monotonic)
    left_out: LeftOut = field(default_factory=LeftOut)
    _silent: list[str] = field(default_factory=list)

    def index(self, recording: Recording) -> None:
        """Make moments of one recording. What was made stays where this is cut off.

        An episode is kept whole, or left out. Raises BagError, VideoError.
        """
        if recording.episode is None:
            self._index(recording, None)
            return
        if self.file is not None:
            self.file.hold()
        whole = False
        try:
            self._index(recording, [])
            whole = True
        except EpisodeError as error:
            self.left_out.episode(error.episode.dataset.name, error.episode.index, error.reason)
        finally:
            if self.file is not None:
                self.file.release(whole)

    def _index(self, recording: Recording, held: list[Moment] | None) -> None:
        """`held`: takes the moments until all are there, None: they are kept at once."""
        perceiver = Perceiver(self.model, list(recording.cameras.values()), self.settings)
        writer = Writer(self.store)

        def keep(moment: Moment) -> None:
            if held is None:
                self._keep(recording, moment, writer)
            else:
                held.append(moment)

        recorder = Recorder(self.robot, keep, writer.say)
        frames = recording.frames(self.left_out, self.levels)
        rejected: dict[str, LeftOut] = defaultdict(LeftOut)  # by camera
        steps, elapsed = 0, Elapsed()

        def reject(frame: RecordedFrame, reason: str) -> None:
            rejected[frame.camera].image(f"of camera '{frame.camera}' cannot be used", reason)

        try:
            for frame, picture, found in perceive(frames, perceiver, reject):
                at_ns = frame.stamp_ns - recording.lead_ns
                small = thumbnail(picture)
                recorder.thumbnail(frame.camera, at_ns, small)
                if self.file is not None and found:
                    self.file.picture(frame, small)
                for step in found:
                    self._record(recorder, frame, step, recording.lead_ns)
                steps += len(found)
                if writer.waiting >= BATCH:
                    writer.write()
                self.show(self.done + elapsed.add(frame.log_ns), self.moments)
            recorder.flush()
            if recording.episode is not None and held is not None:
                self._keep_episode(recording.episode, recording, held, writer)
        finally:
            writer.write()
            taken = {name for name in perceiver.cameras if perceiver.counters(name).taken}
            self._say_rejected(recording, taken, rejected)
        self.done += recording.seconds
        self.show(self.done, self.moments)
        if taken and not steps:
            self._silent.append(str(recording))

    def _keep_episode(
        self, episode: Episode, recording: Recording, held: Sequence[Moment], writer: Writer
    ) -> None:
        """Keep the moments of a whole episode, at their positions in it, and those of its labels.

        A label is a moment too, that means what the label says: so its own words find it.
        """
        (camera,) = recording.cameras.values()
        said = labels(Rows(episode))
        vectors = self.model.embed_text([label.text for label in said])
        found = [replace(one, episode=episode.index) for one in held]
        counts = Counter[tuple[str, int]]()
        for label, vector in zip(said, vectors, strict=True):
            start_ns, end_ns = round(label.start * 1e9), round(label.end * 1e9)
            counts[label.kind, start_ns] += 1
            number = counts[label.kind, start_ns]  # another wording
            middle = (start_ns + end_ns) // 2
            seen = min(found[: len(held)], key=lambda m: _apart(m, middle), default=None)
            found.append(
                Moment(
                    self.robot, camera, label.kind if number == 1 else f"{label.kind} {number}",
                    number, start_ns, end_ns, vector, label.text, 1.0,
                    thumbnail=seen.thumbnail if seen else b"", episode=episode.index,
                )
            )  # fmt: skip
        tasks = [label for label in said if label.kind == TASK]
        for one in found:
            at = (one.start_ns + one.end_ns) / 2e9
            task = next((label.text for label in tasks if label.start <= at <= label.end), "")
            self._keep(recording, replace(one, task=task), writer)
            if writer.waiting >= BATCH:
                writer.write()

    def _record(self, recorder: Recorder, frame: RecordedFrame, step: Step, lead_ns: int) -> None:
        place = (step.camera, step.query)
        recorder.step(
            *place, step.stamp_ns - lead_ns, step.segment_id, step.embedding, step.familiarity
        )
        if self.file is not None:
            self.file.step(frame, step)
        change = step.change
        if change is None:
            return
        recorder.change(
            *place, change.segment_id, change.segment_start_ns - lead_ns,
            change.previous_segment_id, change.previous_segment_start_ns - lead_ns,
        )  # fmt: skip
        known = not self.model.bundle.is_unfamiliar(step.familiarity)
        if self.speaker is not None and known:
            began = time.monotonic()
            said = self.speaker.say(step.embedding)
            if said.doubt:
                return
            recorder.words(*place, change.segment_id, said.text, said.confidence)
            if self.file is not None:
                self.file.utterance(frame, step, said, time.monotonic() - began)

    def _keep(self, recording: Recording, moment: Moment, writer: Writer) -> None:
        if recording.is_video and recording.episode is None:
            moment = replace(moment, video_start_ns=recording.start_ns)
        moment = self._completed(moment)
        writer.keep(moment)
        self.tell(recording.path, moment)

    def _completed(self, moment: Moment) -> Moment:
        """The moment, with what the robot knew of it and the recording does not say."""
        self.moments += 1
        known = self.store.get(moment.id)
        if known is None:
            return moment
        if known.text and not moment.text:
            moment = replace(moment, text=known.text, confidence=known.confidence)
        return replace(moment, pose=known.pose)

    def _say_rejected(
        self, recording: Recording, taken: set[str], rejected: dict[str, LeftOut]
    ) -> None:
        """Say what could not be decoded.

        A topic that nobody named and of which nothing could be, beside others that were, is no
        camera (but depth, say), and is not left out.
        """
        for camera, bad in rejected.items():
            no_camera = taken and camera not in taken and not recording.named
            self.left_out.add(bad, only_note=bool(no_camera))

    def problems(self) -> list[str]:
        """What went wrong, in sentences."""
        clip = self.model.bundle.clip
        short = (
            f"{path} is too short: the model needs {counted(clip.frames, 'frame')} in a row, "
            f"{1 / clip.sample_rate:g} s from one to the next."
            for path in self._silent
        )
        return [*short, *self.left_out.sentences()]

    def took(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._began

    def pace(self) -> str:
        """How long it took."""
        took = self.took()
        return f"{self.done:.1f} s of recordings in {took:.1f} s, {self.done / took:.1f} x"
