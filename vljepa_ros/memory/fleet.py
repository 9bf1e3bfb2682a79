"""The fleet's shared memory: a Qdrant server that the robots push their moments to.

Invariants: a moment has the same id in the store and on the server, so pushing it twice changes
nothing. How far a server was told is written down after each batch that it acknowledged, so a
push that was cut short goes on where it stopped; moments whose words or pin changed since are
pushed again. What a store forgets stays on the server. A collection holds one model's embeddings.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from vljepa_ros.errors import StoreError

from .bounds import Bounds
from .files import write_json
from .moment import Moment, Pose
from .store import Found, MomentStore

BATCH = 64  # moments in a request
COLLECTION = "vljepa"
OVERSAMPLING = 4.0  # candidates for each moment that is wanted: as many as the local index weighs
INDEXED = (
    ("model_id", "keyword"), ("camera", "keyword"), ("start_ns", "integer"), ("end_ns", "integer"),
)  # fmt: skip
PLAIN = ("robot", "camera", "query", "segment_id", "start_ns", "end_ns", "text", "confidence")


def push(
    store: MomentStore,
    url: str,
    collection: str = COLLECTION,
    api_key: str = "",
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> int:
    """Copy what is new or has changed to the Qdrant server at `url`; how many moments that were.

    The store may be open for reading only. `progress` is told after each batch how many of how
    many are done. Raises StoreError: the server does not answer or refuses (what it acknowledged
    is not sent again), the collection is another model's.
    """
    server = _Server(url, collection, api_key)
    if server.prepare(store.model_id, store.dim):
        revision = 0
    else:
        revision = _read_cursor(store.folder, url, collection)
    newest, total, done = store.revision, store.count_after(revision), 0
    while revision < newest and (batch := store.changed_after(revision, BATCH)):
        server.upsert(store.model_id, [moment for _, moment in batch])
        revision = batch[-1][0]
        _write_cursor(store.folder, url, collection, revision)
        done += len(batch)
        progress(done, max(done, total))
    return done


class FleetStore:
    """The moments of all robots on a Qdrant server, searched and added to as a MomentStore is.

    What is added is on the server when `add` returns; nothing is kept here.
    """

    def __init__(
        self, url: str, model_id: str, dim: int, collection: str = COLLECTION, api_key: str = ""
    ) -> None:
        """`model_id`, `dim`: whose embeddings will be searched for. The server is asked later."""
        self.model_id, self.dim = model_id, dim
        self._server = _Server(url, collection, api_key)
        self._checked = False

    def prepare(self) -> None:
        """Make the collection where there is none. StoreError: as `push`."""
        self._server.prepare(self.model_id, self.dim)
        self._checked = True

    def get(self, id: str) -> Moment | None:
        """The moment of this id without embedding and thumbnail, if there is one. StoreError."""
        return self._server.get(id)

    def add(self, moments: Sequence[Moment]) -> None:
        """Keep the moments; those that are there by their id are replaced. StoreError."""
        for first in range(0, len(moments), BATCH):
            self._server.upsert(self.model_id, moments[first : first + BATCH])

    def set_text(self, id: str, text: str, confidence: float) -> bool:
        """Set the words of a moment; False: there is no such moment. StoreError."""
        if self.get(id) is None:
            return False
        self._server.change(id, {"text": text, "confidence": confidence})
        return True

    def search(
        self,
        embedding: np.ndarray,
        cameras: Sequence[str] = (),
        after_ns: int = 0,
        before_ns: int = 0,
        limit: int = 10,
        exclude_thumbnails: bool = False,
    ) -> list[Found]:
        """As MomentStore.search. Raises StoreError, also where the server does not answer."""
        if not self._checked:
            self._server.check(self.model_id, self.dim)
            self._checked = True
        bounds = Bounds(tuple(cameras), after_ns, before_ns)
        vector = np.asarray(embedding, np.float32).tolist()
        wanted = limit
        while limit > 0:
            found = self._server.query(self.model_id, vector, bounds, wanted, exclude_thumbnails)
            best = [f for f in found if bounds.hold(f.moment)][:limit]
            if len(best) == limit or len(found) < wanted:
                return best
            wanted *= 2  # some lay just outside of the bounds
        return []


class _Server:
    """One collection of a server; what its client raises becomes a sentence."""

    def __init__(self, url: str, collection: str, api_key: str) -> None:
        self.url, self.collection = url, collection
        with self._told():
            self._client = connect(url, api_key)

    def prepare(self, model_id: str, dim: int) -> bool:
        """Make the collection where there is none; True if it is new."""
        from qdrant_client import models

        with self._told():
            new = not self._client.collection_exists(self.collection)
            if new:
                self._client.create_collection(
                    self.collection,
                    vectors_config=models.VectorParams(size=dim, distance=models.Distance.COSINE),
                )
        self.check(model_id, dim)
        with self._told():  # each time, for an earlier push may have been cut short here
            for field, kind in INDEXED:
                self._client.create_payload_index(self.collection, field, kind)
        return new

    def check(self, model_id: str, dim: int) -> None:
        """Raise StoreError unless the collection is there and holds this model's moments."""
        from qdrant_client import models

        with self._told():
            if not self._client.collection_exists(self.collection):
                raise StoreError(
                    f"The server {self.url} has no collection '{self.collection}': push moments "
                    "to it first (vljepa memory push, vljepa index --url)."
                )
            vectors = self._client.get_collection(self.collection).config.params.vectors
            of_others = self._client.scroll(
                self.collection, limit=1, with_payload=["model_id"],
                scroll_filter=models.Filter(must_not=[_is("model_id", [model_id])]),
            )[0]  # fmt: skip
        size = getattr(vectors, "size", None)
        if of_others or size != dim:
            own = (of_others[0].payload or {}).get("model_id") if of_others else None
            raise StoreError(
                f"The collection '{self.collection}' of {self.url} holds {size} numbers of "
                f"{own or 'another model'} each, not {dim} of {model_id}; embeddings of two models "
                "cannot be compared: name another collection."
            )

    def upsert(self, model_id: str, moments: Sequence[Moment]) -> None:
        from qdrant_client import models

        points = [
            models.PointStruct(id=m.id, vector=m.embedding.tolist(), payload=_payload(model_id, m))
            for m in moments
        ]
        with self._told():
            self._client.upsert(self.collection, points, wait=True)

    def get(self, id: str) -> Moment | None:
        from qdrant_client import models

        but = models.PayloadSelectorExclude(exclude=["thumbnail"])
        with self._told():
            points = self._client.retrieve(
                self.collection, [id], with_payload=but, with_vectors=False
            )
            return _moment(points[0].payload or {}, []) if points else None

    def change(self, id: str, payload: dict[str, Any]) -> None:
        with self._told():
            self._client.set_payload(self.collection, payload, [id], wait=True)

    def query(
        self, model_id: str, vector: list[float], bounds: Bounds, limit: int, plain: bool
    ) -> list[Found]:
        from qdrant_client import models

        must: list[Any] = [_is("model_id", [model_id])]
        if bounds.cameras:
            must.append(_is("camera", bounds.cameras))
        if bounds.after_ns:
            after = models.Range(gte=bounds.after_float)
            must.append(models.FieldCondition(key="end_ns", range=after))
        if bounds.before_ns:
            before = models.Range(lte=bounds.before_float)
            must.append(models.FieldCondition(key="start_ns", range=before))
        payload = models.PayloadSelectorExclude(exclude=["thumbnail"]) if plain else True
        # Where the collection is quantised, scores are those of the originals all the same.
        exact = models.QuantizationSearchParams(rescore=True, oversampling=OVERSAMPLING)
        with self._told():
            points = self._client.query_points(
                self.collection, query=vector, query_filter=models.Filter(must=must),
                limit=limit, with_payload=payload, with_vectors=True,
                search_params=models.SearchParams(quantization=exact),
            ).points  # fmt: skip
            return [Found(_moment(p.payload or {}, p.vector), p.score) for p in points]

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except (KeyError, TypeError) as error:
            raise StoreError(
                f"The collection '{self.collection}' of {self.url} holds points that are no "
                f"moments ({type(error).__name__}: {error}): name another collection."
            ) from error
        except Exception as error:  # of the client, of httpx, of the operating system
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise StoreError(
                f"The Qdrant server at {self.url} does not answer, or refuses ({reason}): check "
                "the address and the key, then try again; what it has acknowledged is kept."
            ) from error


def connect(url: str, api_key: str) -> Any:
    """A client of the server. Raises StoreError where qdrant-client is not installed."""
    try:
        from qdrant_client import QdrantClient
    except ImportError:
        raise StoreError(
            "Talking to a Qdrant server needs its client: pip install qdrant-client."
        ) from None
    return QdrantClient(url=url, api_key=api_key or None, timeout=10, check_compatibility=False)


def _is(field: str, values: Sequence[str]) -> Any:
    from qdrant_client import models

    return models.FieldCondition(key=field, match=models.MatchAny(any=list(values)))


def _payload(model_id: str, moment: Moment) -> dict[str, Any]:
    return {
        "model_id": model_id,
        **{name: getattr(moment, name) for name in PLAIN},
        "pinned": moment.pinned,
        "familiarity": moment.familiarity,
        "episode": moment.episode,
        "task": moment.task,
        "video_start_ns": moment.video_start_ns,
        "pose": asdict(moment.pose) if moment.pose else None,
        "thumbnail": base64.b64encode(moment.thumbnail).decode(),
    }


def _moment(payload: dict[str, Any], vector: Any) -> Moment:
    pose = payload["pose"]
    if pose is not None:
        pose = Pose(
            pose["frame"], tuple(pose["position"]), tuple(pose["orientation"]), pose["stamp_ns"]
        )
    return Moment(
        **{name: payload[name] for name in PLAIN},
        embedding=np.asarray(vector, np.float32),
        thumbnail=base64.b64decode(payload.get("thumbnail", "")),
        familiarity=payload.get("familiarity", -1.0),
        episode=payload.get("episode", -1),
        task=payload.get("task", ""),
        video_start_ns=payload.get("video_start_ns", -1),
        pose=pose,
        pinned=payload["pinned"],
    )


def _cursor(folder: Path, url: str, collection: str) -> Path:
    name = hashlib.sha256(f"{url.rstrip('/')}\n{collection}".encode()).hexdigest()[:16]
    return folder / "pushes" / f"{name}.json"


def _read_cursor(folder: Path, url: str, collection: str) -> int:
    """The revision up to which the server was told; 0 where that is not known."""
    try:
        return int(json.loads(_cursor(folder, url, collection).read_text())["revision"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0  # everything is sent again, which changes nothing there


def _write_cursor(folder: Path, url: str, collection: str, revision: int) -> None:
    file = _cursor(folder, url, collection)
    try:
        file.parent.mkdir(exist_ok=True)
        write_json(file, {"collection": collection, "revision": revision})
    except OSError as error:
        raise StoreError(
            f"How far {url} was told cannot be written to {file} ({error}): the moments are there, "
            "and will be sent again."
        ) from error
