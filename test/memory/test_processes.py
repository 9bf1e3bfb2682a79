"""The store and other processes: locks, readers beside a writer, a killed writer, a full disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from moments import DIM, moment, numbers, open_store, same, unit

from vljepa_ros.errors import StoreError
from vljepa_ros.memory import edge, store
from vljepa_ros.memory.store import Limits, MomentStore

pytest.importorskip("qdrant_edge", reason="no qdrant_edge: pip install qdrant-edge-py")
TEST = Path(__file__).resolve().parents[1] / "support"

# Small tomes and frequent flushes, so that a kill meets every part of the work.
PRELUDE = f"""
import sys
sys.path[:0] = {[str(TEST), *sys.path]!r}
from pathlib import Path
from moments import moment, open_store, same, unit
from vljepa_ros.memory import edge, store
from vljepa_ros.memory.store import Limits, MomentStore, StoreError
folder = Path(sys.argv[1])
"""
WRITER = """
edge.TOME, store.FLUSH = 32, 48
opened = open_store(folder, limits=Limits(moments=int(sys.argv[3])))
number = int(sys.argv[2])
print("open", flush=True)
while True:
    opened.add([moment(n) for n in range(number, number + 3)])
    opened.set_text(moment(number).id, f"words {number}", 0.5)
    if number % 30 == 0:
        opened.pin(moment(number).id, True)
    print(number, flush=True)
    number += 3
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + code, *map(str, arguments)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = start(WRITER, tmp_path / "s", 0, 0)
    assert line(process) == "open"
    yield process
    process.kill()
    process.wait()


def test_a_second_writer_is_refused_until_the_first_is_gone(
    tmp_path: Path, writer: subprocess.Popen[str]
) -> None:
    with pytest.raises(StoreError, match=f"open for writing in process {writer.pid}"):
        open_store(tmp_path / "s")
    writer.kill()
    writer.wait()
    open_store(tmp_path / "s").close()  # the lock died with the process


def test_one_process_cannot_open_it_twice(tmp_path: Path) -> None:
    with open_store(tmp_path / "s"), pytest.raises(StoreError, match="open for writing"):
        open_store(tmp_path / "s")
    open_store(tmp_path / "s").close()


def test_a_reader_sees_what_a_living_writer_has_acknowledged(
    tmp_path: Path, writer: subprocess.Popen[str]
) -> None:
    with MomentStore(tmp_path / "s", read_only=True) as reader:
        for _ in range(30):
            number = int(line(writer))
            assert reader.search(unit(number + 2), limit=1)[0].moment.segment_id == number + 2
            assert len(reader) >= number + 3
            words = reader.get(moment(number).id)
            assert words is not None and words.text == f"words {number}"
    assert writer.poll() is None


@pytest.mark.parametrize("acknowledged", [1, 11, 23, 33])
def test_a_killed_writer_loses_nothing_that_it_acknowledged(
    tmp_path: Path, acknowledged: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three times: what a killed process left must also be good to go on from."""
    monkeypatch.setattr(edge, "TOME", 32)
    monkeypatch.setattr(store, "FLUSH", 48)
    newest = -3
    for _ in range(3):
        process = start(WRITER, tmp_path / "s", newest + 3, 60)
        assert line(process) == "open"
        for _ in range(acknowledged):
            newest = int(line(process))
        os.kill(process.pid, signal.SIGKILL)  # somewhere in the next add, or the one after it
        assert process.stdout is not None
        newest = max([newest, *(int(word) for word in process.stdout.read().split())])
        process.wait()
        process.stdout.close()
        with open_store(tmp_path / "s", limits=Limits(moments=60)) as opened:
            count = min(newest + 3, 60)
            assert count <= len(opened) <= min(count + 3, 60)
            kept = opened.newest(100)
            assert len(kept) == len(opened)
            pinned = list(range(0, newest + 1, 30))
            room = 60 - len(pinned) - 3
            for n in {*pinned, *range(max(0, newest + 3 - room), newest + 3)}:
                known = opened.get(moment(n).id)
                assert known is not None and known.pinned == (n in pinned), n
                assert known.text == (f"words {n}" if n % 3 == 0 else ""), n
                assert known.thumbnail == f"jpeg {n}".encode()
                assert opened.search(unit(n), limit=1)[0].moment.segment_id == n
            assert opened._current and opened._index is not None
            assert opened._index.count == len(opened)
            assert sorted(numbers([f.moment for f in opened.search(unit(0), limit=99)])) == sorted(
                numbers(kept)
            )


# --- a full disk ---


def test_with_no_room_left_adding_is_refused_and_all_is_still_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check itself, with a made-up answer of the operating system."""
    with open_store(tmp_path / "s") as opened:
        opened.add([moment(n) for n in range(20)])
        with monkeypatch.context() as full:
            full.setattr(store, "free_bytes", lambda folder: 5_000_000)
            with pytest.raises(StoreError, match=r"The disk of .* is full: 5 MB are left"):
                opened.add([moment(20)])
            assert opened.search(unit(7), limit=1)[0].moment.segment_id == 7
            assert opened.set_text(moment(7).id, "seven", 0.1)
            opened.close()
            opened = open_store(tmp_path / "s")
            assert same(opened.get(moment(3).id), moment(3))
            assert opened.search(unit(7), limit=1)[0].moment.text == "seven"
        opened.add([moment(20)])
        assert opened.search(unit(20), limit=1)[0].moment.segment_id == 20
        assert opened._current and len(opened) == 21


def test_what_sqlite_cannot_write_is_undone(tmp_path: Path) -> None:
    """SQLite's own error, from a limit on the pages of its file."""
    with open_store(tmp_path / "s") as opened:
        opened.add([moment(n) for n in range(5)])
        database = opened._table._db
        pages = database.execute("PRAGMA page_count").fetchone()[0]
        database.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StoreError, match="is full: make room"):
            opened.add([moment(n, thumbnail=bytes(50_000)) for n in range(5, 9)])
        assert len(opened) == 5 and sorted(numbers(opened.newest(99))) == [0, 1, 2, 3, 4]
        assert opened.search(unit(3), limit=1)[0].moment.segment_id == 3
        database.execute("PRAGMA max_page_count = 1000000")
        opened.add([moment(5)])
        assert opened.search(unit(5), limit=1)[0].moment.segment_id == 5


FULL = """
opened = open_store(folder / "s")
opened.add([moment(n) for n in range(50)])
def fill():
    with (folder / "filler").open("wb", buffering=0) as filler:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    filler.write(bytes(size))
            except OSError:
                pass
fill()
try:
    opened.add([moment(50)])
    sys.exit("an add went well")
except StoreError as error:
    print(error, flush=True)
for n in range(400):
    try:
        opened.set_text(moment(7).id, f"words {n}" * 100, 0.5)
    except StoreError as error:
        print(error, flush=True)
        break
fill()
assert opened.search(unit(7), limit=1)[0].moment.segment_id == 7
opened.close()
with MomentStore(folder / "s", read_only=True) as reader:
    assert same(reader.get(moment(9).id), moment(9))
(folder / "filler").unlink()
opened = open_store(folder / "s")
opened.add([moment(50)])
assert opened.search(unit(50), limit=1)[0].moment.segment_id == 50
assert opened._current and len(opened) == 51
opened.close()
print("well", flush=True)
"""


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """In a process of its own: where a mapped file has no room, the kernel kills the writer."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    try:
        process = start(FULL, disk)
        assert process.stdout is not None
        said = process.stdout.read().splitlines()
        process.stdout.close()
        assert process.wait() == 0
        assert "is full: 0 MB are left" in said[0] and said[-1] == "well"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_without_qdrant_edge_a_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(tmp_path / "s") as opened:
        opened.add([moment(1)])
    monkeypatch.setitem(sys.modules, "qdrant_edge", None)
    with pytest.raises(StoreError, match="pip install qdrant-edge-py"):
        MomentStore(tmp_path / "s")
    with pytest.raises(StoreError, match="pip install qdrant-edge-py"):
        open_store(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with MomentStore(tmp_path / "s", dim=DIM, read_only=True) as reader:  # which does without
        assert reader.search(unit(1))[0].moment.segment_id == 1
