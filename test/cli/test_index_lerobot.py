"""`vljepa index` of LeRobot data sets: moments at their positions in episodes, with tasks."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

pytest.importorskip("qdrant_edge", reason="not installed: pip install qdrant-edge-py")
pytest.importorskip("rosbags.rosbag2", reason="not installed: pip install rosbags")
pytest.importorskip("pyarrow", reason="not installed: pip install pyarrow")

from bundles import make_bundle
from lerobot_sets import AV1, H264, Made
from rosbags.highlevel import AnyReader

from vljepa_ros.cli.app import app
from vljepa_ros.memory.moment import Moment
from vljepa_ros.memory.store import MomentStore
from vljepa_ros.workers import pool

FPS, SECONDS = 10, 9
TASKS = ["put the red cube on the table", "a hand turns the green ball left", "the block falls"]
SAID = {1: [(0.0, "the arm moves"), (6.0, "the ball rolls")]}


def scenes(episode: int, frame: int) -> np.ndarray:
    """Every three seconds all looks different, and in every episode."""
    seed = 100 * episode + frame // 30
    cells = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return cells.repeat(8, 0).repeat(8, 1)


def made(**fields: Any) -> Made:
    values = {"lengths": (SECONDS * FPS,) * 3, "texts": TASKS, "picture": scenes, "said": SAID,
              "files": ((0,), (1, 2)), **fields}  # fmt: skip
    return Made(**values)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    thresholds = {"gate": 3.0, "change": 0.05, "watch": 0.5}
    return make_bundle(tmp_path_factory.mktemp("index") / "tiny", thresholds=thresholds)


def run(bundle: Path, store: Path, *arguments: Any) -> Result:
    given = ["index", "--bundle", bundle, "--store", store, "--robot", "robbie", *arguments]
    return CliRunner().invoke(app, [str(argument) for argument in given])


def moments(folder: Path) -> list[Moment]:
    with MomentStore(folder, read_only=True) as store:
        found = store.newest(1000)
    return sorted(found, key=lambda m: (m.camera, m.episode, m.start_ns, m.query))


def content(moment: Moment) -> tuple[Any, ...]:
    return (
        moment.id, moment.episode, moment.start_ns, moment.end_ns, moment.text, moment.task,
        moment.embedding.tobytes(), moment.thumbnail,
    )  # fmt: skip


def recalled(bundle: Path, store: Path, text: str, *more: str) -> list[dict[str, Any]]:
    given = ["recall", text, "--store", str(store), "--bundle", str(bundle), "--json", *more]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    found: list[dict[str, Any]] = json.loads(done.output)
    return found


@pytest.mark.parametrize(("version", "codec"), [(3, AV1), (2, H264)])
def test_episodes_become_moments_and_a_task_finds_its_own(
    bundle: Path, tmp_path: Path, version: int, codec: tuple[str, dict[str, str]]
) -> None:
    root, store = made(codec=codec).write(tmp_path / "cubes", version), tmp_path / "store"
    done = run(bundle, store, root, "--camera", "top")
    assert done.exit_code == 0, done.output
    assert "27.0 s of recordings in " in done.output
    kept = moments(store)
    assert {m.camera for m in kept} == {"cubes_top"} and {m.robot for m in kept} == {"robbie"}
    for episode, task in enumerate(TASKS):
        its = [m for m in kept if m.episode == episode]
        seen = [m for m in its if m.query == "What is happening?"]
        assert len(seen) >= 3 and seen[0].start_ns < 2e9 and seen[-1].end_ns < SECONDS * 1e9
        assert {m.task for m in its} == {task} and all(m.thumbnail for m in its)
        (whole,) = (m for m in its if m.query == "task")
        assert (whole.start_ns, whole.end_ns, whole.text) == (0, SECONDS * 10**9, task)
        best = recalled(bundle, store, task)[0]
        assert (best["episode"], best["task"], best["score"]) == (episode, task, 1.0)
    timed = [m for m in kept if m.query == "subtask"]
    assert [(m.episode, m.start_ns, m.end_ns, m.text) for m in timed] == [
        (1, 0, 6 * 10**9, "the arm moves"), (1, 6 * 10**9, 9 * 10**9, "the ball rolls"),
    ]  # fmt: skip
    again = run(bundle, store, root, "--camera", "top")
    assert f"{len(kept)} moments, 0 of them new" in again.output
    assert [content(m) for m in moments(store)] == [content(m) for m in kept]


def test_workers_make_the_moments_of_one_process_and_leave_the_same_out(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "PATIENCE", math.inf)  # however long they need to begin
    root = made(codec=H264).write(tmp_path / "cubes", 2)
    broken = sorted(root.glob("videos/**/*.mp4"))[1]
    broken.write_bytes(broken.read_bytes()[:100])
    said = {}
    for name, how in (("alone", ()), ("two", ("--workers", 2))):
        done = run(bundle, tmp_path / name, root, *how)
        assert done.exit_code == 1
        said[name] = done.stderr
    assert said["two"] == said["alone"] and "Episode 1 of cubes is left out" in said["two"]
    kept = [content(m) for m in moments(tmp_path / "alone")]
    assert [content(m) for m in moments(tmp_path / "two")] == kept
    assert {episode for _, episode, *_ in kept} == {0, 2}


def test_an_episode_s_moments_are_those_of_its_video_alone(bundle: Path, tmp_path: Path) -> None:
    root = made(codec=H264).write(tmp_path / "cubes", 2)
    assert run(bundle, tmp_path / "set", root, "--no-words").exit_code == 0
    video = sorted(root.glob("videos/**/*.mp4"))[1]
    assert run(bundle, tmp_path / "video", video, "--no-words").exit_code == 0
    found = [m for m in moments(tmp_path / "set") if m.episode == 1 and m.query[:3] == "Wha"]
    alone = moments(tmp_path / "video")
    assert len(found) == len(alone) >= 3
    lead = alone[0].start_ns - found[0].start_ns
    for one, other in zip(found, alone, strict=True):
        assert (one.start_ns + lead, one.end_ns + lead) == (other.start_ns, other.end_ns)
        assert np.array_equal(one.embedding, other.embedding) and one.thumbnail == other.thumbnail


def test_a_damaged_episode_is_named_and_left_out_whole(bundle: Path, tmp_path: Path) -> None:
    whole = made(codec=H264).write(tmp_path / "whole" / "cubes", 2)
    assert run(bundle, tmp_path / "expected", whole, "--episodes", "0,2").exit_code == 0
    root = tmp_path / "cubes"
    shutil.copytree(whole, root)  # to the bit: an encoder may differ from one time to the next
    video = sorted(root.glob("videos/**/*.mp4"))[1]
    content_ = bytearray(video.read_bytes())
    at = len(content_) * 3 // 5  # near the end of the pictures, after those that make moments
    content_[at : at + 600] = bytes(600)
    video.write_bytes(content_)
    out = tmp_path / "out.mcap"
    done = run(bundle, tmp_path / "store", root, "--export", out)
    said = " ".join(done.output.split())
    assert done.exit_code == 1 and "Episode 1 of cubes is left out: its picture at " in said
    kept = moments(tmp_path / "store")
    assert {m.episode for m in kept} == {0, 2}
    assert [content(m) for m in kept] == [content(m) for m in moments(tmp_path / "expected")]
    with AnyReader([out]) as reader:
        stamps = [
            (c.topic, reader.deserialize(data, c.msgtype).header.stamp.sec)
            for c, _, data in reader.messages()
            if c.topic != "/model_info"
        ]
    assert {sec // (SECONDS + 1) for _, sec in stamps} == {0, 2}  # one after another
    for file in root.glob("videos/**/*.mp4"):
        file.unlink()
    done = run(bundle, tmp_path / "none", root)
    said = " ".join(done.output.split())
    assert done.exit_code == 1 and "Episodes 0 to 2 of cubes are left out: there is no" in said
    assert moments(tmp_path / "none") == []


def test_a_damaged_description_and_a_null_camera_are_said(bundle: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from lerobot_sets import write_table

    root = made(lengths=(20, 20, 20, 20), files=()).write(tmp_path / "cubes")
    first, second = sorted(root.glob("meta/episodes/*/*"))
    rows = pq.read_table(first).to_pylist()
    rows[0] |= {key: None for key in rows[0] if key.startswith("videos/")}
    write_table(first, pa.Table.from_pylist(rows))
    done = run(bundle, tmp_path / "store", root)
    said = " ".join(done.output.split())
    assert done.exit_code == 0 and "has no pictures in episode 0." in said
    assert {m.episode for m in moments(tmp_path / "store")} == {1, 2, 3}
    second.write_bytes(b"no table")
    done = run(bundle, tmp_path / "other", root)
    assert done.exit_code == 1 and "its episodes are left out" in str(done.exception)
    assert {m.episode for m in moments(tmp_path / "other")} == {1}


def test_two_cameras_and_some_episodes(bundle: Path, tmp_path: Path) -> None:
    cameras = ("observation.images.top", "observation.images.wrist")
    root = made(cameras=cameras, lengths=(20, 20, 20), image=True).write(tmp_path / "cubes")
    given = ("--camera", "top", "--camera", cameras[1], "--episodes", "1:")
    assert run(bundle, tmp_path / "store", root, *given).exit_code == 0
    found = {(m.camera, m.episode) for m in moments(tmp_path / "store")}
    assert found == {(f"cubes_{c}", e) for c in ("top", "wrist") for e in (1, 2)}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["{set}"],
            "Say which --camera of cubes; it has: observation.images.a, observation.images.b",
        ),
        (["{set}", "--camera", "c"], "cubes has no camera 'c'; it has: "),
        (["{set}", "--camera", "a", "--episodes", "many"], "names no episodes; give e.g. 3, 0:50"),
        (["{set}", "--topic", "/a"], "by themselves: they have no --topic"),
        (["{set}", "{set}/meta"], "by themselves: "),
        (["{set}", "{other}/cubes", "--camera", "a"], "2 data sets have a camera 'cubes_a'"),
        (
            ["no/cubes"],
            "There is no recording no/cubes (No such file or directory). If it is a data "
            "set of the Hub, name its --camera.",
        ),
        (
            ["{set}", "--camera", "a", "--start", "9"],
            "positions in its episodes; leave out --start",
        ),
        (["{set}/meta", "--episodes", "3"], "--episodes are of a LeRobot data set, and none is"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(
    bundle: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    cameras = ("observation.images.a", "observation.images.b")
    few = made(cameras=cameras, lengths=(2,), image=True, files=())
    root, other = few.write(tmp_path / "cubes"), few.write(tmp_path / "other" / "cubes").parent
    done = run(bundle, tmp_path / "store", *(a.format(set=root, other=other) for a in arguments))
    assert done.exit_code == 1
    assert said in str(done.exception) and "\n" not in str(done.exception)
