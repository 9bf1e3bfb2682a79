"""Video files as people have them: their times, their formats, their damage."""

from __future__ import annotations

import io
import struct
import sys
import tempfile
import types
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("av", reason="PyAV is not installed: pip install av")

import av
from hypothesis import given, settings
from hypothesis import strategies as st
from video_files import grey, numbers, packets, write_video

from vljepa_ros.recordings.video import VideoError, VideoSource
from vljepa_ros.recordings.video_file import VideoFile

ROOT = Path(__file__).parents[2]
MS = 1_000_000
ROUNDING = 1  # grey levels; with the FFmpeg that opencv-python carries the pictures are equal
VARYING = [0, 33, 66, 100, 2000, 2033, 9000, 9066, 60000, 60033]


def apart(picture: np.ndarray, capture: cv2.VideoCapture) -> int:
    """The largest difference, in grey levels, of a picture from the next that OpenCV decodes."""
    return int(np.abs(picture.astype(int) - capture.read()[1][..., ::-1]).max())


def frames(path: Path, fps: float | None = None) -> tuple[list[int], list[int]]:
    """The offsets in ms and the numbers of the pictures."""
    got = list(VideoSource(path, fps).frames())
    return [round(at / MS) for at, _ in got], numbers(picture for _, picture in got)


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.avi.mov", "v.ts"])
def test_every_picture_has_its_own_time(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, VARYING)
    assert frames(path) == (VARYING, list(range(10)))


def test_the_shipped_video_is_what_opencv_makes_of_it() -> None:
    """Its figures, in docs, are of these pictures at these times."""
    path = ROOT / "videos" / "tabletop.mp4"
    capture = cv2.VideoCapture(str(path))
    source = VideoSource(path)
    assert (source.fps, source.size, source.seconds) == (20.0, (640, 480), 90.0)
    for number, (offset, picture) in zip(range(100), source.frames(), strict=False):
        assert offset == number * 50 * MS
        assert apart(picture, capture) <= ROUNDING


def test_a_rate_changes_the_speed_and_keeps_the_rhythm(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", VARYING)
    source = VideoSource(path)
    twice = VideoSource(path, 2 * source.fps)
    assert twice.fps == 2 * source.fps
    assert twice.seconds == pytest.approx(source.seconds / 2)
    assert [at / MS for at, _ in twice.frames()] == pytest.approx([at / 2 for at in VARYING])
    steady = write_video(tmp_path / "s.mp4", range(0, 1000, 100))
    assert frames(steady, 20)[0] == list(range(0, 500, 50))


@pytest.mark.parametrize("name", ["late.mkv", "late.mp4", "late.ts"])
def test_times_begin_with_the_stream(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, [5000 + at for at in (0, 40, 300, 350)])
    assert frames(path) == ([0, 40, 300, 350], [0, 1, 2, 3])
    assert VideoSource(path).seconds < 1


@pytest.mark.parametrize("name", ["b.mp4", "b.mkv", "b.avi", "b.ts"])
def test_pictures_that_are_coded_out_of_order_come_in_order(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, range(0, 2000, 100), options={"bf": "3"})
    assert frames(path) == (list(range(0, 2000, 100)), list(range(20)))


@pytest.mark.parametrize("name", ["s.mp4", "s.mkv", "s.ts"])
@pytest.mark.parametrize("start", [0, 1100, 1250, 2700])
def test_a_stretch_begins_with_its_first_picture(tmp_path: Path, name: str, start: int) -> None:
    """Also where the key frame before it is coded late, and pictures out of order."""
    path = write_video(tmp_path / name, range(0, 3000, 100), options={"g": "12", "bf": "3"})
    found = list(VideoFile(path).stretch(start / 1000 - 0.01, start / 1000 + 0.29))
    first = -(-start // 100) * 100
    assert [round(1000 * at) for at, _ in found] == [first, first + 100, first + 200]
    assert numbers(picture() for _, picture in found) == [round(at * 10) for at, _ in found]


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [("dump.mjpeg", "mjpeg", "yuvj420p"), ("dump.h264", "libx264", "yuv420p")],
)
def test_a_dump_without_times_is_played_at_its_rate(
    tmp_path: Path, name: str, codec: str, pixels: str
) -> None:
    path = write_video(tmp_path / name, range(0, 1000, 100), codec, pixels)
    assert frames(path) == (list(range(0, 400, 40)), list(range(10)))  # what FFmpeg takes it for
    assert frames(path, 10) == (list(range(0, 1000, 100)), list(range(10)))
    source = VideoSource(path)
    assert source.seconds == 0
    list(source.frames())
    assert source.seconds == pytest.approx(0.4)


def test_a_recording_of_a_browser_says_neither_length_nor_rate(tmp_path: Path) -> None:
    class Pipe(io.RawIOBase):
        """Cannot be wound back, so nothing is filled in at the end."""

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:  # type: ignore[override]
            written.extend(data)
            return len(data)

    written = bytearray()
    path = tmp_path / "live.webm"
    write_video(path, VARYING[:8], "libvpx", target=Pipe())
    path.write_bytes(written)
    assert VideoSource(path).seconds == 0
    assert frames(path) == (VARYING[:8], list(range(8)))


def test_a_rate_for_a_file_without_one_is_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.ts", [0, 174, 284, 456, 623, 776, 920, 1025])
    assert VideoSource(path).fps == 0
    with pytest.raises(VideoError, match="does not say its mean rate"):
        VideoSource(path, 10)


FORMATS = [
    ("av1.mp4", "libsvtav1", "yuv420p"), ("hevc.mp4", "libx265", "yuv420p"),
    ("ten.mp4", "libx265", "yuv420p10le"), ("vp9.webm", "libvpx-vp9", "yuv420p"),
    ("grey.mkv", "ffv1", "gray16le"), ("alpha.mov", "png", "rgba"),
    ("full.avi", "mjpeg", "yuvj420p"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "codec", "pixels"), FORMATS)
def test_what_people_have_is_decoded(tmp_path: Path, name: str, codec: str, pixels: str) -> None:
    path = write_video(tmp_path / name, range(0, 600, 100), codec, pixels)
    assert frames(path) == (list(range(0, 600, 100)), list(range(6)))
    got = [picture for _, picture in VideoSource(path).frames()]
    assert {(picture.shape, str(picture.dtype)) for picture in got} == {((48, 64, 3), "uint8")}
    capture = cv2.VideoCapture(str(path))
    if codec != "libsvtav1":  # which OpenCV's FFmpeg does not decode
        assert max(apart(picture, capture) for picture in got) <= (
            4 if "10" in pixels else ROUNDING
        )


# The display matrices of 90, 180 and 270 degrees, as mp4 holds them.
ONE = 1 << 16
TURNS = {
    90: (0, ONE, 0, -ONE, 0, 0), 180: (-ONE, 0, 0, 0, -ONE, 0), 270: (0, -ONE, 0, ONE, 0, 0),
}  # fmt: skip


@pytest.mark.parametrize("degrees", TURNS)
def test_a_phone_s_rotation_is_undone(tmp_path: Path, degrees: int) -> None:
    def corner(number: int) -> np.ndarray:
        picture = np.full((48, 64, 3), 40, np.uint8)
        picture[:24, :32, 0] = 220
        return picture

    path = write_video(tmp_path / "v.mp4", [0, 100], make=corner)
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 44
    assert struct.unpack_from(">9i", content, at)[8] == 1 << 30
    struct.pack_into(">6i", content, at, *TURNS[degrees])
    path.write_bytes(content)
    source = VideoSource(path)
    picture = next(source.frames())[1]
    capture = cv2.VideoCapture(str(path))
    assert apart(picture, capture) <= ROUNDING
    assert source.size == ((64, 48) if degrees == 180 else (48, 64)) == picture.shape[1::-1]
    assert picture.flags["C_CONTIGUOUS"]


def test_colours_are_those_that_the_file_names(tmp_path: Path) -> None:
    """Pure red, as HD cameras code it: by the matrix of 601 it would come out as orange."""
    path = tmp_path / "hd.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"colorspace": "bt709"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        red = np.zeros((48, 64, 3), np.uint8)
        red[..., 0] = 255
        frame = av.VideoFrame.from_ndarray(red, "rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="itu709", dst_color_range="MPEG")
        frame.pts, frame.time_base = 0, Fraction(1, 10)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    picture = next(VideoSource(path).frames())[1]
    assert np.abs(picture[24, 32].astype(int) - (255, 0, 0)).max() <= 4


def test_a_file_without_its_index_is_one_sentence(tmp_path: Path) -> None:
    content = write_video(tmp_path / "v.mp4", range(0, 2000, 100)).read_bytes()
    (tmp_path / "no-moov.mp4").write_bytes(content[: content.index(b"moov") - 4])
    with pytest.raises(VideoError) as refusal:
        VideoSource(tmp_path / "no-moov.mp4")
    assert "no-moov.mp4 is not a video that can be decoded" in str(refusal.value)


def damage(path: Path, *pictures: int) -> Path:
    """The file with noise in the middle of these pictures."""
    where = packets(path)
    content = bytearray(path.read_bytes())
    for number in pictures:
        position, size = where[number]
        begin, end = position + size // 4, position + 3 * size // 4
        noise = np.random.default_rng(number).integers(0, 256, end - begin)
        content[begin:end] = noise.astype(np.uint8).tobytes()
    path.write_bytes(content)
    return path


def noisy(number: int) -> np.ndarray:
    """A picture that takes some bytes, of the mean grey of its number."""
    noise = np.random.default_rng(number).integers(-8, 9, (48, 64, 1))
    return np.broadcast_to(grey(number) + noise, (48, 64, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "options"),
    [("d.avi", "mjpeg", "yuvj420p", {}), ("d.mp4", "libx264", "yuv420p", {"g": "1"}),
     ("d.mp4", "mpeg4", "yuv420p", {"g": "1"}), ("d.mov", "png", "rgb24", {})],
)  # fmt: skip
def test_damaged_pictures_are_left_out_and_the_others_keep_their_times(
    tmp_path: Path, name: str, codec: str, pixels: str, options: dict[str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    times = range(0, 2000, 100)
    path = damage(write_video(tmp_path / name, times, codec, pixels, options, noisy), 4, 11, 19)
    file = VideoFile(path)
    got = [(round(at * 1000), *numbers([picture])) for at, picture in file.pictures()]
    assert got == [(100 * k, k) for k in range(20) if k not in (4, 11, 19)]
    assert file.left_out == 3
    said = [record.getMessage() for record in caplog.records]
    assert [name in one and "left out: 3" in one for one in said] == [True]


def test_damage_that_hevc_s_decoder_passes_over_is_counted(tmp_path: Path) -> None:
    times = range(0, 1000, 100)
    options = {"x265-params": "keyint=1:log-level=none"}
    path = write_video(tmp_path / "d.mp4", times, "libx265", options=options, make=noisy)
    position, size = packets(path)[6]
    content = bytearray(path.read_bytes())
    content[position : position + size] = bytes(size)
    path.write_bytes(content)
    file = VideoFile(path)
    assert [round(at * 10) for at, _ in file.pictures()] == [0, 1, 2, 3, 4, 5, 7, 8, 9]
    assert file.left_out == 1


def test_a_damaged_beginning_shifts_nothing(tmp_path: Path) -> None:
    path = write_video(tmp_path / "d.mp4", range(0, 1000, 100), options={"g": "1"}, make=noisy)
    content = bytearray(path.read_bytes())
    for position, size in packets(path)[:3]:
        content[position : position + size] = bytes(size)
    path.write_bytes(content)
    assert frames(path) == (list(range(300, 1000, 100)), list(range(3, 10)))


def test_a_recording_appended_to_another_goes_on_behind_it(tmp_path: Path) -> None:
    one = write_video(tmp_path / "1.ts", range(0, 2000, 100))
    content = one.read_bytes()
    one.write_bytes(content + content)
    times, shown = frames(one)
    assert shown == [*range(20), *range(20)]
    assert times == list(range(0, 4000, 100))


@pytest.mark.parametrize("name", ["c.mp4", "c.mkv"])
def test_a_cut_file_plays_what_it_has_and_says_so(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"movflags": "faststart"} if name == "c.mp4" else None
    path = write_video(tmp_path / name, range(0, 2000, 100), make=noisy, container=options)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    source = VideoSource(path)
    assert source.seconds == pytest.approx(2.0)
    times = [at for at, _ in source.frames()]
    assert 5 < len(times) < 18
    assert source.seconds == pytest.approx(len(times) / 10)
    assert any("ends early" in record.getMessage() for record in caplog.records)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A video of each container, by its suffix."""
    folder = tmp_path_factory.mktemp("small")
    made = {"mp4": "libx264", "avi": "mjpeg", "mkv": "ffv1", "webm": "libvpx-vp9", "ts": "mpeg4"}
    return {
        suffix: write_video(
            folder / f"v.{suffix}", range(0, 600, 100), codec,
            "yuvj420p" if codec == "mjpeg" else "yuv420p",
        ).read_bytes()
        for suffix, codec in made.items()
    }  # fmt: skip


PATCHES = st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), max_size=30)


@given(st.sampled_from(["mp4", "avi", "mkv", "webm", "ts"]), st.floats(0, 1), PATCHES)
@settings(max_examples=60, deadline=None)
def test_any_damage_gives_pictures_at_rising_times_or_a_sentence(
    small: dict[str, bytes], suffix: str, length: float, patches: list[tuple[float, bytes]]
) -> None:
    content = bytearray(small[suffix])
    for place, patch in patches:
        at = int(place * (len(content) - 1))
        content[at : at + len(patch)] = patch
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"v.{suffix}"
        path.write_bytes(content[: int((0.3 + length) * len(content))])
        last = -1
        try:
            for at, picture in VideoSource(path).frames():
                assert at > last and picture.dtype == np.uint8 and picture.shape[2:] == (3,)
                last = at
        except VideoError as error:
            said = str(error)
        else:
            said = path.name
        assert path.name in said and "\n" not in said


OLD = types.SimpleNamespace(__version__="11.0.0")


@pytest.mark.parametrize(("module", "said"), [(None, "import of av halted"), (OLD, "11.0.0")])
def test_without_pyav_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: object, said: str
) -> None:
    path = write_video(tmp_path / "v.mp4", [0, 100])
    monkeypatch.setitem(sys.modules, "av", module)
    with pytest.raises(VideoError, match=r"needs PyAV 17 .*pip install --upgrade av") as refusal:
        VideoSource(path)
    assert str(path) in str(refusal.value) and said in str(refusal.value)
