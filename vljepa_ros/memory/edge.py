"""The search index of a moment store, over Qdrant Edge. It holds nothing that is nowhere else.

Invariants: keys are appended in rising order, and everything up to the key `flushed` is on the
disk, so whoever opens the index again appends what came after it and removes what is gone.

What was measured of Qdrant Edge 0.9, and decides what is done here:

- TurboQuant of 4 bits is applied while points are appended: 77 MB for 100,000 x 1,536 numbers,
  scanned whole in some 8 ms of one core, a condition on cameras included. Four times as many
  candidates as are asked for, weighed by their originals (which the store's table has), hold what
  an exact search finds. int8 codes and HNSW graphs are made by `optimize()` alone, which holds
  Python's interpreter all the while (3 s for 20,000 points).
- Places of removed points are used again after `optimize()` only. Hence tomes: shards of at most
  TOME places, in the order of appending. Where the oldest go first a tome empties as a whole.
- A condition on times costs more than the scan does. A tome that lies outside the bounds is left
  out, one that lies inside is searched without a condition.
- Files are sparse and mapped: where the disk is full a write kills the process (SIGBUS). Whoever
  changes the index looks first whether there is room.
- Only its write-ahead log keeps a second process out, and that log is off, for the store's table
  does its work: whoever opens the index must hold the store's lock. There is no way to open a
  shard for reading only.
"""

from __future__ import annotations

import array
import bisect
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from vljepa_ros.errors import StoreError

from .bounds import Bounds
from .files import disk_bytes, write_json
from .table import Keyed

TOME = 16384  # places in a shard
SPARSE = 0.25  # a full tome of which less is in use is better written again
MARKER = "flushed.json"


def safely(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call it; what Rust panics with, where files are torn, becomes a RuntimeError."""
    try:
        return function(*arguments)
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise RuntimeError(str(error)) from error


def qdrant_edge() -> ModuleType:
    """The module. Raises StoreError where it is not installed."""
    try:
        import qdrant_edge
    except ImportError:
        raise StoreError(
            "A moment store that is written needs Qdrant Edge: pip install qdrant-edge-py."
        ) from None
    return qdrant_edge


@dataclass
class Span:
    """Between which times moments start and end; those that were removed may count still."""

    first_start: int = 2**63 - 1
    last_start: int = 0
    first_end: int = 2**63 - 1
    last_end: int = 0

    def add(self, start_ns: int, end_ns: int) -> None:
        self.first_start = min(self.first_start, start_ns)
        self.last_start = max(self.last_start, start_ns)
        self.first_end = min(self.first_end, end_ns)
        self.last_end = max(self.last_end, end_ns)

    def outside(self, bounds: Bounds) -> bool:
        """Nothing of it lies within the bounds."""
        return self.last_end < bounds.after_ns or 0 < bounds.before_ns < self.first_start

    def inside(self, bounds: Bounds) -> bool:
        """All of it lies within the bounds."""
        return self.first_end >= bounds.after_ns and (
            not bounds.before_ns or self.last_start <= bounds.before_ns
        )


class EdgeIndex:
    """Keys by embedding, camera and time. What Qdrant Edge raises goes through (any Exception)."""

    def __init__(self, folder: Path, dim: int) -> None:
        """Open the index, or begin an empty one where `folder` holds none."""
        self._edge, self._folder, self._dim = qdrant_edge(), folder, dim
        self._measured: tuple[int, int] | None = None
        folder.mkdir(exist_ok=True)
        marker: dict[str, Any] = {"key": 0, "tomes": []}
        if (folder / MARKER).exists():
            marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        self.flushed: int = marker["key"]
        self.key: int = self.flushed  # the newest that was appended
        for path in folder.iterdir():  # what was begun after the marker was written
            if path.is_dir() and path.name not in [entry["name"] for entry in marker["tomes"]]:
                shutil.rmtree(path)
        self._tomes = [
            _Tome(self._edge, folder / entry["name"], entry["places"], Span(**entry["span"]))
            for entry in marker["tomes"]
        ]

    @property
    def count(self) -> int:
        """Keys that can be found."""
        return sum(tome.count for tome in self._tomes)

    @property
    def places(self) -> int:
        """Places taken on the disk, those of removed keys too."""
        return sum(tome.places for tome in self._tomes)

    def bytes(self) -> int:
        """Bytes on the disk, as they were less than a thousand places ago."""
        if self._measured is None or abs(self.places - self._measured[0]) >= 1000:
            self._measured = self.places, disk_bytes(self._folder)
        return self._measured[1]

    def append(self, moments: Sequence[Keyed]) -> None:
        """Add moments with keys above `self.key`, in rising order."""
        while moments:
            if not self._tomes or self._tomes[-1].places >= TOME:
                path = self._folder / f"{moments[0].key:012d}"
                self._tomes.append(_Tome.create(self._edge, path, self._dim))
            tome = self._tomes[-1]
            some, moments = moments[: TOME - tome.places], moments[TOME - tome.places :]
            tome.append(some)
            self.key = some[-1].key

    def remove(self, keys: Sequence[int]) -> None:
        """Forget the keys; those that are not there do not matter."""
        firsts = [tome.first for tome in self._tomes]
        by_tome = dict[int, list[int]]()
        for key in keys:
            by_tome.setdefault(bisect.bisect_right(firsts, key) - 1, []).append(key)
        for at, some in by_tome.items():
            if at >= 0:
                self._tomes[at].remove(some)
        empty = [tome for tome in self._tomes[:-1] if not tome.count]
        if empty:
            self._tomes = [tome for tome in self._tomes if tome not in empty]
            self._mark()
            for tome in empty:
                tome.close()
                shutil.rmtree(tome.path)

    def sparse(self) -> list[tuple[int, int]]:
        """First and last key of the full tomes of which little is in use."""
        return [
            (tome.first, following.first - 1)
            for tome, following in zip(self._tomes, self._tomes[1:])
            if tome.count < SPARSE * TOME
        ]

    def search(self, vector: np.ndarray, bounds: Bounds, limit: int) -> list[int]:
        """Keys of the `limit` moments that seem the nearest, in no order.

        Conditions on times may let through what lies at most 128 ns outside of the bounds: they
        are compared as 64 bit floats.
        """
        found = list[Any]()
        for tome in self._tomes:
            if not tome.span.outside(bounds):
                found += tome.search(vector, self._filter(bounds, tome.span), limit)
        found.sort(key=lambda point: -point.score)
        return [point.id for point in found[:limit]]

    def _filter(self, bounds: Bounds, span: Span) -> Any:
        edge, must = self._edge, list[Any]()
        if bounds.cameras:
            must.append(edge.FieldCondition("camera", match=edge.MatchAny(list(bounds.cameras))))
        if not span.inside(bounds):
            if bounds.after_ns:
                after = edge.RangeFloat(gte=bounds.after_float)
                must.append(edge.FieldCondition("end", range=after))
            if bounds.before_ns:
                before = edge.RangeFloat(lte=bounds.before_float)
                must.append(edge.FieldCondition("start", range=before))
        return edge.Filter(must=must) if must else None

    def check(self) -> None:
        """Raise an error if a tome cannot be searched; reads all codes into the page cache."""
        for tome in self._tomes:
            if tome.count and not tome.search(np.ones(self._dim), None, 1):
                raise ValueError(f"{tome.path} finds nothing")

    def flush(self) -> None:
        """Bring everything to the disk."""
        for tome in self._tomes:
            tome.flush()
        self.flushed = self.key
        self._mark()

    def _mark(self) -> None:
        tomes = [
            {"name": tome.path.name, "places": tome.places, "span": vars(tome.span)}
            for tome in self._tomes
        ]
        write_json(self._folder / MARKER, {"key": self.flushed, "tomes": tomes})

    def close(self) -> None:
        """Let go of the files."""
        for tome in self._tomes:
            tome.close()


class _Tome:
    """One shard: the moments with keys from `first` on."""

    def __init__(self, edge: ModuleType, path: Path, places: int, span: Span) -> None:
        self._edge, self.path, self.places, self.span = edge, path, places, span
        self.first = int(path.name)
        self._shard = safely(edge.EdgeShard.load, str(path))
        self._dirty = False

    @classmethod
    def create(cls, edge: ModuleType, path: Path, dim: int) -> _Tome:
        if path.exists():  # begun, and left by an error
            shutil.rmtree(path)
        path.mkdir()
        codes = edge.TurboQuantQuantizationConfig(
            memory=edge.Memory.Cold, bits=edge.TurboQuantBitSize.Bits4
        )  # "Cold": mapped, and not read before it is asked for, with the holes of the files
        vectors = edge.EdgeVectorParams(
            size=dim, distance=edge.Distance.Cosine, memory=edge.Memory.Cold,
            datatype=edge.VectorStorageDatatype.Turbo8, quantization_config=codes,
        )  # fmt: skip
        shard = edge.EdgeShard.create(
            str(path),
            edge.EdgeConfig(
                vectors=vectors, payload_memory=edge.Memory.Cold, wal_enabled=False,
                max_search_threads=1,
            ),
        )  # fmt: skip
        times = edge.IntegerIndexParams(lookup=False, range=True)
        for field, kind in (
            ("camera", edge.KeywordIndexParams()), ("start", times), ("end", times),
        ):  # fmt: skip
            shard.update(edge.UpdateOperation.create_field_index(field, kind))
        shard.flush()
        shard.close()
        return cls(edge, path, 0, Span())

    @property
    def count(self) -> int:
        return int(safely(self._shard.info).points_count)

    def append(self, moments: Sequence[Keyed]) -> None:
        points = [
            self._edge.Point(
                m.key,
                array.array("f", m.embedding.tobytes()),  # taken over three times as fast
                {"camera": m.camera, "start": m.start_ns, "end": m.end_ns},
            )
            for m in moments
        ]
        self._dirty = True
        safely(self._shard.update, self._edge.UpdateOperation.upsert_points(points))
        self.places += len(points)
        for m in moments:
            self.span.add(m.start_ns, m.end_ns)

    def remove(self, keys: list[int]) -> None:
        self._dirty = True
        safely(self._shard.update, self._edge.UpdateOperation.delete_points(keys))

    def search(self, vector: np.ndarray, condition: Any, limit: int) -> list[Any]:
        edge = self._edge
        codes = edge.QuantizationSearchParams(rescore=False)
        request = edge.QueryRequest(
            limit=limit, query=edge.Query.Nearest(vector.tolist()), filter=condition,
            params=edge.SearchParams(quantization=codes), with_payload=False, with_vector=False,
        )  # fmt: skip
        return list(safely(self._shard.query, request))

    def flush(self) -> None:
        if self._dirty:
            safely(self._shard.flush)
            self._dirty = False

    def close(self) -> None:
        safely(self._shard.close)
