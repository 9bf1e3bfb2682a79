"""`vljepa timeline` of a video, a folder, a bag and a store, none of which has any truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner, Result

pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install matplotlib")
pytest.importorskip("qdrant_edge", reason="not installed: pip install qdrant-edge-py")
pytest.importorskip("rosbags.rosbag2", reason="not installed: pip install rosbags")

from bags import write_bag
from bundles import make_bundle
from rosbags.rosbag2 import StoragePlugin

from vljepa_ros.cli.app import app
from vljepa_ros.errors import VLJepaError
from vljepa_ros.evaluation import timeline
from vljepa_ros.evaluation.tracks import Track

SECOND = 10**9
BEGIN = 1_700_000_000 * SECOND
TOPICS = ("/front/image_raw", "/rear/image_raw")


def noise(seed: int) -> np.ndarray:
    cells = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return cells.repeat(8, 0).repeat(8, 1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    thresholds = {"gate": 3.0, "change": 0.05, "watch": 0.5}
    return make_bundle(tmp_path_factory.mktemp("timeline") / "tiny", thresholds=thresholds)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine seconds at 10 Hz, which look different every three."""
    made = tmp_path_factory.mktemp("pictures") / "kitchen"
    made.mkdir()
    for k in range(90):
        cv2.imwrite(str(made / f"{k:03}.png"), noise(k // 30)[..., ::-1])
    return made


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Track]:
    """The tracks that were drawn."""
    tracks: list[Track] = []
    draw = timeline.draw

    def spy(title: str, some: list[Track], *arguments: Any) -> str:
        tracks.extend(some)
        return draw(title, some, *arguments)

    monkeypatch.setattr(timeline, "draw", spy)
    return tracks


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["timeline", *map(str, arguments)])


def made(*arguments: Any) -> str:
    """What the command prints; it has to succeed."""
    done = run(*arguments)
    if done.exception is not None:
        raise done.exception
    return done.output


def check_picture(path: Path) -> None:
    picture = cv2.imread(str(path))
    assert picture is not None and picture.shape[1] == 15 * timeline.DPI and picture.std() > 20


def test_a_recording_without_truth(
    bundle: Path, folder: Path, tmp_path: Path, drawn: list[Track]
) -> None:
    out = tmp_path / "out.png"
    said = made(folder, out, "--bundle", bundle)
    (track,) = drawn
    assert f"{len(track.marks)} changes, {track.said} put into words" in said
    assert said.splitlines()[-1] == str(out)
    check_picture(out)
    # Positions in the recording: the first whole clip ends at 0.8 s, what happens is at 3 and 6 s.
    assert track.times[0] == pytest.approx(0.8) and track.times[-1] == pytest.approx(8.8, abs=0.2)
    assert track.marks[0].at == pytest.approx(0.8)
    for at in (3, 6):
        assert any(at <= mark.at <= at + 1.5 for mark in track.marks)
    for mark in track.marks:
        assert mark.verdict == "" and mark.picture is not None and mark.text
        seed = int(mark.at // 3)
        assert np.abs(mark.picture[::20, ::20].astype(int) - big(seed)[::20, ::20]).mean() < 12


def big(seed: int) -> np.ndarray:
    return cv2.resize(noise(seed), (160, 120), interpolation=cv2.INTER_LINEAR).astype(int)


def test_json_that_is_no_truth_is_none(
    bundle: Path, folder: Path, tmp_path: Path, drawn: list[Track]
) -> None:
    beside = folder.with_suffix(".json")
    for content in ('{"events": [{"kind": "click"}]}', "[1]", '{"events": 5}', "\xff"):
        beside.write_text(content, encoding="latin-1")
        made(folder, tmp_path / "out.png", "--bundle", bundle)
    assert len(drawn) == 4 and not any(track.shaded for track in drawn)
    event = {"kind": "fall_off", "object": None, "start": 0, "end": 9, "text": "it falls"}
    beside.write_text(json.dumps({"events": [event]}))
    made(folder, tmp_path / "out.png", "--bundle", bundle)
    beside.unlink()
    assert drawn[-1].shaded == ((0, 9),)
    assert all(mark.verdict in ("right", "half", "wrong") for mark in drawn[-1].marks)


def test_a_bag_is_drawn_by_camera_and_a_store_like_it(
    bundle: Path, tmp_path: Path, drawn: list[Track]
) -> None:
    images = (
        (topic, BEGIN + k * SECOND // 10 + i, noise(100 * i + k // 30))
        for k in range(90) for i, topic in enumerate(TOPICS)
    )  # fmt: skip
    write_bag(tmp_path / "bag", images, StoragePlugin.MCAP)
    made(tmp_path / "bag", tmp_path / "bag.png", "--bundle", bundle)
    assert [track.name for track in drawn] == ["front", "rear"]
    assert all(abs(track.origin_ns - BEGIN) < 2 * SECOND for track in drawn)
    assert all(7 < track.length < 9 for track in drawn)
    check_picture(tmp_path / "bag.png")
    made(tmp_path / "bag", tmp_path / "one.jpg", "--bundle", bundle, "--topic", TOPICS[1])
    assert [track.name for track in drawn[2:]] == ["rear"]
    store = tmp_path / "store"
    given = ["index", tmp_path / "bag", "--store", store, "--bundle", bundle, "--robot", "r"]
    assert CliRunner().invoke(app, list(map(str, given))).exit_code == 0
    said = made(store, tmp_path / "store.png")
    moments = drawn[3:]
    assert [track.name for track in moments] == ["front", "rear"]
    count = sum(len(track.marks) for track in moments)
    assert f"{count} moments, {sum(t.said for t in moments)} with words" in said
    assert count == sum(len(track.marks) for track in drawn[:2])
    assert all(mark.picture is not None for track in moments for mark in track.marks)
    check_picture(tmp_path / "store.png")


@pytest.mark.parametrize(
    ("out", "sentence"),
    [
        ("out.xyz", "is no name of a picture; let it end with .png, .jpg, .jpeg or .webp."),
        ("out", "is no name of a picture"),
        ("none/out.png", "there is no folder"),
        ("folder.png", "it is a folder"),
    ],
)
def test_a_name_that_cannot_be_written_is_said_first(
    out: str, sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "folder.png").mkdir()
    done = run(tmp_path / "nothing.mp4", tmp_path / out)
    assert isinstance(done.exception, VLJepaError) and sentence in str(done.exception)


def test_what_cannot_be_drawn_is_a_sentence(bundle: Path, folder: Path, tmp_path: Path) -> None:
    short = tmp_path / "short"
    short.mkdir()
    cv2.imwrite(str(short / "0.png"), noise(0))
    for arguments, sentence in (
        (["nothing.mp4"], "There is no recording nothing.mp4"),
        ([folder, "--topic", "/a"], "is no bag, and has no --topic"),
        ([short], "is too short: the model needs 4 frames in a row, 0.25 s from one to the next."),
    ):
        given = (arguments[0], tmp_path / "out.png", *arguments[1:], "--bundle", bundle)
        done = run(*given)
        assert isinstance(done.exception, VLJepaError) and sentence in str(done.exception)
    assert not (tmp_path / "out.png").exists()
