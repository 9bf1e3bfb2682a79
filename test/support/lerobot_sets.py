"""LeRobot data sets of our own making, whose pictures say by their grey which they are."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from encoders import usual_scheduling

os.environ.setdefault("SVT_LOG", "1")  # or the encoder of AV1 tells all it does
TOP = "observation.images.top"
AV1 = ("libsvtav1", {"g": "2", "crf": "30", "preset": "12"})
H264 = ("libx264", {"g": "4", "bf": "2", "crf": "10"})
V3 = {
    "data": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    "video": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}
V2 = {
    "data": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    "video": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
}
SUBTASK = pa.struct([
    ("role", pa.string()), ("content", pa.string()), ("style", pa.string()),
    ("timestamp", pa.float32()), ("camera", pa.string()),
])  # fmt: skip


def plain(episode: int, frame: int) -> np.ndarray:
    """The picture of a frame, RGB: no two of an episode or of neighbours are alike."""
    picture = np.full((48, 64, 3), 16 + 5 * frame, np.uint8)
    picture[:, 32:] = 30 + 50 * (episode % 4)
    return picture


@dataclass
class Made:
    """A data set that is to be written. `texts`: a task for each episode, or several.

    `files`: of v3.0, which episodes lie in which file. `said`: subtasks, (second, text), by
    episode. `image`: keep pictures as PNG in the rows.
    """

    lengths: Sequence[int] = (12, 20)
    fps: float = 10
    texts: Sequence[str | Sequence[str]] = ("Pick the red cube", "Open the drawer")
    codec: tuple[str, dict[str, str]] = AV1
    picture: Callable[[int, int], np.ndarray] = plain
    cameras: Sequence[str] = (TOP,)
    image: bool = False
    files: Sequence[Sequence[int]] = ()
    said: dict[int, list[tuple[float, str]]] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)  # laid over meta/info.json
    nameless: bool = False  # the texts of tasks are an index without a name

    def tasks(self, episode: int) -> list[str]:
        texts = self.texts[episode % len(self.texts)]
        return [texts] if isinstance(texts, str) else list(texts)

    @property
    def numbers(self) -> dict[str, int]:
        """The number of each task."""
        every = (text for e in range(len(self.lengths)) for text in self.tasks(e))
        return {text: k for k, text in enumerate(dict.fromkeys(every))}

    def write(self, root: Path, version: int = 3) -> Path:
        """The data set as v3.0 or v2.1 in `root`."""
        (root / "meta").mkdir(parents=True)
        shape = {"shape": [48, 64, 3], "names": ["height", "width", "channels"]}
        kind = (
            {"dtype": "image"} if self.image else {"dtype": "video", "info": {"video.codec": "av1"}}
        )
        info = {
            "codebase_version": "v3.0" if version == 3 else "v2.1", "fps": self.fps,
            "features": {key: {**kind, **shape} for key in self.cameras},
            "total_episodes": len(self.lengths), "chunks_size": 1000,
            "data_path": (V3 if version == 3 else V2)["data"],
            "video_path": None if self.image else (V3 if version == 3 else V2)["video"],
            **self.info,
        }  # fmt: skip
        (root / "meta/info.json").write_text(json.dumps(info))
        (self._write_v3 if version == 3 else self._write_v2)(root)
        return root

    def _write_v2(self, root: Path) -> None:
        for e in range(len(self.lengths)):
            for key in () if self.image else self.cameras:
                self._video(root / V2["video"].format(
                    episode_chunk=0, video_key=key, episode_index=e), [e])  # fmt: skip
            write_table(root / V2["data"].format(episode_chunk=0, episode_index=e), self._rows(e))
        tasks = [{"task_index": k, "task": text} for text, k in self.numbers.items()]
        write_lines(root / "meta/tasks.jsonl", tasks)
        write_lines(root / "meta/episodes.jsonl", [
            {"episode_index": e, "tasks": self.tasks(e), "length": n}
            for e, n in enumerate(self.lengths)
        ])  # fmt: skip

    def _write_v3(self, root: Path) -> None:
        every, first = list(range(len(self.lengths))), 0
        described: list[dict[str, Any]] = []
        for number, episodes in enumerate(self.files or [every]):
            place = {"chunk_index": 0, "file_index": number}
            for key in () if self.image else self.cameras:
                self._video(root / V3["video"].format(video_key=key, **place), episodes)
            tables = [self._rows(e) for e in episodes]
            write_table(root / V3["data"].format(**place), pa.concat_tables(tables))
            begins = Fraction(0)
            for e in episodes:
                ends = begins + Fraction(self.lengths[e]) / Fraction(self.fps)
                row = {
                    "episode_index": e, "tasks": self.tasks(e), "length": self.lengths[e],
                    "dataset_from_index": first, "dataset_to_index": first + self.lengths[e],
                }  # fmt: skip
                row |= {f"data/{name}": value for name, value in place.items()}
                for key in self.cameras:
                    times = {"from_timestamp": float(begins), "to_timestamp": float(ends)}
                    row |= {f"videos/{key}/{n}": v for n, v in {**place, **times}.items()}
                described.append(row)
                begins, first = ends, first + self.lengths[e]
        half = (len(described) + 1) // 2  # the description lies in two files
        for number, rows in enumerate((described[:half], described[half:])):
            if rows:
                file = root / f"meta/episodes/chunk-000/file-{number:03d}.parquet"
                write_table(file, pa.Table.from_pylist(rows))
        name = "__index_level_0__" if self.nameless else "task"
        numbers = self.numbers
        table = pa.table({"task_index": list(numbers.values()), name: list(numbers)})
        write_table(root / "meta/tasks.parquet", table)

    def _rows(self, e: int) -> pa.Table:
        count = self.lengths[e]
        columns: dict[str, Any] = {
            "timestamp": pa.array(np.arange(count) / self.fps, pa.float32()),
            "frame_index": list(range(count)), "episode_index": [e] * count,
            "task_index": [self.numbers[self.tasks(e)[0]]] * count,
        }  # fmt: skip
        if self.said:
            said = [
                {"role": "assistant", "content": text, "style": style, "timestamp": at}
                for at, text in self.said.get(e, ())
                for style in ("subtask", "plan")
            ]
            columns["language_persistent"] = pa.array([said] * count, pa.list_(SUBTASK))
        if self.image:
            for key in self.cameras:
                columns[key] = [
                    {"bytes": png(self.picture(e, k)), "path": f"frame_{k:06d}.png"}
                    for k in range(count)
                ]
        return pa.table(columns)

    def _video(self, path: Path, episodes: Sequence[int]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        codec, options = self.codec
        with usual_scheduling(), av.open(str(path), "w") as out:
            rate = Fraction(self.fps).limit_denominator(1001)
            stream: Any = out.add_stream(codec, rate=rate, options=options)
            stream.pix_fmt = "yuv420p"
            stream.height, stream.width = self.picture(0, 0).shape[:2]
            for e in episodes:
                for k in range(self.lengths[e]):
                    out.mux(stream.encode(av.VideoFrame.from_ndarray(self.picture(e, k), "rgb24")))
            out.mux(stream.encode())


def png(picture: np.ndarray) -> bytes:
    return cv2.imencode(".png", picture[..., ::-1])[1].tobytes()


def write_table(file: Path, table: pa.Table) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)


def write_lines(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def decoded(file: Path) -> list[tuple[float, np.ndarray]]:
    """(seconds, RGB) of every picture of a video, as PyAV gives them."""
    with av.open(str(file)) as container:
        return [(f.time, f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
