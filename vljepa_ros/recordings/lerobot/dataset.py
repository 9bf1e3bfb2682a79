"""A LeRobot data set in a folder: its cameras, and its episodes as one camera saw them.

Invariant: nothing is guessed. Of a description that is damaged the whole part is used, and
`problems` says what is left out; only a data set of which nothing can be read is a DatasetError.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from vljepa_ros.errors import VLJepaError

from ..json_lines import json_lines

INFO = "meta/info.json"
PICTURES = ("video", "image")  # dtypes of features
DEPTH = ("video.is_depth_map", "is_depth_map")
DEEP = re.compile(r"gray(9|1\d)")  # pixel formats of depth
MOST = 2**31  # episodes, and frames of one
CHUNK = 1000  # episodes of a chunk, where it is not said
# The text of a task is the index of a pandas frame, with and without a name.
TEXTS = ("task", "subtask", "__index_level_0__")


class DatasetError(VLJepaError):
    """A LeRobot data set cannot be read."""


class EpisodeError(DatasetError):
    """One episode cannot be read whole. `reason`: a sentence that does not name it."""

    def __init__(self, episode: Episode, reason: str) -> None:
        super().__init__(f"{episode} is left out: {reason}")
        self.episode, self.reason = episode, reason


@dataclass(frozen=True)
class Episode:
    """One episode as one camera saw it.

    `camera`: its key; `length`: in frames; `begins`: whole seconds, where it lies among all
    episodes laid one after another; `data`, `video`: files, relative to the data set's folder;
    without a video the pictures lie in `data`. `video_begins`: seconds, where it begins in `video`.
    """

    root: Path
    index: int
    camera: str
    length: int = field(compare=False)
    begins: int = field(compare=False)
    tasks: tuple[str, ...] = field(compare=False)
    data: str = field(compare=False)
    video: str = field(compare=False)
    video_begins: float = field(compare=False)
    dataset: Dataset = field(compare=False, repr=False)

    def __str__(self) -> str:
        return f"Episode {self.index} of {self.dataset.name}"

    def __reduce__(self) -> tuple[Any, ...]:
        """A worker is sent the episode without its data set, and reads that once itself."""
        own = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "dataset"}
        return _rejoined, (own, self.dataset.name, self.dataset.hub)

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.length / self.dataset.fps


class Dataset:
    """What the folder `root` says of itself. Raises DatasetError.

    `cameras`: the keys of what can be seen, `depth` those of depth maps; `fps`: frames a second;
    `tasks`, `subtasks`: texts by number; `problems`: sentences on what is damaged in `meta/`;
    `hub`: its id on the Hugging Face Hub, if it came from there.
    """

    def __init__(self, root: Path, name: str = "", hub: str = "") -> None:
        self.root, self.name, self.hub = root, name or root.resolve().name, hub
        self.problems: list[str] = []
        info = self._info()
        self.version = self._version(info)
        self.fps = float(info["fps"])
        self._paths = {kind: info.get(f"{kind}_path") or "" for kind in ("data", "video")}
        chunk = info.get("chunks_size")
        self._chunk = chunk if isinstance(chunk, int) and chunk > 0 else CHUNK
        features = {key: f for key, f in info["features"].items() if f.get("dtype") in PICTURES}
        self.depth = [key for key, feature in features.items() if _is_depth(feature)]
        self.cameras = [key for key in features if key not in self.depth]
        self._in_video = {key for key, f in features.items() if f["dtype"] == "video"}
        self.opened: dict[str, Any] = {}  # by kind: the name of the file that was read last, and it
        self.tasks, self.subtasks = self._texts("tasks"), self._texts("subtasks")
        self._rows = {row["episode_index"]: row for row in reversed(self._described())}
        said = info.get("total_episodes")
        if isinstance(said, int) and said > len(self._rows) and not self.problems:
            self.problems.append(
                f"{self.root / INFO} says {said} episodes, and {len(self._rows)} of them are "
                "described; the others are left out."
            )
        if not self._rows:
            raise DatasetError(f"{root} describes no episode. {' '.join(self.problems)}".strip())

    def camera(self, key: str = "") -> str:
        """The camera that `key` means, or ends: its key; empty: the only one. DatasetError."""
        there = ", ".join(self.cameras) or "none"
        if not key and len(self.cameras) == 1:
            return self.cameras[0]
        if not key:
            raise DatasetError(f"Say which --camera of {self.name}; it has: {there}.")
        found = [c for c in self.cameras if c == key] or [
            c for c in self.cameras if c.endswith((f".{key}", f"/{key}"))
        ]
        if len(found) == 1:
            return found[0]
        why = " (a depth map, which no model sees)" if key in self.depth else ""
        raise DatasetError(f"{self.name} has no camera '{key}'{why}; it has: {there}.")

    @property
    def indexes(self) -> list[int]:
        """The numbers of the episodes that are described."""
        return sorted(self._rows)

    def episodes(self, camera: str) -> Iterator[Episode]:
        """The episodes of which `camera`, a key, has pictures, as the data set says, in order."""
        begins = 0
        for index, row in sorted(self._rows.items()):
            video, at = "", 0.0
            if camera in self._in_video:
                video, at = self._video(row, camera)
            seen = bool(video) or camera not in self._in_video
            if seen:
                yield Episode(
                    self.root, index, camera, row["length"], begins, tuple(row["tasks"]),
                    self._file("data", row, "data"), video, at, self,
                )  # fmt: skip
            begins += math.ceil(row["length"] / self.fps) + 1

    def _video(self, row: dict[str, Any], camera: str) -> tuple[str, float]:
        """File and seconds in it where the episode begins; no file where there are no pictures."""
        if self.version == 2:
            return self._file("video", row, "", camera), 0.0
        at = row.get(f"videos/{camera}/from_timestamp")
        if not isinstance(at, int | float) or row.get(f"videos/{camera}/file_index") is None:
            return "", 0.0
        return self._file("video", row, f"videos/{camera}", camera), float(at)

    def _file(self, kind: str, row: dict[str, Any], place: str, camera: str = "") -> str:
        """The name of a file of an episode, by the pattern of meta/info.json."""
        index = row["episode_index"]
        try:
            name = self._paths[kind].format(
                video_key=camera, episode_index=index, episode_chunk=index // self._chunk,
                chunk_index=row.get(f"{place}/chunk_index") or 0,
                file_index=row.get(f"{place}/file_index") or 0,
            )  # fmt: skip
        except (LookupError, ValueError, AttributeError) as error:
            raise self._damaged(f"'{kind}_path' is no pattern of a file's name") from error
        if not name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise self._damaged(f"'{kind}_path' names no file in the folder")
        return name

    def _info(self) -> dict[str, Any]:
        try:
            info = json.loads((self.root / INFO).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise self._damaged(str(error)) from error
        if not isinstance(info, dict) or not isinstance(info.get("features"), dict):
            raise self._damaged("it names no features")
        if not all(isinstance(feature, dict) for feature in info["features"].values()):
            raise self._damaged("a feature is not described")
        fps = info.get("fps")
        if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < 1e4:
            raise self._damaged(f"'fps' is {fps!r}, not frames a second")
        return info

    def _version(self, info: dict[str, Any]) -> int:
        said = str(info.get("codebase_version"))
        found = re.fullmatch(r"v?([23])\.\d+(\.\d+)?", said)
        if found is None:
            raise DatasetError(
                f"{self.root} is a LeRobot data set of version {said}, and v2.0, v2.1 and v3.0 are "
                "read; convert it with lerobot's own scripts."
            )
        if info.get("storage_format", "parquet") not in ("parquet", "default"):
            raise DatasetError(
                f"{self.root} keeps its frames as {info['storage_format']}, and only Parquet with "
                "video files or images is read; export it in LeRobot's default format."
            )
        return int(found[1])

    def _damaged(self, why: str) -> DatasetError:
        return DatasetError(
            f"{self.root / INFO} cannot be used: {why.rstrip('.')}; is the data set whole?"
        )

    # --- what meta/ says ---

    def _texts(self, kind: str) -> dict[int, str]:
        """Texts by number, of v3.0 or v2.x; empty where there is no such file."""
        number = f"{kind.removesuffix('s')}_index"
        table, lines = self.root / f"meta/{kind}.parquet", self.root / f"meta/{kind}.jsonl"
        if table.exists():
            rows = self._read_meta(table, (number, *TEXTS), "their texts are not known")
        elif lines.exists():
            rows = self._read_lines(lines, "its text is not known")
        else:
            return {}
        return {
            row[number]: text
            for row in rows
            for text in (next((row[key] for key in TEXTS if row.get(key) is not None), None),)
            if isinstance(text, str) and isinstance(row.get(number), int)
        }

    def _described(self) -> list[dict[str, Any]]:
        """A row of each episode, with `episode_index`, `length` and `tasks`."""
        found: list[dict[str, Any]] = []
        if self.version == 2:
            rows = self._read_lines(self.root / "meta/episodes.jsonl", "its episode is left out")
            found += filter(self._is_whole, rows)
            return found
        columns = [
            "episode_index", "tasks", "length", "dataset_from_index", "dataset_to_index",
            "data/chunk_index", "data/file_index",
            *(f"videos/{camera}/{name}" for camera in self.cameras
              for name in ("chunk_index", "file_index", "from_timestamp")),
        ]  # fmt: skip
        for file in sorted((self.root / "meta/episodes").glob("*/*.parquet")):
            rows = self._read_meta(file, columns, "its episodes are left out")
            found += filter(self._is_whole, rows)
        return found

    def _is_whole(self, row: dict[str, Any]) -> bool:
        """Whether the row says what must be known; what may be missing is added."""
        first, end = row.get("dataset_from_index"), row.get("dataset_to_index")
        if row.get("length") is None and isinstance(first, int) and isinstance(end, int):
            row["length"] = end - first
        tasks = row.get("tasks")
        tasks = tasks if isinstance(tasks, list) else [tasks]
        row["tasks"] = [text for text in tasks if isinstance(text, str)]
        index, length = row.get("episode_index"), row.get("length")
        if type(index) is type(length) is int and 0 <= index < MOST and 0 < length < MOST:
            return True
        self.problems.append(
            f"{self.root}/meta describes an episode {index!r} of {length!r} frames; it is left out."
        )
        return False

    def _read_lines(self, file: Path, lost: str) -> list[dict[str, Any]]:
        try:
            lines = json_lines(file)
        except (OSError, ValueError) as error:
            self.problems.append(f"{file} cannot be read ({reason_of(error)}).")
            return []
        rows = []
        for number, line in lines:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, dict):
                rows.append(row)
            else:
                self.problems.append(f"{file}:{number} is no JSON object; {lost}.")
        return rows

    def _read_meta(self, file: Path, columns: Sequence[str], lost: str) -> list[dict[str, Any]]:
        """Rows with those of the columns that there are."""
        parquet = pyarrow_parquet(self.root)
        try:
            have = set(parquet.read_schema(file).names)
            table = parquet.read_table(file, columns=[name for name in columns if name in have])
            rows: list[dict[str, Any]] = table.to_pylist()
        except Exception as error:  # of bytes that may be anything
            self.problems.append(f"{file} cannot be read ({reason_of(error)}); {lost}.")
            return []
        return rows


def is_dataset(path: Path) -> bool:
    """Whether the folder `path` holds a LeRobot data set."""
    return (path / INFO).is_file()


def pyarrow_parquet(root: Path) -> Any:
    """The module, which is looked for only where a data set is read: robots do without it."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DatasetError(
            f"Reading the LeRobot data set {root} needs PyArrow ({error}): pip install pyarrow."
        ) from error
    return pyarrow.parquet


def reason_of(error: Exception) -> str:
    """The first line of an error."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _rejoined(own: dict[str, Any], name: str, hub: str) -> Episode:
    return Episode(**own, dataset=_opened(own["root"], name, hub))


@cache
def _opened(root: Path, name: str, hub: str) -> Dataset:
    return Dataset(root, name, hub)


def _is_depth(feature: dict[str, Any]) -> bool:
    """Whether it is a depth map, which is said in one of three places, or shows in its pixels."""
    places = [one for one in map(feature.get, ("info", "video_info")) if isinstance(one, dict)]
    return any(
        any(about.get(key) for key in DEPTH) or DEEP.match(str(about.get("video.pix_fmt") or ""))
        for about in (feature, *places)
    )
