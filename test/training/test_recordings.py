"""Lines of a user's file into clips: every error said, every time exact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import video_files as support

pytest.importorskip("torch", reason="torch is not installed: pip install vljepa_ros[train]")
rosbag2 = pytest.importorskip(
    "rosbags.rosbag2", reason="rosbags is not installed: pip install vljepa_ros[train]"
)

from rosbags.typesys import Stores, get_typestore  # noqa: E402

from vljepa_ros.bundle.spec import ClipSpec  # noqa: E402
from vljepa_ros.recordings.bags import BagError, bag_info, bag_pictures  # noqa: E402
from vljepa_ros.recordings.left_out import LeftOut  # noqa: E402
from vljepa_ros.training.lines import Line, RecordingsError, Source, read, read_lines  # noqa: E402
from vljepa_ros.training.recordings import RecordedClips, Recordings, split  # noqa: E402

CLIP = ClipSpec(frames=4, image_size=16, tubelet=2, sample_rate=4.0)  # spans 0.75 s
FPS = 10
QUERY = "What is happening?"


def shade(step: int) -> int:
    """The grey level of picture `step`: no two within a recording are nearer than 8."""
    return 8 + 8 * step


def picture(step: int, width: int = 32, height: int = 24) -> np.ndarray:
    return np.full((height, width, 3), shade(step), np.uint8)


def write_video(path: Path, pictures: int = 25) -> Path:
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), FPS, (32, 24))
    for step in range(pictures):
        video.write(picture(step))
    video.release()
    return path


def write_bag(
    path: Path,
    plugin: Any,
    topics: dict[str, str],
    stamped: bool = True,
    damaged: int | None = None,
) -> Path:
    """A bag with 25 pictures on every topic (name: "raw" or "compressed") and one text topic.

    Header stamps begin at 100.5 s and rise by 0.1 s; the bag's own times are 7 s later. `damaged`:
    the number of a compressed picture whose bytes are none.
    """
    types = get_typestore(Stores.ROS2_HUMBLE)
    Stamp, Header, Raw, Compressed, Text = (
        types.types[name]
        for name in (
            "builtin_interfaces/msg/Time", "std_msgs/msg/Header", "sensor_msgs/msg/Image",
            "sensor_msgs/msg/CompressedImage", "std_msgs/msg/String",
        )
    )  # fmt: skip
    with rosbag2.Writer(path, version=9, storage_plugin=plugin) as bag:
        words = bag.add_connection("/words", Text.__msgtype__, typestore=types)
        bag.write(words, 1, types.serialize_cdr(Text("hello"), Text.__msgtype__))
        for topic, kind in topics.items():
            used = Raw if kind == "raw" else Compressed
            connection = bag.add_connection(topic, used.__msgtype__, typestore=types)
            for step in range(25):
                ns = 100_500_000_000 + step * 100_000_000
                stamp = Stamp(ns // 10**9, ns % 10**9) if stamped else Stamp(0, 0)
                header = Header(stamp, "camera")
                rgb = picture(step)
                message = (
                    Raw(header, 24, 32, "rgb8", 0, 96, rgb.ravel())
                    if kind == "raw"
                    else Compressed(header, "png", png(rgb)[: 20 if step == damaged else None])
                )
                data = types.serialize_cdr(message, used.__msgtype__)
                bag.write(connection, ns + 7 * 10**9, data)
    return path


def png(rgb: np.ndarray) -> np.ndarray:
    return cv2.imencode(".png", rgb)[1].ravel()


PLUGINS = list(rosbag2.StoragePlugin)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video, an sqlite3 bag with two cameras, an MCAP bag with one, a bag without images."""
    folder = tmp_path_factory.mktemp("recordings")
    write_video(folder / "a.mp4")
    for plugin in PLUGINS:
        two = {"/front": "raw", "/back": "compressed"}
        write_bag(folder / plugin.name.lower(), plugin, two)
        write_bag(folder / f"one_{plugin.name.lower()}", plugin, {"/front": "compressed"})
    write_bag(folder / "blind", PLUGINS[0], {})
    write_bag(folder / "unstamped", PLUGINS[0], {"/front": "raw"}, stamped=False)
    (folder / "broken").mkdir()
    (folder / "broken" / "metadata.yaml").write_text("nonsense: [")
    return folder


def jsonl(folder: Path, *rows: Any) -> Path:
    file = folder / "lines.jsonl"
    file.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return file


def row(**fields: Any) -> dict[str, Any]:
    """A good line on the video; a field of None is left out."""
    whole = {"video": "a.mp4", "start": 0, "end": 1, "answer": "it moves", **fields}
    return {key: value for key, value in whole.items() if value is not None}


def test_a_good_file(folder: Path):
    file = jsonl(
        folder, row(query="Which  one?"), "", row(answer="  it   stops "),
        row(video=None, bag="one_mcap"), row(video=None, bag="sqlite3", topic="/back"),
    )  # fmt: skip
    lines = read_lines(file, QUERY)
    assert [line.number for line in lines] == [1, 3, 4, 5]
    assert [line.query for line in lines] == ["Which  one?", QUERY, QUERY, QUERY]
    assert lines[1].answer == "it stops"
    assert lines[0].source == Source((folder / "a.mp4").resolve())
    assert [line.source.topic for line in lines[2:]] == ["/front", "/back"]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        (row(video="b.mp4"), "there is no video"),
        (row(video=None), "give either 'video' or 'bag'"),
        (row(bag="mcap"), "give either 'video' or 'bag'"),
        (row(topic="/front"), "a video has no 'topic'"),
        (row(answer=None), "'answer' is missing"),
        (row(end=None), "'end' is missing"),
        (row(end="1"), "'end' must be a number, not \"1\""),
        (row(start=True), "'start' must be a number, not true"),
        (row(answer=3), "'answer' must be a text, not 3"),
        (row(start=1), "'start' (1) must be 0 or more and below 'end' (1)"),
        (row(start=-1), "'start' (-1) must be 0 or more"),
        (row(answer=" "), "'answer' is empty"),
        (row(label="x"), "unknown key 'label'; keys are video, bag, topic"),
        (row(video=None, bag="mcap"), "'topic' is missing; mcap has images on /back, /front"),
        (
            row(video=None, bag="mcap", topic="/left"),
            "no images on '/left'; mcap has images on /back, /front",
        ),
        (row(video=None, bag="blind"), "holds no images"),
        (row(video=None, bag="broken"), "is not a rosbag2 recording that can be read"),
    ],
)
def test_a_bad_line_is_said_with_its_number(folder: Path, bad: Any, said: str):
    with pytest.raises(RecordingsError) as refusal:
        read_lines(jsonl(folder, row(), bad, row()), QUERY)
    assert str(refusal.value).startswith(f"{folder / 'lines.jsonl'}:2: ")
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_every_bad_line_is_said(folder: Path):
    with pytest.raises(RecordingsError) as refusal:
        read_lines(jsonl(folder, row(end=0), row(), row(video="b.mp4")), QUERY)
    lines = str(refusal.value).splitlines()
    assert [line.split(":")[1] for line in lines] == ["1", "3"]


def test_an_empty_file_and_none(folder: Path):
    with pytest.raises(RecordingsError, match="holds no lines"):
        read_lines(jsonl(folder, ""), QUERY)
    with pytest.raises(RecordingsError, match="cannot be read"):
        read_lines(folder / "absent.jsonl", QUERY)


def load(folder: Path, *rows: dict[str, Any]) -> Recordings:
    file = jsonl(folder, *rows)
    return Recordings(read(file, QUERY), CLIP)


def test_what_only_reading_shows_is_said_too(folder: Path):
    (folder / "text.mp4").write_text("no video")
    with pytest.raises(RecordingsError) as refusal:
        load(
            folder, row(end=2.5), row(end=9), row(video="text.mp4"),
            row(video=None, bag="unstamped"),
        )  # fmt: skip
    two, three, four = str(refusal.value).splitlines()
    assert ":2: 'end' is 9, and a.mp4 lasts 2.50 s." in two
    assert ":3: " in three and "not a video that can be decoded" in three
    assert ":4: " in four and "no time in their headers" in four


def test_bad_pictures_of_a_bag_are_said_and_the_others_learnt_from(tmp_path: Path):
    from bags import COMPRESSED, TYPES, image_message

    with rosbag2.Writer(tmp_path / "bag", version=8, storage_plugin=PLUGINS[0]) as bag:
        connection = bag.add_connection("/front", COMPRESSED, typestore=TYPES)
        for step in range(25):
            stamp_ns = 0 if step == 3 else 100 * 10**9 + step * 10**8
            message = image_message(COMPRESSED, stamp_ns, picture(step))
            if step == 9:
                message.data = message.data[:-20]
            bag.write(connection, 10**9 + step, TYPES.serialize_cdr(message, COMPRESSED))
    recordings = load(tmp_path, row(video=None, bag="bag", start=0.5, end=1.5))
    assert steps(recordings.cut(recordings.lines[0], 10)) == [5, 7, 10, 12]
    bad, unstamped = sorted(recordings.left_out)
    assert bad.startswith("1 image on /front in ") and unstamped.startswith("1 image on /front in ")
    with pytest.raises(RecordingsError) as refusal:
        load(tmp_path, row(video=None, bag="bag", end=9))
    late, *why = str(refusal.value).splitlines()
    assert ":1: 'end' is 9, and bag lasts 2.50 s." in late and sorted(why) == [bad, unstamped]


VARYING = [0, 33, 66, 100, 2000, 2033, 9000, 9066, 60000, 60033]  # ms


def varying(folder: Path) -> str:
    """A video of varying rate; its name."""
    support.write_video(folder / "varying.mp4", VARYING)
    return "varying.mp4"


def test_clips_of_a_varying_rate_show_what_stood_at_their_times(folder: Path):
    recordings = load(folder, row(video=varying(folder), start=1.5, end=2.5))
    line = recordings.lines[0]
    assert steps(recordings.cut(line, 16)) == [3, 3, 3, 4]  # 1.25, 1.5, 1.75 and 2 s
    assert steps(recordings.cut(line, 20)) == [3, 4, 5, 5]


@pytest.mark.parametrize(
    ("start", "end", "said"),
    [
        (10, 20, "shows no new picture from 10 to 20 s, but at 9.066 s and then at 60.000 s."),
        (0.01, 0.03, "from 0.01 to 0.03 s, but at 0.000 s and then at 0.033 s."),
        (60.04, 60.1, "from 60.04 to 60.1 s, but at 60.033 s."),
        (61, 62, "'end' is 62, and varying.mp4 lasts 60."),
    ],
)
def test_a_time_without_a_picture_is_refused(folder: Path, start: float, end: float, said: str):
    good, bad = row(end=2), row(video=varying(folder), start=start, end=end)
    with pytest.raises(RecordingsError) as refusal:
        load(folder, good, bad, row(video="varying.mp4", start=8, end=9))
    assert "lines.jsonl:2: " in str(refusal.value) and said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_all_that_is_wrong_is_said_in_one_pass(folder: Path):
    (folder / "cut.mp4").write_bytes((folder / "a.mp4").read_bytes()[:900])
    bad = [
        row(video="absent.mp4"), row(video="cut.mp4"), row(video="cut.mp4", start=0.5),
        row(video=varying(folder), start=10, end=20), "{not json", row(end=1e7),
    ]  # fmt: skip
    file = jsonl(folder, row(), *bad, row())
    given = read(file, QUERY)
    with pytest.raises(RecordingsError) as refusal:
        Recordings(given, CLIP)
    said = str(refusal.value).split("\n")
    assert [line.split(":")[1] for line in said] == ["2", "3", "4", "5", "6", "7"]


@pytest.mark.parametrize("kind", ["video", "bag"])
def test_a_damaged_picture_in_a_recording_is_left_out(folder: Path, kind: str):
    """A clip shows the picture before it instead, and the user is told once."""
    path = folder / f"damaged_{kind}.avi"
    if kind == "video":
        support.write_video(path, range(0, 2500, 100), "mjpeg", "yuvj420p")
        position, size = support.packets(path)[6]
        content = bytearray(path.read_bytes())
        content[position : position + size] = bytes(size)
        path.write_bytes(content)
    else:
        write_bag(path, PLUGINS[0], {"/front": "compressed"}, damaged=6)
    recordings = load(folder, row(**{"video": None, kind: path.name}, start=0.5, end=1.5))
    line = recordings.lines[0]
    assert steps(recordings.cut(line, 9)) == [3, 5, 8, 11]
    assert steps(recordings.cut(line, 11)) == [5, 8, 11, 13]  # 6 would stand at 0.625 s
    assert [path.name in one and "1" in one for one in recordings.left_out] == [True]


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.name.lower())
@pytest.mark.parametrize("topic", ["/front", "/back"])
def test_a_bags_times_are_those_of_the_headers(folder: Path, plugin: Any, topic: str):
    found = list(bag_pictures(folder / plugin.name.lower(), topic, LeftOut()))
    assert [at for at, _ in found] == pytest.approx([step / 10 for step in range(25)])
    for step, (_, rgb) in enumerate(found):
        assert np.array_equal(rgb, picture(step))
    assert bag_info(folder / plugin.name.lower()).image_topics == ["/back", "/front"]


def test_the_one_file_of_a_bag_will_do(folder: Path):
    file = next((folder / "one_mcap").glob("*.mcap"))
    assert len(list(bag_pictures(file, "/front", LeftOut()))) == 25
    with pytest.raises(BagError, match="not a rosbag2 recording"):
        bag_info(folder / "a.mp4")


def steps(clip: np.ndarray) -> list[int]:
    """The numbers of the pictures that a clip shows; video coding moves a grey by 1 or 2."""
    assert np.ptp(clip.reshape(len(clip), -1), axis=1).max() <= 4
    return [round((float(frame.mean()) - 8) / 8) for frame in clip]


RECORDED = [row(), row(video=None, bag="one_sqlite3"), row(video=None, bag="mcap", topic="/back")]


@pytest.mark.parametrize("where", RECORDED, ids=["video", "sqlite3", "mcap"])
def test_clips_show_what_the_camera_had_shown_last(folder: Path, where: dict[str, Any]):
    recordings = load(folder, {**where, "start": 0.5, "end": 1.5})
    line = recordings.lines[0]
    newest = recordings.newest(line)  # on a grid of 8 Hz
    assert list(newest) == [8, 9, 10, 11, 12]  # its later half, 1.0 to 1.5 s
    # At 4 Hz the clip that ends at 1.25 s has 0.5, 0.75, 1.0 and 1.25 s; pictures come at 10 Hz.
    assert steps(recordings.cut(line, 10)) == [5, 7, 10, 12]
    assert steps(recordings.cut(line, 12)) == [7, 10, 12, 15]
    assert recordings.cut(line, 12).shape == (4, 16, 16, 3)


def test_a_short_line_reaches_back_and_the_start_stands_still(folder: Path):
    recordings = load(folder, row(start=1, end=1.25), row(start=0, end=0.25))
    short, first = recordings.lines
    assert list(recordings.newest(short)) == [9, 10]  # its later half
    assert steps(recordings.cut(short, 10)) == [5, 7, 10, 12]
    assert steps(recordings.cut(first, 2)) == [0, 0, 0, 2]


def test_a_line_is_judged_by_clips_spread_over_it(folder: Path):
    recordings = load(folder, row(start=0, end=2.5), row(start=1, end=1.1))
    long, short = recordings.lines
    assert recordings.looks(long) == [6, 13, 20]
    assert recordings.looks(short) == [8]


def test_only_what_is_needed_is_kept(folder: Path):
    recordings = load(folder, row(start=0.5, end=1.5), row(start=2.25, end=2.5, answer="it stops"))
    source = recordings.lines[0].source
    assert sorted(recordings.frames[source].row) == [*range(2, 13), *range(13, 21)]
    assert recordings.megabytes == len(recordings.frames[source].pictures) * 16 * 16 * 3 / 1e6


def line(number: int, path: str, start: float, answer: str, end: float | None = None) -> Line:
    return Line(number, Source(Path(path)), start, start + 1 if end is None else end, QUERY, answer)


def test_a_fifth_is_held_out_and_every_answer_stays():
    lines = [line(i, "/a", i, f"answer {i % 5}") for i in range(50)]
    learnt, held = split(lines, 0)
    assert len(held) == 10 and len(learnt) == 40
    assert {one.answer for one in learnt} == {one.answer for one in lines}
    assert split(lines, 0) == (learnt, held)
    assert split(lines, 1) != (learnt, held)


def test_what_overlaps_in_time_stays_together():
    pairs = [(line(2 * i, "/a", 2 * i, "up"), line(2 * i + 1, "/a", 2 * i + 0.5, "red"))
             for i in range(10)]  # fmt: skip
    _, held = split([one for pair in pairs for one in pair], 0)
    assert held
    for pair in pairs:
        assert (pair[0] in held) == (pair[1] in held)


def test_of_many_recordings_whole_ones_are_held_out():
    lines = [line(10 * r + i, f"/{r}", i, f"answer {i}") for r in range(10) for i in range(3)]
    learnt, held = split(lines, 0)
    assert len({one.source for one in held}) == 2
    assert not {one.source for one in held} & {one.source for one in learnt}


def test_an_answer_that_is_there_once_is_never_held_out():
    lines = [line(0, "/a", 0, "once"), *(line(i, "/a", i, "often") for i in range(1, 12))]
    for seed in range(5):
        assert "once" in {one.answer for one in split(lines, seed)[0]}
    with pytest.raises(RecordingsError, match="record what is to be learnt at least twice"):
        split([line(i, "/a", i, f"answer {i}") for i in range(9)], 0)


def test_clips_are_drawn_by_answer_and_by_seed(folder: Path):
    rows = [row(start=0.1 * i, end=0.1 * i + 0.5) for i in range(9)]
    recordings = load(folder, *rows, row(start=2, end=2.5, answer="It stops."))
    clips = RecordedClips(recordings, recordings.lines, 3)
    drawn = [one for one, _ in zip(clips, range(100), strict=False)]
    said = [one["answers"][0] for one in drawn]
    assert 30 < said.count("It stops.") < 70  # one line of ten, and half of the clips
    assert {one["meanings"][0] for one in drawn} == {"it moves", "it stops"}
    assert drawn[0]["frames"].shape == (4, 16, 16, 3) and drawn[0]["frames"].dtype == np.uint8
    again = [one for one, _ in zip(clips, range(3), strict=False)]
    assert all(np.array_equal(a["frames"], b["frames"]) for a, b in zip(again, drawn, strict=False))
