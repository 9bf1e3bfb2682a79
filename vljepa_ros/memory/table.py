"""The moments of a store in one SQLite file: everything that is known of them, durable.

Invariants: what `writing` committed survives a killed process and a power cut, and other processes
may read it meanwhile. A moment's `key` says where the search index has it: keys rise, are never
used again, and a moment whose embedding, camera or times change gets a new one; keys that no
moment has any more are `gone` until the index has forgotten them. A moment's `revision` rises with
every change of it, so that whoever copies moments finds what is new.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vljepa_ros.errors import StoreError

from .bounds import Bounds, marks
from .moment import Moment, Pose

FILE = "moments.sqlite"
SCHEMA = """
CREATE TABLE IF NOT EXISTS moments (
    key INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, revision INTEGER NOT NULL UNIQUE,
    robot TEXT NOT NULL, camera TEXT NOT NULL, query TEXT NOT NULL, segment_id INTEGER NOT NULL,
    start_ns INTEGER NOT NULL, end_ns INTEGER NOT NULL, text TEXT NOT NULL,
    confidence REAL NOT NULL, pose TEXT NOT NULL, pinned INTEGER NOT NULL,
    embedding BLOB NOT NULL, familiarity REAL NOT NULL DEFAULT -1,
    episode INTEGER NOT NULL DEFAULT -1, task TEXT NOT NULL DEFAULT '',
    video_start_ns INTEGER NOT NULL DEFAULT -1);
CREATE INDEX IF NOT EXISTS moments_age ON moments (pinned, end_ns);
CREATE INDEX IF NOT EXISTS moments_newest ON moments (end_ns);
CREATE INDEX IF NOT EXISTS moments_camera ON moments (camera, end_ns);
CREATE TABLE IF NOT EXISTS thumbnails (key INTEGER PRIMARY KEY, jpeg BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS gone (key INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
INSERT OR IGNORE INTO counters VALUES ('key', 0), ('revision', 0), ('moments', 0);
"""
# What a moment is, in the order of its columns; the thumbnail lies beside.
CONTENT = (
    "robot", "camera", "query", "segment_id", "start_ns", "end_ns", "text", "confidence", "pose",
    "pinned", "embedding", "familiarity", "episode", "task", "video_start_ns",
)  # fmt: skip
# Columns that stores of older versions lack: their type, and what stands for them there.
ADDED = {
    "familiarity": ("REAL", "-1.0"), "episode": ("INTEGER", "-1"), "task": ("TEXT", "''"),
    "video_start_ns": ("INTEGER", "-1"),
}  # fmt: skip
PINNED, END, EMBEDDING = (CONTENT.index(name) for name in ("pinned", "end_ns", "embedding"))
JPEG = "(SELECT jpeg FROM thumbnails WHERE thumbnails.key = moments.key)"
COLUMNS = ("key", "id", "revision", *CONTENT)
INSERT = f"INSERT INTO moments ({', '.join(COLUMNS)}) VALUES ({marks(COLUMNS)})"
BATCH = 256  # rows held in memory at once


@dataclass(frozen=True)
class Keyed:
    """What the search index is told of a moment."""

    key: int
    embedding: np.ndarray
    camera: str
    start_ns: int
    end_ns: int


class Table:
    """The open file. Of one thread at a time; what fails raises StoreError."""

    def __init__(self, folder: Path, dim: int, read_only: bool) -> None:
        """Open it, or begin one. StoreError also where it is damaged, or not of `dim` numbers."""
        self._path = folder / FILE
        self._counters = dict[str, int]()  # inside `writing`: as they will be at its end
        if not self._path.exists() or self._path.stat().st_size == 0:
            self._check_new("is empty" if self._path.exists() else "is gone", "-wal")
        with self._told("opened"):
            self._db = self._open(read_only)
        try:
            self._begin(dim, read_only)
        except BaseException:
            self._db.close()
            raise

    def _begin(self, dim: int, read_only: bool) -> None:
        with self._told("opened"):
            if self._one("SELECT count(*) FROM sqlite_master WHERE name = 'moments'"):
                self._check_dim(dim)
            elif not read_only:
                self._check_new("holds no moments")
            if not read_only:
                self._db.execute("PRAGMA auto_vacuum = INCREMENTAL")
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = FULL")
                self._db.execute("PRAGMA wal_autocheckpoint = 4000")  # pages of 4 KiB
                self._db.execute("PRAGMA journal_size_limit = 16777216")
                self._db.executescript(SCHEMA)
            there = {name for (name,) in self._all("SELECT name FROM pragma_table_info('moments')")}
            lacking = {name: ADDED[name] for name in ADDED if name not in there}
            if not read_only:
                for name, (kind, value) in lacking.items():
                    column = f"{name} {kind} NOT NULL DEFAULT {value}"
                    self._db.execute(f"ALTER TABLE moments ADD COLUMN {column}")
            # A store of an older version, opened for reading only, cannot tell.
            self._unknown = {name: value for name, (_, value) in lacking.items() if read_only}
            self._db.execute("SELECT count(*) FROM counters").fetchone()

    def _check_new(self, state: str, *logs: str) -> None:
        """StoreError where the file cannot be a new store's, for what an older one left is there.

        SQLite itself would begin a new table, and remove the log with what was written last.
        """
        folder = self._path.parent
        names = [*(f"{FILE}{log}" for log in logs), "index", "pushes"]
        if left := [name for name in names if _holds_something(folder / name)]:
            raise StoreError(
                f"The store {folder} is damaged: {FILE} {state}, and {', '.join(left)} beside it "
                f"tell of moments that were there; put {FILE} back from a copy of the folder, with "
                "the files beside it, or move the folder away to begin a new store."
            )

    def _check_dim(self, dim: int) -> None:
        found = self._all("SELECT length(embedding) / 4 FROM moments ORDER BY key DESC LIMIT 1")
        if found not in ([], [(dim,)]):
            raise StoreError(
                f"The store {self._path.parent} is damaged: its embeddings have {found[0][0]} "
                f"numbers each, and its store.json says {dim}; put that right."
            )

    def _open(self, read_only: bool) -> sqlite3.Connection:
        uri = self._path.absolute().as_uri() + ("?mode=ro" if read_only else "")

        def connect(uri: str) -> sqlite3.Connection:
            db = sqlite3.connect(
                uri, uri=True, timeout=10, isolation_level=None, check_same_thread=False
            )
            db.execute("SELECT count(*) FROM sqlite_master")
            return db

        try:
            return connect(uri)
        except sqlite3.OperationalError:
            wal = self._path.with_name(FILE + "-wal")
            if not read_only or (wal.exists() and wal.stat().st_size):
                raise
            return connect(uri + "&immutable=1")  # a folder that cannot be written, and no writer

    @contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        """What SQLite raises becomes a sentence."""
        try:
            yield
        except (sqlite3.Error, ValueError, OverflowError) as error:
            if "full" in str(error):
                raise StoreError(
                    f"The disk of {self._path} is full: make room, or lower the memory's limits; "
                    "what was kept before can still be read."
                ) from error
            raise StoreError(f"{self._path} cannot be {doing}: {error}{_mend(error)}.") from error

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One transaction: all of it is durable at its end, or nothing of it happened."""
        with self._told("written"):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._counters = dict(self._all("SELECT name, value FROM counters"))
                before = dict(self._counters)
                yield
                changed = self._counters.items() - before.items()  # none: nothing is written
                self._db.executemany("UPDATE counters SET value = ?2 WHERE name = ?1", changed)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            finally:
                self._counters = {}

    # --- changes: inside `writing` ---

    def put(self, moment: Moment) -> None:
        """Add the moment, or replace the one of the same id; a pinned one stays pinned."""
        new, moment_id = _values(moment), moment.id
        found = self._db.execute(
            f"SELECT key, {JPEG}, {', '.join(CONTENT)} FROM moments WHERE id = ?", [moment_id]
        ).fetchone()
        key = None
        if found is not None:
            key, jpeg, *old = found
            new[PINNED] = new[PINNED] or old[PINNED]
            if new == old and moment.thumbnail == (jpeg or b""):
                return
            self._delete([key])
            if (new[END], new[EMBEDDING]) != (old[END], old[EMBEDDING]):
                self._db.execute("INSERT INTO gone VALUES (?)", [key])
                key = None
        row = [key or self._next("key"), moment_id, self._next("revision"), *new]
        self._db.execute(INSERT, row)
        self._counters["moments"] += 1
        if moment.thumbnail:
            self._db.execute("INSERT INTO thumbnails VALUES (?, ?)", [row[0], moment.thumbnail])

    def change(self, moment_id: str, **values: Any) -> bool:
        """Set columns (of those that the index does not know); False: there is no such moment."""
        found = self._db.execute(
            f"SELECT {', '.join(values)} FROM moments WHERE id = ?", [moment_id]
        ).fetchone()
        if found is not None and found != tuple(values.values()):
            sets = ", ".join(f"{column} = ?" for column in values)
            self._db.execute(
                f"UPDATE moments SET {sets}, revision = ? WHERE id = ?",
                [*values.values(), self._next("revision"), moment_id],
            )
        return found is not None

    def prune(self, count: int, before_ns: int | None = None) -> int:
        """Delete at most `count` of the oldest that are not pinned; how many there were.

        Never the newest moment of all. `before_ns`: only those that ended before it.
        """
        rows = self._db.execute(
            "SELECT key FROM moments WHERE pinned = 0 AND end_ns < ? "
            "AND key != (SELECT key FROM moments ORDER BY end_ns DESC, key DESC LIMIT 1) "
            "ORDER BY end_ns, key LIMIT ?",
            [2**63 - 1 if before_ns is None else before_ns, count],
        ).fetchall()
        self._db.executemany("INSERT INTO gone VALUES (?)", rows)
        self._delete([key for (key,) in rows])
        return len(rows)

    def move(self, first: int, last: int) -> None:
        """Give the moments with these keys, both included, new ones."""
        keys = self._db.execute(
            "SELECT key FROM moments WHERE key BETWEEN ? AND ? ORDER BY key", [first, last]
        ).fetchall()
        self._db.executemany("INSERT INTO gone VALUES (?)", keys)
        pairs = [(self._next("key"), *key) for key in keys]
        for table in ("moments", "thumbnails"):
            self._db.executemany(f"UPDATE {table} SET key = ? WHERE key = ?", pairs)

    def forget_gone(self) -> None:
        """The index has forgotten every key that is gone."""
        self._db.execute("DELETE FROM gone")

    def _delete(self, keys: Sequence[int]) -> None:
        for table in ("moments", "thumbnails"):
            self._db.executemany(f"DELETE FROM {table} WHERE key = ?", [(key,) for key in keys])
        self._counters["moments"] -= len(keys)

    def _next(self, counter: str) -> int:
        self._counters[counter] += 1
        return self._counters[counter]

    def give_back(self) -> None:
        """Hand pages that hold nothing back to the disk, where they are many. Not in `writing`."""
        with self._told("written"):
            if self._pragma("freelist_count") > self._pragma("page_count") // 8:
                self._db.executescript("PRAGMA incremental_vacuum")  # `execute` frees one page

    # --- reading ---

    def counter(self, name: str) -> int:
        """The newest `key` or `revision` that was given out, or the number of `moments`."""
        if name in self._counters:
            return self._counters[name]
        return self._one("SELECT value FROM counters WHERE name = ?", [name])

    def count_after(self, revision: int) -> int:
        """Moments that changed after `revision`."""
        return self._one("SELECT count(*) FROM moments WHERE revision > ?", [revision])

    def pinned(self) -> int:
        """Moments that are pinned."""
        return self._one("SELECT count(*) FROM moments WHERE pinned = 1")

    def newest_ns(self) -> int:
        """When the newest moment ended; 0 where there is none."""
        return self._one("SELECT coalesce(max(end_ns), 0) FROM moments")

    def used_bytes(self) -> int:
        """Bytes of the pages that hold something."""
        pages = self._pragma("page_count") - self._pragma("freelist_count")
        return pages * self._pragma("page_size")

    def gone(self) -> list[int]:
        """Keys that the index may still have and no moment has."""
        return [key for (key,) in self._all("SELECT key FROM gone")]

    def get(self, moment_id: str) -> Moment | None:
        found = self._moments("id = ?", [moment_id])
        return found[0] if found else None

    def by_key(self, keys: Sequence[int], jpeg: bool) -> dict[int, Moment]:
        """The moments that have these keys; without `jpeg`, without their thumbnails."""
        found = dict[int, Moment]()
        for at in range(0, len(keys), BATCH):
            some = keys[at : at + BATCH]
            found.update(self._with("key", f"key IN ({marks(some)})", some, jpeg))
        return found

    def newest(self, limit: int, cameras: Sequence[str]) -> list[Moment]:
        condition, values = Bounds(tuple(cameras)).sql()
        return self._moments(
            f"{condition} ORDER BY end_ns DESC, key DESC LIMIT ?", [*values, limit]
        )

    def keyed_after(self, key: int) -> list[Keyed]:
        """The next BATCH moments with keys above `key`, in rising order."""
        rows = self._all(
            "SELECT key, embedding, camera, start_ns, end_ns FROM moments WHERE key > ? "
            "ORDER BY key LIMIT ?",
            [key, BATCH],
        )
        return [Keyed(row[0], _vector(row[1]), *row[2:]) for row in rows]

    def changed_after(self, revision: int, limit: int) -> list[tuple[int, Moment]]:
        """(revision, moment) of the next `limit` moments that changed after `revision`."""
        condition = "revision > ? ORDER BY revision LIMIT ?"
        return self._with("revision", condition, [revision, limit])

    def scan(
        self, bounds: Bounds, keys: Sequence[int] | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(keys int64 `[n]`, embeddings float32 `[n, E]`) of the moments within the bounds.

        `keys`: of those that have them; None: of all.
        """
        condition, values = bounds.sql("+")
        sql = f"SELECT key, embedding FROM moments WHERE {condition}"
        parts: list[Sequence[int] | None] = [None]
        if keys is not None:
            parts = [keys[at : at + BATCH] for at in range(0, len(keys), BATCH)]
        with self._told("read"):
            for part in parts:
                chosen = "" if part is None else f" AND key IN ({marks(part)})"
                cursor = self._db.execute(sql + chosen, [*values, *(part or ())])
                while rows := cursor.fetchmany(BATCH):
                    embeddings = _vector(b"".join(row[1] for row in rows))
                    yield np.array([row[0] for row in rows]), embeddings.reshape(len(rows), -1)

    def cameras(self) -> dict[str, int]:
        """Moments by camera."""
        return dict(self._all("SELECT camera, count(*) FROM moments GROUP BY camera"))

    def span_ns(self) -> tuple[int, int]:
        """When the first moment starts and the last one ends; zeros where there is none."""
        sql = "SELECT coalesce(min(start_ns), 0), coalesce(max(end_ns), 0) FROM moments"
        return self._all(sql)[0]

    def close(self) -> None:
        self._db.close()

    def _moments(self, condition: str, values: Sequence[Any]) -> list[Moment]:
        return [moment for _, moment in self._with("key", condition, values)]

    def _with(
        self, column: str, condition: str, values: Sequence[Any], jpeg: bool = True
    ) -> list[tuple[int, Moment]]:
        """(column, moment) of the moments that meet a condition."""
        sql = f"SELECT {column}, {self._columns(jpeg)} FROM moments WHERE {condition}"
        with self._told("read"):
            return [(row[0], _moment(row[1:])) for row in self._db.execute(sql, values)]

    def _columns(self, jpeg: bool) -> str:
        content = (self._unknown.get(name, name) for name in CONTENT)
        return ", ".join((*content, JPEG if jpeg else "NULL"))

    def _pragma(self, name: str) -> int:
        return self._one(f"PRAGMA {name}")

    def _one(self, sql: str, values: Sequence[Any] = ()) -> int:
        return int(self._all(sql, values)[0][0])

    def _all(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._told("read"):
            return self._db.execute(sql, values).fetchall()


def _holds_something(path: Path) -> bool:
    if path.is_dir():
        return any(path.iterdir())
    return path.exists() and path.stat().st_size > 0


def _mend(error: Exception) -> str:
    """What to do about a file that is torn, or none of SQLite's: it has the base class for them."""
    if type(error) is not sqlite3.DatabaseError:
        return ""
    return (
        f"; move the folder away to begin a new store, or put {FILE} back from a copy; what can be "
        f"read of it, `sqlite3 {FILE} .recover` prints"
    )


def _values(moment: Moment) -> list[Any]:
    pose = json.dumps(vars(moment.pose)) if moment.pose else ""
    values = {**vars(moment), "pose": pose, "embedding": _bytes(moment.embedding)}
    return [values[name] for name in CONTENT]


def _moment(row: Sequence[Any]) -> Moment:
    values = dict(zip(CONTENT, row))
    values["embedding"] = _vector(values["embedding"])
    values["pinned"] = bool(values["pinned"])
    values["thumbnail"] = row[-1] or b""
    values["pose"] = _pose(values["pose"])
    return Moment(**values)


def _pose(text: str) -> Pose | None:
    if not text:
        return None
    try:
        values = json.loads(text)
        return Pose(
            values["frame"], tuple(values["position"]), tuple(values["orientation"]),
            values["stamp_ns"],
        )  # fmt: skip
    except (KeyError, TypeError) as error:
        raise ValueError(f"the pose '{text}' is damaged") from error


def _bytes(vector: np.ndarray) -> bytes:
    return np.asarray(vector, "<f4").tobytes()


def _vector(data: bytes) -> np.ndarray:
    return np.frombuffer(data, "<f4")
