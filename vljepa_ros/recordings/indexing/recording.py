"""What is to be indexed: bags, videos, folders of images, episodes, with their cameras.

Invariant: what cannot be read is said before anything is made, and the others are found.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vljepa_ros.errors import VLJepaError
from vljepa_ros.perception.images import Levels
from vljepa_ros.stamps import SECOND_NS

from ..bag_files import is_bag
from ..bags import bag_info
from ..left_out import LeftOut, ranges
from ..lerobot.dataset import Dataset, DatasetError, Episode
from ..lerobot.pictures import recorded_frames
from ..lerobot.rows import Rows
from ..lerobot.selection import (
    choose,
    fetch_episodes,
    is_meant,
    may_be_of_hub,
    open_dataset,
    unseen,
)
from ..offline import RecordedFrame, bag_frames, video_frames
from ..video import VideoSource
from ..video_file import VideoError

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
