"""Video sources, and the offline run over them."""

from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
from pictures import encode, scene

from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.perception.perceiver import Perceiver
from vljepa_ros.perception.settings import Settings
from vljepa_ros.recordings import offline
from vljepa_ros.recordings.video import VideoError, VideoSource

SECOND = 10**9


def write_video(path: Path, frames: int = 45, fps: float = 15) -> Path:
    """A red video that turns blue after two thirds."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, (64, 48))
    assert writer.isOpened()
    for i in range(frames):
        colour = (0, 0, 250) if i < frames * 2 // 3 else (250, 0, 0)  # BGR
        writer.write(np.full((48, 64, 3), colour, np.uint8))
    writer.release()
    return path


def write_images(folder: Path, names: list[str]) -> Path:
    folder.mkdir()
    for i, name in enumerate(names):
        picture = np.full((20 + i, 30, 3), 10 * i, np.uint8)
        picture[..., 2] = 200  # red in BGR
        assert cv2.imwrite(str(folder / name), picture)
    return folder


def test_a_file_s_stamps_are_its_frames_over_its_rate(tmp_path: Path) -> None:
    source = VideoSource(write_video(tmp_path / "v.avi"))
    assert (source.fps, source.size, source.live) == (15.0, (64, 48), False)
    assert source.seconds == 3.0
    frames = list(source.frames())
    assert [offset for offset, _ in frames] == [round(i * 1e9 / 15) for i in range(45)]
    first, last = frames[0][1], frames[-1][1]
    assert first.shape == (48, 64, 3) and first.dtype == np.uint8
    assert first[5, 5, 0] > 200 > 50 > first[5, 5, 2]  # RGB
    assert last[5, 5, 2] > 200 > 50 > last[5, 5, 0]
    again = list(source.frames())
    assert all((a[1] == b[1]).all() for a, b in zip(frames, again, strict=True))


def test_a_folder_is_played_in_natural_order(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "f", ["a1.png", "a2.png", "a10.png", "b.jpg"])
    (folder / "notes.txt").write_text("not an image")
    source = VideoSource(str(folder))
    assert (source.fps, source.size, source.seconds) == (10.0, (30, 20), 0.4)
    frames = list(source.frames())
    assert [offset for offset, _ in frames] == [0, SECOND // 10, SECOND // 5, 3 * SECOND // 10]
    assert [picture.shape[0] for _, picture in frames] == [20, 21, 22, 23]  # sizes may differ
    assert frames[1][1][0, 0].tolist() == [200, 10, 10]
    assert [o for o, _ in VideoSource(folder, fps=2).frames()][-1] == 3 * SECOND // 2


def test_sources_that_cannot_be_read_say_so(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"No video '.*absent\.mp4'"):
        VideoSource(tmp_path / "absent.mp4")
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(VideoError, match=r"text\.mp4 is not a video"):
        VideoSource(tmp_path / "text.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(VideoError, match="holds no images"):
        VideoSource(tmp_path / "empty")
    with pytest.raises(VideoError, match="above 0"):
        VideoSource(tmp_path / "empty", fps=0)
    with pytest.raises(VideoError, match="camera device /dev/video97 does not open"):
        VideoSource("/dev/video97")


@pytest.mark.parametrize("damaged", [b"", b"\x89PNG broken", encode("jpg", scene())[:-900]])
def test_a_damaged_image_leaves_its_place_empty_and_is_named(
    damaged: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_images(tmp_path / "f", ["1.png", "2.png", "3.png", "4.png"])
    for name in ("1.png", "3.png"):
        (folder / name).write_bytes(damaged)
    source = VideoSource(folder)
    assert source.size == (30, 21)  # the first that can be decoded
    with caplog.at_level(logging.WARNING):
        frames = list(source.frames())
    assert [(offset, picture.shape[0]) for offset, picture in frames] == [
        (SECOND // 10, 21), (3 * SECOND // 10, 23)
    ]  # fmt: skip
    assert [r.getMessage().split(":")[0] for r in caplog.records] == [
        f"2 of 4 images of {folder} are left out; take away or replace what is damaged. "
        "The first is 1.png"
    ]
    for name in ("2.png", "4.png"):
        (folder / name).write_bytes(damaged)
    with pytest.raises(VideoError, match=r"No image of the folder .* can be decoded"):
        VideoSource(folder)


def test_a_video_that_ends_early_plays_what_it_has_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = write_video(tmp_path / "whole.avi")
    content = whole.read_bytes()
    cut = tmp_path / "cut.avi"
    cut.write_bytes(content[: len(content) // 2])
    with caplog.at_level(logging.WARNING):
        count = sum(1 for _ in VideoSource(cut).frames())
    assert 0 < count < 45
    assert any("ends early" in r.getMessage() for r in caplog.records)


def test_a_video_cut_before_its_first_picture_is_refused(tmp_path: Path) -> None:
    content = write_video(tmp_path / "whole.avi").read_bytes()
    (tmp_path / "head.avi").write_bytes(content[:200])
    with pytest.raises(VideoError, match=r"head\.avi is not a video"):
        VideoSource(tmp_path / "head.avi")


def test_offline_steps_are_the_same_on_every_run_and_at_every_whole_second(
    tmp_path: Path, tiny_bundle: Path
) -> None:
    source = VideoSource(write_video(tmp_path / "v.avi"))
    model = Runtime(load_bundle(tiny_bundle, verify=False), "onnxruntime-cpu", threads=1)
    runs = [
        list(offline.run(source, Perceiver(model, ["camera"], Settings()), start_ns=start))
        for start in (SECOND, SECOND, 1_700_000_000 * SECOND)
    ]
    assert len(runs[0]) == 3 * 4 - 3
    for run in runs[1:]:
        assert [(s.sequence, s.reused, s.segment_id) for s in run] == [
            (s.sequence, s.reused, s.segment_id) for s in runs[0]
        ]
        np.testing.assert_array_equal([s.embedding for s in run], [s.embedding for s in runs[0]])
    offsets = [
        [s.stamp_ns - start for s in run]
        for run, start in zip(runs, (SECOND, SECOND, 1_700_000_000 * SECOND), strict=True)
    ]
    assert offsets[0] == offsets[1] == offsets[2]
    assert not (runs[0][0].embedding == runs[0][-1].embedding).all()
