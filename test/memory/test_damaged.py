"""A store that is damaged is never taken for a new one: what lies there stays, and is named."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from moments import DIM, MODEL, moment, numbers, open_store

from vljepa_ros.errors import StoreError
from vljepa_ros.memory.store import MomentStore

pytest.importorskip("qdrant_edge", reason="no qdrant_edge: pip install qdrant-edge-py")


def cut(folder: Path) -> None:
    (folder / "moments.sqlite").write_bytes(b"")


def remove(folder: Path) -> None:
    (folder / "moments.sqlite").unlink()


def blank(folder: Path) -> None:
    remove(folder)
    with sqlite3.connect(folder / "moments.sqlite") as db:
        db.execute("PRAGMA user_version = 1")


def forget(folder: Path) -> None:
    (folder / "store.json").unlink()


def resize(folder: Path) -> None:
    (folder / "store.json").write_text(json.dumps({"format": 1, "model_id": MODEL, "dim": 9}))


def nothing(folder: Path) -> None:
    (folder / "store.json").write_text(json.dumps({"format": 1, "model_id": MODEL, "dim": 0}))


def tear(folder: Path) -> None:
    file = folder / "moments.sqlite"
    file.write_bytes(file.read_bytes()[:4096] + bytes(8192))


def content(folder: Path) -> dict[str, bytes]:
    """Every file that holds something, but the lock, and what SQLite shares between processes."""
    return {
        str(file.relative_to(folder)): data
        for file in folder.rglob("*")
        if file.is_file() and file.name not in ("lock", "moments.sqlite-shm")
        if (data := file.read_bytes())
    }


@pytest.mark.parametrize("read_only", [False, True], ids=["writer", "reader"])
@pytest.mark.parametrize(
    ("damage", "words", "readers_words"),
    [
        (cut, r"moments\.sqlite is empty, and index .* put moments\.sqlite back from a copy", ""),
        (remove, r"moments\.sqlite is gone, and index .* or move the folder away",
         r"has lost its moments\.sqlite"),
        (blank, r"moments\.sqlite holds no moments, and index beside it tell", "no such table"),
        (forget, r"it has moments .* and no store\.json, .* write it again \(\{\"format\": 1", ""),
        (resize, r"embeddings have 16 numbers each, and its store\.json says 9", ""),
        (nothing, r"store\.json is damaged \(ValueError: dim is not above 0\): put it right", ""),
        (tear, r"malformed; move the folder away .* `sqlite3 moments\.sqlite \.recover`", ""),
    ],
)  # fmt: skip
def test_it_is_refused_and_left_as_it_is(
    tmp_path: Path,
    damage: Callable[[Path], None],
    words: str,
    readers_words: str,
    read_only: bool,
) -> None:
    folder = tmp_path / "s"
    with open_store(folder) as store:
        store.add([moment(n) for n in range(20)])
    damage(folder)
    before = content(folder)
    dim = {resize: 9, nothing: 0}.get(damage, DIM)
    with pytest.raises(StoreError, match=(read_only and readers_words) or words):
        MomentStore(folder, MODEL, dim, read_only=read_only).newest()
    assert content(folder) == before


def test_the_log_beside_an_empty_table_is_named(tmp_path: Path) -> None:
    with open_store(tmp_path / "first") as store:
        store.add([moment(1)])
        shutil.copytree(tmp_path / "first", tmp_path / "s")
    assert (tmp_path / "s" / "moments.sqlite-wal").stat().st_size
    cut(tmp_path / "s")
    with pytest.raises(StoreError, match=r"moments\.sqlite-wal, index beside it tell of moments"):
        open_store(tmp_path / "s")
    # What the sentence advises.
    shutil.rmtree(tmp_path / "s")
    shutil.copytree(tmp_path / "first", tmp_path / "s")
    with open_store(tmp_path / "s") as store:
        assert numbers(store.newest()) == [1]


@pytest.mark.parametrize("begun", ["nothing", "description", "empty", "header"])
def test_one_that_was_only_begun_is_new(tmp_path: Path, begun: str) -> None:
    """Killed while it made the store: nothing is lost, and nobody need repair anything."""
    folder = tmp_path / "s"
    if begun != "nothing":
        folder.mkdir()
        (folder / "store.json").write_text(json.dumps({"format": 1, "model_id": MODEL, "dim": DIM}))
    if begun == "empty":
        cut(folder)
    if begun == "header":
        with sqlite3.connect(folder / "moments.sqlite") as db:
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")
            db.execute("PRAGMA journal_mode = WAL")
    with open_store(folder) as store:
        store.add([moment(1)])
        assert len(store) == 1


def test_a_pose_that_is_damaged_is_a_sentence(tmp_path: Path) -> None:
    with open_store(tmp_path / "s") as store:
        store.add([moment(1)])
    with sqlite3.connect(tmp_path / "s" / "moments.sqlite") as db:
        db.execute("UPDATE moments SET pose = '{}'")
    with (
        MomentStore(tmp_path / "s", read_only=True) as store,
        pytest.raises(StoreError, match=r"cannot be read: the pose '\{\}' is damaged"),
    ):
        store.newest()
