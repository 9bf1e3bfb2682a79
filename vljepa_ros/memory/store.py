"""The moment store: one folder that holds what a robot remembers, searched by meaning and time.

    store.json       which model's embeddings it holds, in which format
    moments.sqlite   the moments, with originals of their embeddings and thumbnails (`table`)
    index/           codes of the embeddings, to search them fast (`edge`); made again if lost
    pushes/          how far a Qdrant server has been told (`fleet`)
    lock             held by the one process that writes

Invariants: what `add`, `set_text` and `pin` returned from survives a killed process and a power
cut. Everything that is known lies in the table; the index follows it, and where it cannot (a full
disk, a store that is opened for reading only) a search reads all embeddings instead: slower, with
the same answers. So other processes read a store while a robot writes it, and see each moment as
soon as it is acknowledged. A store is used by one thread at a time.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vljepa_ros.errors import StoreError

from .about import about, begin
from .bounds import Bounds
from .edge import EdgeIndex, qdrant_edge
from .files import disk_bytes, free_bytes
from .moment import Moment
from .table import FILE, Table

__all__ = ["Found", "Limits", "MomentStore", "StoreError", "default_store"]

log = logging.getLogger(__name__)
BROKEN = "Searching is slow until the store is opened again: its index cannot be read:"
SPARE = 32 << 20  # bytes that are left free on the disk: files that are mapped need them
FLUSH = 4096  # moments that are put into the index again after a kill, at most
CANDIDATES = 64  # moments that are weighed by their originals, at least


def default_store() -> Path:
    """$VLJEPA_MEMORY, else vljepa/memory in $XDG_DATA_HOME or ~/.local/share."""
    given = os.environ.get("VLJEPA_MEMORY")
    if given:
        return Path(given).expanduser()
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share"
    return Path(home) / "vljepa" / "memory"


@dataclass(frozen=True)
class Limits:
    """How much is remembered; 0: no limit. The oldest moments go first, pinned ones stay.

    `megabytes` on the disk; what was deleted may take up to a quarter more until its places are
    used again, and SQLite's journal up to 16 MB. `days`: by the newest moment's end, not by the
    clock. The newest moment always stays.
    """

    moments: int = 100_000
    megabytes: int = 2048
    days: float = 0


@dataclass(frozen=True)
class Found:
    """A moment and the cosine between its embedding and the one that was asked for."""

    moment: Moment
    score: float


class MomentStore:
    """The moments in a folder. `model_id`: whose embeddings they have; `dim`: their length."""

    def __init__(
        self,
        folder: Path,
        model_id: str = "",
        dim: int = 0,
        limits: Limits = Limits(),
        read_only: bool = False,
    ) -> None:
        """Open the store, or begin one where `folder` holds nothing.

        An empty `model_id` and a `dim` of 0 take the store's own. Raises StoreError: the store is
        another model's, of a newer version, open for writing elsewhere, absent (and `read_only`
        or without a model), damaged, or cannot be written.
        """
        self.folder, self.limits, self.read_only = folder, limits, read_only
        self._index: EdgeIndex | None = None
        self._current = False  # the index knows what the table knows
        self._lock: int | None = None
        self._told = set[str]()
        try:
            if not read_only:
                qdrant_edge()
                self._lock = begin(folder, model_id, dim)
            self.model_id, self.dim = about(folder, model_id, dim)
            if read_only and not (folder / FILE).exists():
                raise StoreError(f"The store {folder} has lost its {FILE}: it holds no moments.")
            self._table = Table(folder, self.dim, read_only)
            if not read_only:
                self._open_index()
                self._keep_limits()
        except OSError as error:
            self._unlock()
            raise StoreError(f"The store {folder} cannot be opened: {error}.") from error
        except BaseException:
            self._unlock()
            raise

    # --- opening ---

    def _open_index(self) -> None:
        """Open the index and bring it up to date; make it again where it is not the table's."""
        problem = self._start_index()
        if problem is not None and not isinstance(problem, StoreError):
            log.warning("The search index of %s is made again: %s.", self.folder, problem)
            self._index = None
            shutil.rmtree(self.folder / "index", ignore_errors=True)
            problem = self._start_index()
        self._followed(problem)

    def _start_index(self) -> Exception | None:
        try:
            index = self._index = EdgeIndex(self.folder / "index", self.dim)
            if index.key > self._table.counter("key"):
                raise ValueError("it knows moments that the table does not")
            self._apply(index)
            if index.count != len(self):
                raise ValueError(f"it has {index.count} moments, and the table {len(self)}")
            index.check()
        except Exception as error:  # Qdrant Edge raises what it likes where files are torn
            return error
        return None

    # --- changing ---

    def add(self, moments: Sequence[Moment]) -> None:
        """Keep the moments, all or none; those that are there by their id are replaced.

        A pinned moment stays pinned. Durable when it returns. Afterwards the store is within its
        limits again. Raises StoreError: an embedding of another dimension or not of unit length,
        a full disk.
        """
        for moment in moments:
            self._check(moment)
        self._room(2 * sum(4 * self.dim + len(m.thumbnail) for m in moments))
        with self._table.writing():
            for moment in moments:
                self._table.put(moment)
            self._prune()
        self._table.give_back()
        self._follow()

    def set_text(self, id: str, text: str, confidence: float) -> bool:
        """Set the words of a moment; False: there is no such moment."""
        if not math.isfinite(confidence):
            raise StoreError(f"The confidence of '{text}' is not a number.")
        self._writable()
        with self._table.writing():
            return self._table.change(id, text=text, confidence=float(confidence))

    def pin(self, id: str, pinned: bool) -> bool:
        """Keep the moment for good, or no longer; False: there is no such moment."""
        self._writable()
        with self._table.writing():
            return self._table.change(id, pinned=int(pinned))

    def _check(self, moment: Moment) -> None:
        where = f"The moment of {moment.camera} at {moment.start_ns / 1e9:.3f} s"
        shape = np.shape(moment.embedding)
        if shape != (self.dim,):
            raise StoreError(f"{where} has an embedding of {shape}, not of {self.dim} numbers.")
        norm = float(np.linalg.norm(moment.embedding))
        if not abs(norm - 1) < 1e-3:
            raise StoreError(f"{where} has an embedding of length {norm:.3g}, not 1.")
        if not 0 <= moment.start_ns <= moment.end_ns:
            raise StoreError(f"{where} ends before it starts, or starts before 1970.")
        if not math.isfinite(moment.confidence):
            raise StoreError(f"{where} has a confidence that is not a number.")

    def _writable(self) -> None:
        if self.read_only:
            raise StoreError(f"The store {self.folder} is open for reading only.")

    def _room(self, wanted: int) -> None:
        """Raise StoreError where the disk has not `wanted` bytes and some to spare."""
        self._writable()
        free = free_bytes(self.folder)
        if free < SPARE + wanted:
            raise StoreError(
                f"The disk of {self.folder} is full: {free / 1e6:.0f} MB are left, and "
                f"{(SPARE + wanted) / 1e6:.0f} MB are needed to add moments safely; make room. "
                "What was kept before can still be read."
            )

    # --- limits ---

    def _keep_limits(self) -> None:
        with self._table.writing():
            self._prune()
        self._table.give_back()
        self._follow()

    def _prune(self) -> None:
        """Delete the oldest moments that are not pinned until the limits are kept."""
        table, limits = self._table, self.limits
        if limits.days:
            table.prune(len(self), table.newest_ns() - round(limits.days * 86400e9))
        count = len(self)
        wanted = count
        if limits.moments:
            wanted = min(wanted, limits.moments)
        if limits.megabytes and count:
            # Some below the limit, so that not every moment that comes costs a look at the disk.
            used, most = self._used_bytes(), limits.megabytes * 2**20
            if used > most:
                wanted = min(wanted, math.floor(0.98 * most / (used / count)))
        if count - table.prune(count - wanted) > max(1, wanted):
            self._tell_once(
                "Pinned moments alone exceed the limits of the memory in "
                f"{self.folder}: only the newest moment is kept beside them; unpin some, or "
                "raise the limits."
            )

    def _used_bytes(self) -> float:
        """Bytes on the disk, without those that wait to be used again."""
        used = float(self._table.used_bytes())
        if self._index is not None and self._index.places:
            in_use = min(1.0, len(self) / self._index.places)
            used += self._index.bytes() * in_use
        return used

    def _tell_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            log.warning(text)

    # --- the index follows the table ---

    def _follow(self) -> None:
        """Bring the index up to date; where that fails, searches do without it."""
        if self._index is None:
            return
        try:
            self._apply(self._index)
        except Exception as error:  # what was added is safe in the table
            self._followed(error)
        else:
            self._followed(None)

    def _followed(self, problem: Exception | None) -> None:
        self._current = problem is None
        if problem is not None:
            self._tell_once(f"Until the search index can be written, searching is slow: {problem}")

    def _apply(self, index: EdgeIndex) -> None:
        self._room(0)
        index.remove(self._table.gone())
        while moments := self._table.keyed_after(index.key):
            self._room(0)
            index.append(moments)
        if sparse := index.sparse():
            with self._table.writing():
                for first, last in sparse:
                    self._table.move(first, last)
            self._apply(index)
        elif index.key - index.flushed >= FLUSH:
            self._flush(index)

    def _flush(self, index: EdgeIndex) -> None:
        index.flush()
        with self._table.writing():
            self._table.forget_gone()

    # --- reading ---

    def get(self, id: str) -> Moment | None:
        """The moment of this id, if there is one."""
        return self._table.get(id)

    def search(
        self,
        embedding: np.ndarray,
        cameras: Sequence[str] = (),
        after_ns: int = 0,
        before_ns: int = 0,
        limit: int = 10,
        exclude_thumbnails: bool = False,
    ) -> list[Found]:
        """The moments nearest to `embedding` (float32 `[E]`), best first.

        `cameras`: only of these; `after_ns`: that ended at or after it; `before_ns`: that started
        at or before it; 0: no bound. Raises StoreError: an embedding of another dimension, or
        without a direction.
        """
        vector = np.asarray(embedding, np.float32)
        if vector.shape != (self.dim,):
            raise StoreError(
                f"The embedding to search for has the shape {vector.shape}, and the moments in "
                f"{self.folder} have {self.dim} numbers."
            )
        norm = float(np.linalg.norm(vector))
        if not 0 < norm < math.inf:
            raise StoreError("The embedding to search for has no direction.")
        if limit <= 0:
            return []
        bounds = Bounds(tuple(cameras), after_ns, before_ns)
        best = self._best(vector / norm, bounds, limit)
        moments = self._table.by_key([key for key, _ in best], not exclude_thumbnails)
        return [Found(moments[key], score) for key, score in best]

    def _best(self, vector: np.ndarray, bounds: Bounds, limit: int) -> list[tuple[int, float]]:
        """(key, cosine) of the nearest within the bounds, best first."""
        wanted = min(max(4 * limit, CANDIDATES), len(self) + 1)
        while self._index is not None and self._current:
            try:
                keys = self._index.search(vector, bounds, wanted)
            except Exception as error:
                self._tell_once(f"{BROKEN} {error}")
                self._index = None
                break
            best = _nearest(self._table.scan(bounds, keys), vector, limit)
            if len(best) == limit or len(keys) < wanted:
                return best
            wanted *= 2  # some lay just outside of the bounds
        return _nearest(self._table.scan(bounds), vector, limit)

    def newest(self, limit: int = 10, cameras: Sequence[str] = ()) -> list[Moment]:
        """The moments that ended last, the newest first."""
        return self._table.newest(limit, cameras)

    def changed_after(self, revision: int, limit: int) -> list[tuple[int, Moment]]:
        """(revision, moment) of the first `limit` moments added or changed after `revision`.

        Revisions rise with every change; 0 is before the first.
        """
        return self._table.changed_after(revision, limit)

    @property
    def revision(self) -> int:
        """The newest revision."""
        return self._table.counter("revision")

    def count_after(self, revision: int) -> int:
        """How many moments were added or changed after `revision`."""
        return self._table.count_after(revision)

    def __len__(self) -> int:
        return self._table.counter("moments")

    @property
    def pinned(self) -> int:
        """How many moments are pinned."""
        return self._table.pinned()

    def cameras(self) -> dict[str, int]:
        """How many moments each camera has."""
        return self._table.cameras()

    def span_ns(self) -> tuple[int, int]:
        """When the first moment starts and the last one ends; zeros where there is none."""
        return self._table.span_ns()

    def size(self) -> int:
        """Bytes on the disk."""
        return disk_bytes(self.folder)

    # --- closing ---

    def close(self) -> None:
        """Let go of the files and of the lock."""
        if self._index is not None:
            try:
                self._room(0)
                self._flush(self._index)
            except Exception as error:  # it is brought up to date when the store opens again
                self._tell_once(f"The search index of {self.folder} was not written: {error}")
            self._index.close()
            self._index = None
        self._table.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> MomentStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _nearest(
    batches: Iterable[tuple[np.ndarray, np.ndarray]], vector: np.ndarray, limit: int
) -> list[tuple[int, float]]:
    """(key, cosine) of the `limit` nearest of all batches, best first."""
    keys, scores = np.empty(0, np.int64), np.empty(0, np.float32)
    for some, embeddings in batches:
        keys, scores = np.append(keys, some), np.append(scores, embeddings @ vector)
        if len(keys) > limit:
            best = np.argpartition(-scores, limit - 1)[:limit]
            keys, scores = keys[best], scores[best]
    order = np.argsort(-scores, kind="stable")
    return [(int(keys[at]), float(scores[at])) for at in order]
