"""LeRobot data sets as people have them: pictures, times, labels, damage."""

from __future__ import annotations

import json
import re
import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="PyArrow is not installed: pip install pyarrow")
pytest.importorskip("av", reason="PyAV is not installed: pip install av")

import pyarrow as pa
import pyarrow.parquet as pq
from lerobot_sets import AV1, H264, TOP, Made, decoded, plain, png, write_lines, write_table

from vljepa_ros.recordings.lerobot.dataset import Dataset, DatasetError, Episode, EpisodeError
from vljepa_ros.recordings.lerobot.language import Label, labels, rewordings, subtasks, tasks
from vljepa_ros.recordings.lerobot.pictures import pictures
from vljepa_ros.recordings.lerobot.rows import Rows
from vljepa_ros.recordings.lerobot.selection import (
    choose,
    fetch_episodes,
    is_meant,
    open_dataset,
    spread,
    unseen,
)

VERSIONS = {"v3.0, AV1": (3, AV1), "v2.1, H.264": (2, H264), "v3.0, H.264": (3, H264)}
MILLISECOND = 1e-3


def seen(episode: Episode) -> list[tuple[float, np.ndarray]]:
    return [(at, picture()) for at, picture in pictures(Rows(episode))]


def episodes(root: Path) -> list[Episode]:
    return choose(Dataset(root))


@pytest.fixture(scope="module", params=VERSIONS, ids=str)
def whole(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Made, Path]:
    """Three episodes; in v3.0 the last two share a file, and the first has one of its own."""
    version, codec = VERSIONS[request.param]
    made = Made(lengths=(12, 20, 15), codec=codec, files=((0,), (1, 2)))
    return made, made.write(tmp_path_factory.mktemp("set") / "cubes", version)


def test_every_picture_is_pyavs_at_its_time(whole: tuple[Made, Path]) -> None:
    made, root = whole
    files = sorted(root.glob("videos/**/*.mp4"))
    truth = [one for file in files for one in decoded(file)]
    assert len(truth) == sum(made.lengths)
    found = episodes(root)
    assert [one.index for one in found] == [0, 1, 2]
    assert [str(one) for one in found] == [f"Episode {k} of cubes" for k in range(3)]
    for episode, count in zip(found, made.lengths, strict=True):
        own, truth = truth[:count], truth[count:]
        got = seen(episode)
        assert [at for at, _ in got] == pytest.approx(
            [at - own[0][0] for at, _ in own], abs=MILLISECOND
        )
        assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(got, own, strict=True))
        assert episode.seconds == count / 10


def test_an_episode_far_into_its_file_is_sought(tmp_path: Path) -> None:
    """Pictures that are coded out of order lie before the key frame that a search finds."""
    lengths = (11, 24, 11, 2, 40)
    made = Made(lengths=lengths, codec=("libx264", {"g": "12", "bf": "3"}))
    root = made.write(tmp_path / "set")
    for episode in reversed(episodes(root)):
        got = seen(episode)
        truth = [plain(episode.index, k) for k in range(lengths[episode.index])]
        assert len(got) == len(truth)
        apart = [np.abs(a[1].astype(int) - b).mean() for a, b in zip(got, truth)]
        assert max(apart) < 3


@pytest.mark.parametrize("fps", [30, 29.97, 12.5])
def test_integer_and_broken_rates(tmp_path: Path, fps: float) -> None:
    root = Made(lengths=(40, 40), fps=fps, codec=H264).write(tmp_path / "set")
    for episode in episodes(root):
        assert [at for at, _ in seen(episode)] == pytest.approx(
            np.arange(40) / fps, abs=MILLISECOND
        )


@pytest.mark.parametrize("version", [2, 3])
def test_pictures_may_lie_in_the_rows(tmp_path: Path, version: int) -> None:
    root = Made(image=True).write(tmp_path / "set", version)
    for episode, count in zip(episodes(root), (12, 20), strict=True):
        got = seen(episode)
        assert [at for at, _ in got] == pytest.approx(np.arange(count) / 10, abs=MILLISECOND)
        for k, (_, picture) in enumerate(got):
            assert np.array_equal(picture, plain(episode.index, k))


def test_an_image_may_be_a_file_beside(tmp_path: Path) -> None:
    root = Made(image=True, lengths=(3,)).write(tmp_path / "set")
    (file,) = root.glob("data/*/*.parquet")
    table = pq.read_table(file)
    for k in range(3):
        (root / f"{k}.png").write_bytes(png(plain(0, k)))
    paths = [{"bytes": None, "path": f"{k}.png"} for k in range(3)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    at = table.column_names.index(TOP)
    pq.write_table(table.set_column(at, TOP, pa.array(paths, kind)), file)
    assert [int(p[0, 0, 0]) for _, p in seen(episodes(root)[0])] == [16, 21, 26]
    (root / "1.png").unlink()
    with pytest.raises(EpisodeError, match=r"its picture at 0\.100 s: .*1\.png"):
        seen(episodes(root)[0])


def test_what_the_features_say_of_cameras(tmp_path: Path) -> None:
    depth = {"dtype": "video", "shape": [48, 64, 1]}
    features = {
        "observation.state": {"dtype": "float32", "shape": [6]},
        TOP: {"dtype": "video", "shape": [3, 48, 64], "info": None},
        "observation.images.wrist": {"dtype": "video", "shape": [48, 64, 3], "video_info": {}},
        "observation.images.depth": {**depth, "info": {"video.is_depth_map": True}},
        "observation.images.old_depth": {**depth, "video_info": {"is_depth_map": True}},
        "observation.images.deep": {**depth, "info": {"video.pix_fmt": "gray12le"}},
    }
    root = Made(cameras=(TOP, "observation.images.wrist"), info={"features": features}).write(
        tmp_path / "set"
    )
    dataset = Dataset(root)
    assert dataset.cameras == [TOP, "observation.images.wrist"]
    assert len(dataset.depth) == 3
    assert dataset.camera("wrist") == "observation.images.wrist" and dataset.camera(TOP) == TOP
    with pytest.raises(
        DatasetError, match=f"Say which --camera of set; it has: {re.escape(TOP)}, "
    ):
        dataset.camera()
    with pytest.raises(DatasetError, match="no camera 'left'; it has: "):
        dataset.camera("left")
    with pytest.raises(DatasetError, match=r"'observation.images.deep' .a depth map, which no"):
        dataset.camera("observation.images.deep")


def rewrite(file: Path, change: Any) -> None:
    """Change the rows of a table."""
    rows = pq.read_table(file).to_pylist()
    write_table(file, pa.Table.from_pylist(change(rows)))


def test_a_camera_may_be_null_for_an_episode(tmp_path: Path) -> None:
    root = Made(lengths=(5, 6, 7)).write(tmp_path / "set")
    file = sorted(root.glob("meta/episodes/*/*"))[0]

    def nulled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        hidden = {key: None for key in rows[1] if key.startswith("videos/")}
        return [rows[0], {**rows[1], **hidden}]

    rewrite(file, nulled)
    dataset = Dataset(root)
    found = choose(dataset)
    assert [one.index for one in found] == [0, 2] and unseen(dataset, found) == [1]
    assert [len(seen(one)) for one in found] == [5, 7] and dataset.problems == []


def test_some_episodes_are_chosen(tmp_path: Path) -> None:
    dataset = Dataset(Made(lengths=(2,) * 6, image=True).write(tmp_path / "set"))
    for chosen, numbers in {
        "": [0, 1, 2, 3, 4, 5], "3": [3], "0:2": [0, 1], "4:": [4, 5], ":1, 3:5": [0, 3, 4],
    }.items():  # fmt: skip
        assert [one.index for one in choose(dataset, chosen=chosen)] == numbers
    for chosen, why in {"x": "names no episodes", "9": "it has 0 to 5", "": ""}.items():
        if why:
            with pytest.raises(DatasetError, match=why):
                choose(dataset, chosen=chosen)


def test_a_part_of_the_episodes_is_spread_over_them() -> None:
    dataset: Any = types.SimpleNamespace(fps=10.0)
    every = [Episode(Path(), k, "", 100, 0, (), "", "", 0.0, dataset) for k in range(100)]
    assert spread(every, 10_000) == every
    assert [one.index for one in spread(every, 50)] == [10, 30, 50, 70, 90]
    assert [one.index for one in spread(every[:3], 1)] == [1]


SAID = {
    0: [(0.5, "grasp the cube"), (0.0, "reach for  the cube"), (0.9, "lift it")],
    1: [(0.0, "all of it"), (0.0, "pull the drawer"), (1.0, " "), (5.0, "too late")],
}


@pytest.mark.parametrize("version", [2, 3])
def test_timed_language_holds_until_the_next_of_its_style(tmp_path: Path, version: int) -> None:
    made = Made(said=SAID, nameless=True, image=True)
    found = [Rows(one) for one in episodes(made.write(tmp_path / "set", version))]
    assert subtasks(found[0]) == [
        Label("subtask", 0.0, 0.5, "reach for the cube"),
        Label("subtask", 0.5, pytest.approx(0.9), "grasp the cube"),
        Label("subtask", pytest.approx(0.9), pytest.approx(1.2), "lift it"),
    ]
    assert subtasks(found[1]) == [Label("subtask", 0.0, 2.0, "pull the drawer")]
    assert [tasks(one) for one in found] == [
        [Label("task", 0.0, pytest.approx(1.2), "Pick the red cube")],
        [Label("task", 0.0, 2.0, "Open the drawer")],
    ]


def test_numbers_in_the_rows_are_labels_where_they_hold(tmp_path: Path) -> None:
    """Of tasks, and of the subtasks that lerobot 0.4 wrote."""
    texts = [["Open the drawer", "Close the drawer", "Pull the drawer open"]]
    root = Made(lengths=(10,), texts=texts, image=True).write(tmp_path / "set")
    (file,) = root.glob("data/*/*.parquet")
    rewrite(file, lambda rows: [
        {**row, "task_index": int(k >= 6), "subtask_index": (k // 3) % 2}
        for k, row in enumerate(rows)
    ])  # fmt: skip
    write_table(root / "meta/subtasks.parquet", pa.table(
        {"subtask_index": [0, 1], "subtask": ["reach", "pull"]}
    ))  # fmt: skip
    rows = Rows(episodes(root)[0])
    assert [(one.start, one.end, one.text) for one in tasks(rows)] == [
        (0.0, pytest.approx(0.6), "Open the drawer"), (0.6, 1.0, "Close the drawer"),
    ]  # fmt: skip
    assert [one.text for one in rewordings(rows)] == texts[0]
    assert [(one.start, one.text) for one in subtasks(rows)] == [
        (0.0, "reach"), (pytest.approx(0.3), "pull"), (0.6, "reach"), (pytest.approx(0.9), "pull"),
    ]  # fmt: skip


# --- damage ---


def outcome(root: Path) -> dict[int, str]:
    """Of each episode that is read, "", else why not."""
    found = {}
    for episode in episodes(root):
        try:
            seen(episode)
            found[episode.index] = ""
        except EpisodeError as error:
            found[episode.index] = str(error).removeprefix(f"{episode} is left out: ")
    return found


def test_a_damaged_part_of_a_shared_file_costs_its_episode(tmp_path: Path) -> None:
    import av

    root = Made(lengths=(20, 20, 20), codec=H264).write(tmp_path / "set")
    (file,) = root.glob("videos/**/*.mp4")
    with av.open(str(file)) as container:
        coded = [p for p in container.demux(video=0) if p.size]
        middle = next(p for p in coded if float(p.pts * p.time_base) > 2.7)
        place = (middle.pos, middle.size)
    content = bytearray(file.read_bytes())
    content[place[0] + 5 : place[0] + place[1]] = b"\xff" * (place[1] - 5)
    file.write_bytes(content)
    found = outcome(root)
    assert found[0] == found[2] == ""
    assert "is missing or damaged in videos/" in found[1]


def test_a_file_that_is_cut_short_costs_what_lay_behind(tmp_path: Path) -> None:
    root = Made(lengths=(10, 10, 10)).write(tmp_path / "set", 2)
    files = sorted(root.glob("videos/**/*.mp4"))
    files[1].write_bytes(files[1].read_bytes()[:-200])
    files[2].unlink()
    found = outcome(root)
    assert found[0] == "" and "is not a video that can be decoded" in found[1]
    assert found[2].startswith("there is no videos/chunk-000/")


def test_a_video_with_too_few_pictures_is_no_whole_episode(tmp_path: Path) -> None:
    root = Made(lengths=(10, 10)).write(tmp_path / "set", 2)
    shorter = Made(lengths=(10, 9)).write(tmp_path / "shorter", 2)
    name = next(str(p.relative_to(root)) for p in root.glob("videos/**/*1.mp4"))
    shutil.copy(shorter / name, root / name)
    assert outcome(root)[1].startswith("its picture at 0.900 s is missing or damaged in videos/")


@pytest.mark.parametrize("version", [2, 3])
def test_damaged_rows_cost_their_episodes(tmp_path: Path, version: int) -> None:
    root = Made(lengths=(4, 5, 6), files=((0,), (1, 2)), image=True).write(
        tmp_path / "set", version
    )
    files = sorted(root.glob("data/**/*.parquet"))
    files[0].write_bytes(files[0].read_bytes()[:-30])
    rewrite(files[-1], lambda rows: rows[:-1])
    found = outcome(root)
    assert "cannot be read" in found[0] and found[1] == ""
    assert found[2].endswith("has 5 of its 6 rows.")


def test_a_damaged_image_costs_its_episode(tmp_path: Path) -> None:
    root = Made(lengths=(4, 4), image=True).write(tmp_path / "set", 2)
    file = sorted(root.glob("data/**/*.parquet"))[1]

    def damaged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        rows[2][TOP]["bytes"] = rows[2][TOP]["bytes"][:-20]
        return rows

    rewrite(file, damaged)
    found = outcome(root)
    assert found[0] == "" and found[1].startswith("its picture at 0.200 s: The PNG image of ")


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("timestamp", "noon", "are no numbers"), ("timestamp", None, "do not rise"),
        ("episode_index", "one", "cannot be read"), ("language_persistent", 3, ""),
        ("task_index", "one", ""),
    ],
)  # fmt: skip
def test_a_column_of_another_type(tmp_path: Path, column: str, value: Any, said: str) -> None:
    root = Made(lengths=(4, 4), image=True).write(tmp_path / "set", 2)
    file = sorted(root.glob("data/**/*.parquet"))[0]
    rewrite(file, lambda rows: [{**row, column: value} for row in rows])
    found = outcome(root)
    assert (said in found[0] if said else found[0] == "") and found[1] == ""
    if not said:
        rows = Rows(episodes(root)[0])
        assert [one.text for one in labels(rows)] == ["Pick the red cube"]


def test_times_that_do_not_rise(tmp_path: Path) -> None:
    root = Made(lengths=(4, 4), image=True).write(tmp_path / "set", 2)
    file = sorted(root.glob("data/**/*.parquet"))[0]
    rewrite(file, lambda rows: [{**row, "timestamp": 0.1 * (k % 2)} for k, row in enumerate(rows)])
    assert "do not rise" in outcome(root)[0] and outcome(root)[1] == ""


def test_a_description_that_is_damaged_in_parts(tmp_path: Path) -> None:
    root = Made(lengths=(3, 3, 3), image=True).write(tmp_path / "three", 3)
    sorted(root.glob("meta/episodes/*/*"))[1].write_bytes(b"PAR1 no table")
    (root / "meta/tasks.parquet").write_bytes(b"")
    dataset = Dataset(root)
    assert dataset.indexes == [0, 1] and len(dataset.problems) == 2
    assert "file-001.parquet cannot be read" in dataset.problems[1]
    assert [one.text for one in tasks(Rows(choose(dataset)[0]))] == ["Pick the red cube"]

    root = Made(lengths=(3, 3, 3), image=True).write(tmp_path / "two", 2)
    file = root / "meta/episodes.jsonl"
    rows = file.read_text().splitlines()
    file.write_text("\n".join([rows[0], rows[1][:20], json.dumps({"episode_index": 2})]))
    dataset = Dataset(root)
    assert dataset.indexes == [0]
    assert f"{file}:2 is no JSON object" in dataset.problems[0]
    assert "an episode 2 of None frames" in dataset.problems[1]
    write_lines(file, [json.loads(rows[0])])
    assert (
        Dataset(root)
        .problems[0]
        .endswith("says 3 episodes, and 1 of them are described; the others are left out.")
    )


@pytest.mark.parametrize(
    ("info", "said"),
    [
        ({"codebase_version": "v1.6"}, "of version v1.6, and v2.0, v2.1 and v3.0 are read"),
        ({"codebase_version": None}, "of version None"),
        ({"fps": 0}, "'fps' is 0, not frames a second"),
        ({"fps": "ten"}, "'fps' is 'ten'"),
        ({"features": []}, "it names no features"),
        ({"features": {"a": 1}}, "a feature is not described"),
        ({"storage_format": "lance"}, "keeps its frames as lance"),
        ({"data_path": "data/{nothing}"}, "'data_path' is no pattern"),
        ({"data_path": "../{episode_index}.parquet"}, "'data_path' names no file in the folder"),
        ({"features": {}}, "has no camera 'top'; it has: none"),
    ],
)
def test_a_data_set_that_is_none_is_a_sentence(
    tmp_path: Path, info: dict[str, Any], said: str
) -> None:
    root = Made(lengths=(2,), image=True, info=info).write(tmp_path / "set")
    with pytest.raises(DatasetError) as refusal:
        choose(Dataset(root), "top")
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


def test_without_pyarrow_it_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Made(lengths=(2,), image=True).write(tmp_path / "set", 2)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DatasetError, match=r"needs PyArrow .*: pip install pyarrow"):
        seen(episodes(root)[0])


# --- the Hub ---


class Hub:
    """Stands in for huggingface_hub: a data set, fetched as far as it is asked for."""

    def __init__(self, there: Path, cache: Path) -> None:
        self.there, self.cache = there, cache
        self.asked: list[tuple[str, str | None, list[str]]] = []

    def snapshot_download(
        self, repo_id: str, *, repo_type: str, revision: str | None, allow_patterns: list[str]
    ) -> str:
        from fnmatch import fnmatch

        assert repo_type == "dataset"
        self.asked.append((repo_id, revision, allow_patterns))
        folder = self.cache / "0123abc"
        for file in self.there.rglob("*"):
            name = str(file.relative_to(self.there))
            if file.is_file() and any(fnmatch(name, pattern) for pattern in allow_patterns):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, folder / name)
        return str(folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    cameras = (TOP, "observation.images.wrist")
    there = Made(lengths=(3, 3, 3), cameras=cameras, files=((0, 1), (2,))).write(tmp_path / "there")
    (there / "meta/stats.json").write_text("{}")
    made = Hub(there, tmp_path / "cache")
    module = types.SimpleNamespace(snapshot_download=made.snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.chdir(tmp_path)
    return made


def test_of_the_hub_only_what_is_needed_is_fetched(hub: Hub) -> None:
    source = Path("someone/cubes@v3.0")
    assert is_meant(source, camera=True)
    assert not is_meant(source, camera=False)  # it may as well be a mistyped path
    dataset = open_dataset(source)
    assert dataset.name == "cubes" and hub.asked[0][:2] == ("someone/cubes", "v3.0")
    files = {str(p.relative_to(dataset.root)) for p in dataset.root.rglob("*") if p.is_file()}
    assert all(name.startswith("meta/") for name in files) and "meta/stats.json" not in files
    found = choose(dataset, "top", "2")
    fetch_episodes(found)
    assert hub.asked[1] == ("someone/cubes", "0123abc", [
        "data/chunk-000/file-001.parquet", f"videos/{TOP}/chunk-000/file-001.mp4",
    ])  # fmt: skip
    assert [len(seen(one)) for one in found] == [3]


def test_a_place_of_a_file_is_no_id(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "shift").mkdir()
    for name in ("shift/cam", "bags/cam.mp4", "a/b/c", "absent", "/a/b", "lines/all.jsonl"):
        assert not is_meant(Path(name), camera=True)
    assert hub.asked == []


def test_what_the_hub_does_not_give_is_a_sentence(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any, **__: Any) -> str:
        raise OSError("no route to host\nand more")

    module = types.SimpleNamespace(snapshot_download=offline)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    with pytest.raises(DatasetError, match=r"could not be fetched .*OSError: no route to host\); "):
        open_dataset(Path("someone/cubes"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DatasetError, match="pip install huggingface_hub"):
        open_dataset(Path("someone/cubes"))
