"""Bags as the field leaves them: all that is whole is read, and what is not is said."""

from __future__ import annotations

import os
import shutil
import sqlite3
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("rosbags.rosbag2", reason="rosbags is not installed: pip install rosbags")

import lz4.frame
from bags import COMPRESSED, RAW, TYPES, image_message, write_bag
from rosbags.rosbag2 import CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from vljepa_ros.recordings import sqlite_file
from vljepa_ros.recordings.bag_files import is_bag
from vljepa_ros.recordings.bags import BagError, bag_images, bag_info, bag_pictures
from vljepa_ros.recordings.left_out import LeftOut

SECOND = 10**9
BEGIN = 1_700_000_000 * SECOND
TOPIC, PACKED = "/front/image_raw", "/front/image_raw/compressed"
PLUGINS = list(StoragePlugin)
both = pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.name.lower())


def picture(number: int, height: int = 6, width: int = 8) -> np.ndarray:
    """RGB uint8 noise that no other number gives."""
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)


def bag(path: Path, seconds: list[int], plugin: Any = PLUGINS[0], **more: Any) -> Path:
    """A picture a second of TOPIC, at BEGIN + each of the seconds; recorded just then."""
    topic = more.pop("topic", TOPIC)
    images = [(topic, BEGIN + s * SECOND, picture(s)) for s in seconds]
    return write_bag(path, images, plugin, **more)


def read(path: Path, topic: str = TOPIC) -> tuple[list[int], LeftOut]:
    """The seconds of the pictures, each of which has to be the right one, and what was left out."""
    left_out = LeftOut()
    found = []
    for image in bag_images(path, [topic], left_out):
        found.append((image.stamp_ns - BEGIN) // SECOND)
        assert np.array_equal(image.picture(), picture(found[-1]))
    assert all("\n" not in sentence for sentence in left_out.sentences())
    return found, left_out


def storage(folder: Path) -> Path:
    """The one storage file of a bag."""
    (file,) = (f for f in folder.iterdir() if f.name != "metadata.yaml")
    return file


def state(folder: Path) -> list[tuple[str, int, int, bytes]]:
    """All that reading could alter."""
    here = folder.stat()
    files = [(f.name, f.stat().st_mtime_ns, f.stat().st_ino, f.read_bytes())
             for f in sorted(folder.iterdir())]  # fmt: skip
    return [(folder.name, here.st_mtime_ns, here.st_ino, b""), *files]


def held(folder: Path, tmp_path: Path, journal: str) -> Path:
    """A bag whose recorder was killed, or still runs: 5 messages in the database, 15 in its log."""
    source = storage(bag(tmp_path / "source", list(range(20)), StoragePlugin.SQLITE3))
    folder.mkdir()
    database = sqlite3.connect(source)
    rows = database.execute("select * from messages where id > 5").fetchall()
    database.execute("delete from messages where id > 5")
    database.commit()
    database.execute(f"pragma journal_mode={journal}")
    database.execute("pragma wal_autocheckpoint=0")
    database.execute("pragma cache_size=1")  # so that the database is written to before the end
    database.executemany("insert into messages values (?, ?, ?, ?)", rows)
    if journal == "wal":
        database.commit()
    for file in source.parent.iterdir():
        if file.name != "metadata.yaml" and not file.name.endswith("-shm"):
            shutil.copy(file, folder / file.name)
    database.rollback()
    database.close()
    return folder


def test_what_the_log_of_a_recorder_holds_is_read_and_nothing_is_written(tmp_path: Path) -> None:
    folder = held(tmp_path / "held", tmp_path, "wal")
    before = state(folder)
    assert len(before) == 3
    assert bag_info(folder).seconds == 19
    found, left_out = read(folder)
    assert found == list(range(20)) and not left_out.sentences()
    assert state(folder) == before
    link = tmp_path / "link.db3"  # the log lies beside the file, not beside the link
    link.symlink_to(next(folder.glob("*.db3")))
    assert read(link)[0] == list(range(20))


def test_what_a_recorder_had_begun_to_write_is_taken_back(tmp_path: Path) -> None:
    folder = held(tmp_path / "held", tmp_path, "delete")
    before = state(folder)
    assert before[-1][0].endswith("-journal")
    assert read(folder)[0] == list(range(5))
    assert state(folder) == before


def test_a_database_that_changes_while_it_is_copied_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = held(tmp_path / "held", tmp_path, "wal")

    def copied(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes())
        os.utime(next(folder.glob("*.db3")))

    monkeypatch.setattr(sqlite_file.shutil, "copyfile", copied)
    with pytest.raises(BagError, match="is being written to at this moment"):
        read(folder)


@both
def test_images_without_a_time_are_counted_and_the_others_read(plugin: Any, tmp_path: Path) -> None:
    images = [(TOPIC, 0 if s in (0, 3) else BEGIN + s * SECOND, picture(s)) for s in range(9)]
    path = write_bag(tmp_path / "bag", images, plugin, [BEGIN + s * SECOND for s in range(9)])
    found, left_out = read(path)
    assert found == [1, 2, 4, 5, 6, 7, 8] and left_out
    assert left_out.sentences() == [
        f"2 images on {TOPIC} in {path} left out: no time in their headers; record from a driver "
        "that stamps them."
    ]


@both
def test_a_clock_that_was_set_back_mixes_no_times(plugin: Any, tmp_path: Path) -> None:
    path = bag(tmp_path / "bag", [*range(10), *range(4, 14)], plugin)
    assert bag_info(path).seconds == 18
    found, left_out = read(path)
    assert found == [*range(10), *range(4, 14)]  # as recorded, not sorted
    said = f"{TOPIC} in {path}: its stamps jump once, by -5.0 s"
    assert left_out.sentences()[0].startswith(said) and not left_out
    times = [at for at, _ in bag_pictures(path, TOPIC, left_out)]
    assert times == list(range(10)) and left_out
    said = left_out.sentences()[-1]
    assert said.startswith("10 images") and "cut the bag there" in said


def test_one_stamp_that_jumps_does_not_end_a_recording(tmp_path: Path) -> None:
    path = bag(tmp_path / "bag", [0, 1, 2, 10**6, 4, 5, 1, 7])
    left_out = LeftOut()
    assert [at for at, _ in bag_pictures(path, TOPIC, left_out)] == [0, 1, 2, 4, 5, 7]
    assert left_out.sentences()[-1].startswith("2 images")


@both
def test_a_picture_that_cannot_be_decoded_is_counted(plugin: Any, tmp_path: Path) -> None:
    def png(number: int) -> Any:
        return image_message(COMPRESSED, BEGIN + number * SECOND, picture(number))

    with Writer(tmp_path / "bag", version=8, storage_plugin=plugin) as writer:
        connection = writer.add_connection(PACKED, COMPRESSED, typestore=TYPES)
        for number in range(9):
            message = png(number)
            if number in (3, 7):
                message.data = message.data[:40]
            data = bytes(TYPES.serialize_cdr(message, COMPRESSED))
            writer.write(connection, BEGIN + number * SECOND, data if number != 5 else data[:50])
    left_out = LeftOut()
    found = list(bag_pictures(tmp_path / "bag", PACKED, left_out))
    assert [at for at, _ in found] == [0, 1, 2, 4, 6, 8]
    assert all(np.array_equal(rgb, picture(int(at))) for at, rgb in found)
    cut, torn = left_out.sentences()
    assert cut.startswith("2 images on") and torn.startswith("1 image on")


@both
def test_a_clock_that_was_not_yet_set_makes_no_long_recording(plugin: Any, tmp_path: Path) -> None:
    stamps = [0, 0, SECOND, 2 * SECOND, *(BEGIN + s * SECOND for s in range(20))]
    images = [(TOPIC, stamp, picture(0)) for stamp in stamps]
    path = write_bag(tmp_path / "bag", images, plugin)
    assert bag_info(path).seconds == 21
    left_out = LeftOut()
    assert [i.stamp_ns for i in bag_images(path, [TOPIC], left_out)] == stamps[2:]
    note, count = left_out.sentences()
    assert "jump once, by +1699999998.0 s" in note and count.startswith("2 images")


@both
def test_neighbours_that_compressing_threads_swapped_are_put_right(
    plugin: Any, tmp_path: Path
) -> None:
    order = [0, 2, 1, 3, 6, 4, 5, 7]
    images = [(TOPIC, BEGIN + k * SECOND // 20, picture(0)) for k in order]
    left_out = LeftOut()
    found = bag_images(write_bag(tmp_path / "bag", images, plugin), [TOPIC], left_out)
    assert [20 * (i.stamp_ns - BEGIN) // SECOND for i in found] == list(range(8))
    assert not left_out.sentences()


@both
@pytest.mark.parametrize("packed", list(CompressionMode), ids=lambda mode: mode.name.lower())
@pytest.mark.parametrize("metadata", [True, False], ids=["metadata", "no-metadata"])
def test_compressed_bags_with_and_without_metadata(
    plugin: Any, packed: Any, metadata: bool, tmp_path: Path
) -> None:
    if packed is CompressionMode.STORAGE and plugin is StoragePlugin.SQLITE3:
        pytest.skip("SQLite has no compression inside its storage")
    path = bag(tmp_path / "bag", list(range(9)), plugin, packed=packed)
    if not metadata:
        (path / "metadata.yaml").unlink()
    assert is_bag(path) and bag_info(path).image_topics == [TOPIC]
    for source in (path, storage(path)):
        found, left_out = read(source)
        assert found == list(range(9)) and not left_out.sentences()


def test_a_compressed_file_that_was_cut_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    images = [(TOPIC, BEGIN + s * SECOND, picture(s, 100, 100)) for s in range(100)]
    path = write_bag(tmp_path / "bag", images, packed=CompressionMode.FILE)
    file = storage(path)
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    left_out = LeftOut()
    found = list(bag_images(path, [TOPIC], left_out))
    assert 30 < len(found) < 100
    assert np.array_equal(found[-1].picture(), picture(len(found) - 1, 100, 100))
    assert any("could be decompressed" in said for said in left_out.sentences())


@both
def test_the_files_of_a_split_bag_follow_each_other_and_a_missing_one_is_said(
    plugin: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "bag"
    folder.mkdir()
    names = []
    for part in range(12):
        file = storage(bag(tmp_path / str(part), [2 * part, 2 * part + 1], plugin))
        names.append(f"bag_{part}{file.suffix}")
        shutil.copy(file, folder / names[-1])
    assert read(folder)[0] == list(range(24))  # 10 comes after 9
    listed = "".join(f"    - {name}\n" for name in names)
    text = f"rosbag2_bagfile_information:\n  relative_file_paths:\n{listed}"
    (folder / "metadata.yaml").write_text(text)
    assert not read(folder)[1].sentences()
    (folder / names[3]).unlink()
    (folder / names[5]).write_bytes(b"")
    found, left_out = read(folder)
    assert found == [s for s in range(24) if s // 2 not in (3, 5)] and left_out
    missing, empty = left_out.sentences()
    assert f"{names[3]} of {folder} is missing" in missing and f"{names[5]} is not" in empty
    for name in names:
        (folder / name).unlink(missing_ok=True)
    assert is_bag(folder)
    with pytest.raises(BagError, match=f"{names[0]}, .* is missing, though its metadata"):
        bag_info(folder)


def test_an_mcap_without_its_end_gives_its_whole_chunks(tmp_path: Path) -> None:
    images = [(TOPIC, BEGIN + s * SECOND, picture(s, 100, 100)) for s in range(140)]
    whole = storage(write_bag(tmp_path / "bag", images)).read_bytes()
    file = tmp_path / "cut.mcap"
    counts = set()
    for size in range(len(whole) - 60, 1_100_000, -len(whole) // 7):
        for tail in (b"", bytes(5000)):  # a file system may leave zeros behind
            file.write_bytes(whole[:size] + tail)
            left_out = LeftOut()
            found = list(bag_images(file, [TOPIC], left_out))
            counts.add(len(found))
            assert np.array_equal(found[-1].picture(), picture(len(found) - 1, 100, 100))
            assert [i.stamp_ns for i in found] == [s for _, s, _ in images[: len(found)]]
            assert bag_info(file).seconds == len(found) - 1
            if len(found) < 140:
                (said,) = left_out.sentences()
                assert f"{file}: it is cut short" in said
    assert 34 < min(counts) < 140 and 140 in counts
    file.write_bytes(whole[:500_000])
    with pytest.raises(BagError, match="before its first whole chunk"):
        list(bag_images(file, [TOPIC], LeftOut()))


def test_a_damaged_chunk_costs_only_itself(tmp_path: Path) -> None:
    images = [(TOPIC, BEGIN + s * SECOND, picture(s, 100, 100)) for s in range(140)]
    path = write_bag(tmp_path / "bag", images, packed=CompressionMode.STORAGE)
    file = storage(path)
    data = bytearray(file.read_bytes())
    second = data.index(b"\x28\xb5\x2f\xfd", data.index(b"\x28\xb5\x2f\xfd") + 1)
    data[second : second + 4] = b"ruin"
    file.write_bytes(data)
    found = []
    left_out = LeftOut()
    for image in bag_images(path, [TOPIC], left_out):
        found.append((image.stamp_ns - BEGIN) // SECOND)
        assert np.array_equal(image.picture(), picture(found[-1], 100, 100))
    assert found[0] == 0 and found[-1] == 139 and 60 < len(found) < 140
    assert left_out.sentences() == [f"{file}: 1 record left out for being damaged."]


@pytest.mark.parametrize("compression", ["", "lz4"])
def test_the_checksum_of_a_chunk_is_heeded(compression: str, tmp_path: Path) -> None:
    images = [(TOPIC, BEGIN + s * SECOND, picture(s, 100, 100)) for s in range(110)]
    whole = storage(write_bag(tmp_path / "bag", images)).read_bytes()
    pack = {"": bytes, "lz4": lz4.frame.compress}[compression]
    records, at, chunks = [whole[:8]], 8, 0
    while whole[at] != 15:  # the end of the data
        kind, size = struct.unpack_from("<BQ", whole, at)
        body = whole[at + 9 : at + 9 + size]
        at += 9 + size
        if kind == 6:
            chunks += 1
            plain = body[40:]  # rosbags writes neither checksum nor compression here
            checksum = zlib.crc32(plain) ^ (chunks == 2)
            name, packed = compression.encode(), pack(plain)
            head = struct.pack("<II", checksum, len(name)) + name + struct.pack("<Q", len(packed))
            body = body[:24] + head + packed
        records.append(struct.pack("<BQ", kind, len(body)) + body)
    file = tmp_path / "bag.mcap"
    file.write_bytes(b"".join(records))
    left_out = LeftOut()
    found = list(bag_images(file, [TOPIC], left_out))
    seconds = [(image.stamp_ns - BEGIN) // SECOND for image in found]
    first = seconds.index(0), seconds.index(109)
    assert chunks == 4 and 60 < len(found) < 80 and first == (0, len(found) - 1)
    for second, image in zip(seconds, found, strict=True):
        assert np.array_equal(image.picture(), picture(second, 100, 100))
    assert f"{file}: 1 record left out for being damaged." in left_out.sentences()


def test_a_database_is_read_up_to_its_damage(tmp_path: Path) -> None:
    images = [(TOPIC, BEGIN + s * SECOND, picture(s, 30, 30)) for s in range(100)]
    path = write_bag(tmp_path / "bag", images, StoragePlugin.SQLITE3)
    file = storage(path)
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    left_out = LeftOut()
    found = list(bag_images(path, [TOPIC], left_out))
    assert 30 < len(found) < 100
    assert np.array_equal(found[-1].picture(), picture(len(found) - 1, 30, 30))
    (said,) = left_out.sentences()
    assert said.startswith(f"{file} is damaged") and ".recover" in said


def test_a_page_of_a_database_that_stands_twice_gives_no_image_twice(tmp_path: Path) -> None:
    file = storage(bag(tmp_path / "bag", list(range(100)), StoragePlugin.SQLITE3))
    data = bytearray(file.read_bytes())
    size = int.from_bytes(data[16:18], "big")
    pages = [at for at in range(0, len(data), size) if data[at] == 13 and data[at + 4] > 5]
    assert len(pages) > 4  # leaves of the table of messages
    data[pages[1] : pages[1] + size] = data[pages[3] : pages[3] + size]
    file.write_bytes(data)
    found, left_out = read(file)
    assert found == sorted(set(found)) and 20 < len(found) < 90
    assert "is damaged (rows out of order): what follows is left out" in left_out.sentences()[0]


def test_the_schema_of_a_database_may_be_damaged_where_it_does_not_matter(tmp_path: Path) -> None:
    file = storage(bag(tmp_path / "bag", list(range(9)), StoragePlugin.SQLITE3))
    data = file.read_bytes()
    begin = data.index(b"CREATE TABLE messages")
    damaged = data[begin:].replace(b"INTEGER PRIMARY KEY", b"INTEGER PRYMARY KEY", 1)
    file.write_bytes(data[:begin] + damaged)
    assert file.read_bytes() != data and read(file)[0] == list(range(9))


def test_the_length_of_an_mcap_with_two_cameras_is_counted_once(tmp_path: Path) -> None:
    images = [(topic, BEGIN + s * SECOND, picture(s)) for s in range(9) for topic in ("/a", "/b")]
    info = bag_info(write_bag(tmp_path / "bag", images))
    assert info.image_topics == ["/a", "/b"] and info.seconds == 8


@both
def test_what_is_no_image_is_named_and_a_topic_without_messages_is_none(
    plugin: Any, tmp_path: Path
) -> None:
    with Writer(tmp_path / "bag", version=8, storage_plugin=plugin) as writer:
        writer.add_connection(TOPIC, RAW, typestore=TYPES)
        words = writer.add_connection("/words", "std_msgs/msg/String", typestore=TYPES)
        text = TYPES.types["std_msgs/msg/String"]("hello")
        writer.write(words, BEGIN, TYPES.serialize_cdr(text, "std_msgs/msg/String"))
    with pytest.raises(BagError, match=r"holds no images .*: only std_msgs/msg/String on /words"):
        bag_info(tmp_path / "bag")
    with Writer(tmp_path / "none", version=8, storage_plugin=plugin) as writer:
        writer.add_connection(TOPIC, RAW, typestore=TYPES)
    with pytest.raises(BagError, match=r"holds no images .*: no message was recorded"):
        bag_info(tmp_path / "none")


@both
def test_one_name_may_have_two_types(plugin: Any, tmp_path: Path) -> None:
    with Writer(tmp_path / "bag", version=8, storage_plugin=plugin) as writer:
        for second, kind in enumerate((RAW, COMPRESSED)):
            connection = writer.add_connection(TOPIC, kind, typestore=TYPES)
            stamp_ns = BEGIN + second * SECOND
            message = image_message(kind, stamp_ns, picture(second))
            writer.write(connection, stamp_ns, TYPES.serialize_cdr(message, kind))
    assert bag_info(tmp_path / "bag").image_topics == [TOPIC]
    assert read(tmp_path / "bag")[0] == [0, 1]


@pytest.mark.parametrize("defined", [True, False], ids=["defined", "undefined"])
def test_messages_of_a_newer_type_are_read_by_the_bags_own_definition(
    defined: bool, tmp_path: Path
) -> None:
    types = get_typestore(Stores.ROS2_HUMBLE)
    text = types.generate_msgdef(RAW)[0].replace(
        "uint8[] data\n", "uint8[] data\nfloat64 gain\n", 1
    )
    newer = get_typestore(Stores.EMPTY)
    newer.register(get_types_from_msg(text, RAW))
    stamp = newer.types["builtin_interfaces/msg/Time"](BEGIN // SECOND + 3, 0)
    header = newer.types["std_msgs/msg/Header"](stamp, "")
    message = newer.types[RAW](header, 6, 8, "rgb8", 0, 24, picture(3).ravel(), 1.5)
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.SQLITE3) as writer:
        connection = writer.add_connection(TOPIC, RAW, typestore=newer)
        writer.write(connection, BEGIN, newer.serialize_cdr(message, RAW))
    if not defined:
        database = sqlite3.connect(storage(tmp_path / "bag"))
        database.execute("delete from message_definitions")
        database.commit()
        database.close()
    found, left_out = read(tmp_path / "bag")
    assert found == [3] * defined
    assert defined or left_out.sentences()[0].startswith("1 image on /front/image_raw in ")


@pytest.mark.parametrize(
    ("part", "damaged"),
    [
        ("std_msgs/Header header", "svd_msgs/Header header"), ("int32 sec", "int32 sek"),
        ("uint32 height", "uint32 heighd"), ("uint32 step", "uint33 step"), ("string", "strin\n"),
    ],
)  # fmt: skip
def test_a_damaged_definition_costs_nothing(part: str, damaged: str, tmp_path: Path) -> None:
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.SQLITE3) as writer:
        connection = writer.add_connection(TOPIC, RAW, typestore=TYPES)
        message = image_message(RAW, BEGIN, picture(0))
        writer.write(connection, BEGIN, TYPES.serialize_cdr(message, RAW))
    database = sqlite3.connect(storage(tmp_path / "bag"))
    change = "update message_definitions set encoded_message_definition = ?"
    (text,) = database.execute(
        "select encoded_message_definition from message_definitions"
    ).fetchone()
    assert part in text
    database.execute(change, (text.replace(part, damaged),))
    database.commit()
    database.close()
    assert read(tmp_path / "bag")[0] == [0]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.db3", b"", "it is empty"), ("a.mcap", b"", "it is empty"),
        ("a.db3", b"no bag, but long enough", "file is not a database"),
        ("a.mcap", b"no bag, but long enough", "it does not begin as MCAP does"),
        ("a.mcap.zstd", b"no bag", "it is empty"), ("a.mcap", None, "neither a folder nor a"),
    ],
)  # fmt: skip
def test_what_is_no_bag_is_refused_in_a_sentence(
    name: str, content: bytes | None, said: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if content is None:
        os.mkfifo(path)  # opening it would wait for ever
    else:
        path.write_bytes(content)
    for function in (bag_info, read):
        with pytest.raises(BagError) as refusal:
            function(path)
        assert said in str(refusal.value) and "\n" not in str(refusal.value)
        assert "is not a rosbag2 recording that can be read" in str(refusal.value)


def test_images_beside_a_calibration_are_no_bag(tmp_path: Path) -> None:
    for name in ("calibration.yaml", "metadata.yaml"):
        (tmp_path / name).write_text("camera_matrix: [1, 0, 0]")
        assert not is_bag(tmp_path)
    (tmp_path / "metadata.yaml").write_text("nonsense: [")
    assert not is_bag(tmp_path)
    with pytest.raises(BagError, match=r"holds no .db3 or .mcap file"):
        bag_info(tmp_path)


def test_what_may_not_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", closed)
    for function in (is_bag, bag_info):
        with pytest.raises(BagError, match="cannot be read: Permission denied"):
            function(tmp_path)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A bag of three images, and its metadata."""
    path = bag(tmp_path_factory.mktemp("three") / "bag", [0, 1, 2])
    return path, (path / "metadata.yaml").read_text()


@settings(max_examples=60)
@given(st.text(), st.integers(0, 600), st.integers(0, 200))
@example("relative_file_paths: abc", 0, 0)
def test_no_metadata_keeps_what_was_recorded_from_being_read(
    three: tuple[Path, str], text: str, at: int, size: int
) -> None:
    path, whole = three
    damaged = whole[:at] + text + whole[at + size :]
    (path / "metadata.yaml").write_text(damaged, encoding="utf-8", errors="replace")
    assert is_bag(path) and read(path)[0] == [0, 1, 2]


# --- any damage ---

Damage = Callable[[bytearray], None]


def _flip(at: float, bit: int) -> Damage:
    def damage(data: bytearray) -> None:
        data[int(at * (len(data) - 1))] ^= 1 << bit

    return damage


def _fill(at: float, size: int, value: int) -> Damage:
    def damage(data: bytearray) -> None:
        begin = int(at * len(data))
        data[begin : begin + size] = bytes([value]) * len(data[begin : begin + size])

    return damage


def _move(source: float, target: float, size: int) -> Damage:
    def damage(data: bytearray) -> None:
        part = data[int(source * len(data)) :][:size]
        begin = int(target * len(data))
        data[begin : begin + len(part)] = part

    return damage


def _cut(at: float) -> Damage:
    def damage(data: bytearray) -> None:
        del data[int(at * len(data)) :]

    return damage


place = st.floats(0, 1, exclude_max=True)
damages = st.lists(
    st.one_of(
        st.builds(_flip, place, st.integers(0, 7)),
        st.builds(_fill, place, st.integers(1, 5000), st.sampled_from([0, 1, 255])),
        st.builds(_move, place, place, st.integers(1, 5000)),
        st.builds(_cut, place),
    ),
    min_size=1,
    max_size=4,
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, bytes]]:
    """The storage files of small bags of PNGs, which tell by themselves that they are damaged."""
    folder = tmp_path_factory.mktemp("sound")
    kinds = {
        "sqlite3": (StoragePlugin.SQLITE3, None),
        "sqlite3-zstd": (StoragePlugin.SQLITE3, CompressionMode.MESSAGE),
        "mcap": (StoragePlugin.MCAP, None),
        "mcap-chunks": (StoragePlugin.MCAP, CompressionMode.STORAGE),
        "file": (StoragePlugin.MCAP, CompressionMode.FILE),
    }
    found = {}
    for name, (plugin, packed) in kinds.items():
        file = storage(bag(folder / name, list(range(12)), plugin, topic=PACKED, packed=packed))
        found[name] = file.name, file.read_bytes()
    return found


@pytest.mark.parametrize("kind", ["sqlite3", "sqlite3-zstd", "mcap", "mcap-chunks", "file"])
def test_any_damage_gives_right_pictures_or_a_sentence(
    kind: str, sound: dict[str, tuple[str, bytes]], tmp_path: Path
) -> None:
    name, whole = sound[kind]
    originals = {picture(s).tobytes() for s in range(12)}

    @settings(max_examples=60)
    @given(damages)
    @example([])
    @example([_fill(0.10437315720938539, 29, 255)])  # SQLite asked for more memory than there is
    def check(chosen: list[Damage]) -> None:
        data = bytearray(whole)
        for damage in chosen:
            if data:
                damage(data)
        (tmp_path / name).write_bytes(data)
        said: list[str] = []
        left_out = LeftOut()
        count = 0
        try:
            bag_info(tmp_path / name)
        except BagError as error:
            said.append(str(error))
        try:
            for image in bag_images(tmp_path / name, [PACKED], left_out):
                try:
                    pixels = image.picture()
                except ValueError as error:
                    said.append(str(error))
                    continue
                assert pixels.tobytes() in originals
                count += 1
        except BagError as error:
            said.append(str(error))
        said += left_out.sentences()
        assert all(s and "\n" not in s for s in said)
        assert count == 12 if not chosen else count <= 12 or said

    check()


@both
def test_a_name_that_holds_a_line_end_is_told_in_one_line(plugin: Any, tmp_path: Path) -> None:
    """Found by test/fuzz/bags.py."""
    (file,) = bag(tmp_path / "bag", [0, 1], plugin).glob("*.[dm][bc]*")
    for old, new in ((b"/msg/Image", b"/msg/Ima\ne"), (TOPIC.encode(), b"/fro\rt/image_raw")):
        file.write_bytes(file.read_bytes().replace(old, new))
    with pytest.raises(BagError, match=r"^[^\n\r]+\.$") as caught:
        bag_info(file)
    assert "sensor_msgs/msg/Ima?e on /fro?t/image_raw" in str(caught.value)
