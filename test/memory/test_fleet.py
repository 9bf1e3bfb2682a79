"""Pushing to a Qdrant server and searching there.

There is no package of the server itself for the tests to install. What it does with the points is
tested on qdrant-client's own local mode, behind the same calls; what happens on the wire, and when
the server goes away, on a small HTTP server that speaks those calls of Qdrant's REST interface.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from moments import DIM, EPOCH, MODEL, SECOND, moment, numbers, open_store, same, unit

from vljepa_ros.errors import StoreError
from vljepa_ros.memory import fleet
from vljepa_ros.memory.fleet import FleetStore, push
from vljepa_ros.memory.moment import Pose
from vljepa_ros.memory.store import MomentStore

pytest.importorskip("qdrant_edge", reason="no qdrant_edge: pip install qdrant-edge-py")
qdrant_client = pytest.importorskip("qdrant_client", reason="pip install qdrant-client")
pytestmark = pytest.mark.filterwarnings(
    "ignore:Payload indexes have no effect",
    "ignore:Local mode performs",
    "ignore:Api key is used with an insecure",
)
URL = "http://fleet:6333"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Any:
    """qdrant-client's local mode, in place of every server."""
    client = qdrant_client.QdrantClient(":memory:")
    monkeypatch.setattr(fleet, "connect", lambda url, api_key: client)
    return client


def test_what_is_pushed_is_what_was_kept(tmp_path: Path, server: Any) -> None:
    pose = Pose("map", (1.0, 2.0, 3.0), (0.0, 0.0, 0.0, 1.0), EPOCH)
    kept = moment(3, text="the cup falls", confidence=0.5, pose=pose, pinned=True)
    kept = replace(kept, episode=7, task="put the cup down", video_start_ns=EPOCH)
    steps: list[tuple[int, int]] = []
    with open_store(tmp_path / "s") as opened:
        opened.add([kept, *(moment(n) for n in range(10, 210))])
        assert push(opened, URL, progress=lambda done, of: steps.append((done, of))) == 201
        assert steps == [(64, 201), (128, 201), (192, 201), (201, 201)]
        shared = FleetStore(URL, MODEL, DIM)
        for found in (opened.search(unit(50), limit=20), opened.search(kept.embedding, limit=2)):
            there = shared.search(found[0].moment.embedding, limit=len(found))
            assert [f.moment.id for f in there] == [f.moment.id for f in found]
            for ours, theirs in zip(found, there):
                assert theirs.score == pytest.approx(ours.score, abs=1e-5)
                assert np.allclose(theirs.moment.embedding, ours.moment.embedding, atol=1e-6)
                assert same(replace(theirs.moment, embedding=ours.moment.embedding), ours.moment)
        plain = shared.search(kept.embedding, limit=1, exclude_thumbnails=True)[0].moment
        assert plain.thumbnail == b"" and plain.pinned and plain.pose == pose


def test_the_bounds_are_exact(tmp_path: Path, server: Any) -> None:
    """Stamps a nanosecond apart are the same 64 bit float."""
    with open_store(tmp_path / "s") as opened:
        opened.add(
            [
                moment(n, camera, EPOCH + n, EPOCH + n)
                for n in range(40)
                for camera in ("front", "rear")
            ]
        )
        push(opened, URL)
        shared = FleetStore(URL, MODEL, DIM)
        for after, before in ((20, 25), (39, 0), (0, 3)):
            bounds = {
                "cameras": ["front"], "limit": 3,
                "after_ns": EPOCH + after if after else 0,
                "before_ns": EPOCH + before if before else 0,
            }  # fmt: skip
            ours, theirs = opened.search(unit(1), **bounds), shared.search(unit(1), **bounds)
            assert numbers([f.moment for f in theirs]) == numbers([f.moment for f in ours])
            assert len(theirs) == min(3, (before or 39) - after + 1)
        assert shared.search(unit(1), ["nobody"]) == shared.search(unit(1), limit=0) == []


def test_only_what_is_new_or_has_changed_is_pushed_again(tmp_path: Path, server: Any) -> None:
    with open_store(tmp_path / "s") as opened:
        opened.add([moment(n) for n in range(5)])
        assert push(opened, URL) == 5
        assert push(opened, URL) == push(opened, URL + "/") == 0
        opened.add([moment(5)])
        opened.set_text(moment(1).id, "the door opens", 0.5)
        opened.pin(moment(2).id, True)
        assert push(opened, URL) == 3
        shared = FleetStore(URL, MODEL, DIM)
        assert shared.search(unit(1), limit=1)[0].moment.text == "the door opens"
        assert shared.search(unit(2), limit=1)[0].moment.pinned
        assert push(opened, URL, "another") == 6
        assert server.count("vljepa").count == server.count("another").count == 6
    with MomentStore(tmp_path / "s", read_only=True) as reader:
        assert push(reader, URL) == 0
        server.delete_collection("vljepa")
        assert push(reader, URL) == 6  # a server that has lost it is told everything again
        for cursor in (tmp_path / "s" / "pushes").iterdir():
            cursor.write_text("{")
        assert push(reader, URL) == 6 and server.count("vljepa").count == 6


def test_two_robots_share_a_collection_and_two_models_do_not(tmp_path: Path, server: Any) -> None:
    with open_store(tmp_path / "a") as one, open_store(tmp_path / "b") as two:
        one.add([moment(1)])
        two.add([moment(1, robot="r9"), moment(2, robot="r9")])
        assert push(one, URL) == 1 and push(two, URL) == 2
    robots = [f.moment.robot for f in FleetStore(URL, MODEL, DIM).search(unit(1))]
    assert sorted(robots) == ["r2", "r9", "r9"]
    with open_store(tmp_path / "c", model_id="other@1") as third:
        third.add([moment(3)])
        with pytest.raises(StoreError, match="numbers of toy@0123456789ab each, not 16 of other@1"):
            push(third, URL)
    with open_store(tmp_path / "d", dim=4) as fourth, pytest.raises(StoreError, match="not 4 of"):
        push(fourth, URL)
    with pytest.raises(StoreError, match="name another collection"):
        FleetStore(URL, "other@1", DIM).search(unit(1))
    with pytest.raises(StoreError, match="has no collection 'none': push moments"):
        FleetStore(URL, MODEL, DIM, "none").search(unit(1))
    assert server.count("vljepa").count == 3


def test_a_collection_made_as_the_page_says_is_taken_as_it_is(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program of docs/fleet.md; what it quantises is searched with the originals' scores."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "fleet.md").read_text("utf-8")
    (program,) = re.findall(r"```python\n(.+?)```", page, re.S)
    made: list[dict[str, Any]] = []
    create = server.create_collection

    def noted(name: str, **how: Any) -> Any:
        made.append(how)
        vectors = how["vectors_config"].model_copy(update={"size": DIM})  # of the toy
        return create(name, **{**how, "vectors_config": vectors})

    monkeypatch.setattr(server, "create_collection", noted)
    monkeypatch.setattr(qdrant_client, "QdrantClient", lambda *_, **__: server)
    exec(compile(program, "docs/fleet.md", "exec"), {})
    (how,) = made
    assert how["shard_number"] > 1 and how["quantization_config"].scalar.always_ram
    asked: list[Any] = []
    query = server.query_points

    def heard(*given: Any, **options: Any) -> Any:
        asked.append(options["search_params"].quantization)
        return query(*given, **options)

    monkeypatch.setattr(server, "query_points", heard)
    with open_store(tmp_path / "s") as opened:
        opened.add([moment(1)])
        assert push(opened, URL) == 1 and len(made) == 1
    assert FleetStore(URL, MODEL, DIM).search(unit(1))[0].moment.id == moment(1).id
    assert asked[0].rescore and asked[0].oversampling > 1


def test_points_of_somebody_else_are_told_of(tmp_path: Path, server: Any) -> None:
    from qdrant_client import models

    with open_store(tmp_path / "s") as opened:
        opened.add([moment(1)])
        push(opened, URL)
    point = models.PointStruct(id=1, vector=unit(5).tolist(), payload={"model_id": MODEL})
    server.upsert("vljepa", [point])
    with pytest.raises(StoreError, match="points that are no moments"):
        FleetStore(URL, MODEL, DIM).search(unit(1))


# --- on the wire ---


class Stub(ThreadingHTTPServer):
    """The calls that a push makes, over a dict; after `answers` batches it goes away."""

    daemon_threads = True

    def __init__(self, port: int = 0, points: dict[str, Any] | None = None) -> None:
        self.points: dict[str, Any] | None = points
        self.answers, self.batches, self.keys = 10**9, 0, set[str | None]()
        super().__init__(("127.0.0.1", port), Handler)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def handle_any(self) -> None:
        stub, path = self.server, self.path.partition("?")[0]
        stub.keys.add(self.headers.get("api-key"))
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
        kind = (self.command, path.removeprefix("/collections/vljepa"))
        result: Any = True
        if kind == ("GET", "/exists"):
            result = {"exists": stub.points is not None}
        elif kind == ("PUT", ""):
            assert body["vectors"] == {"size": DIM, "distance": "Cosine"}
            stub.points = {}
        elif kind == ("GET", ""):
            params = {"vectors": {"size": DIM, "distance": "Cosine"}}
            result = {
                "status": "green", "optimizer_status": "ok", "segments_count": 1,
                "payload_schema": {},
                "config": {
                    "params": params,
                    "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000},
                    "optimizer_config": {
                        "deleted_threshold": 0.2, "vacuum_min_vector_number": 1000,
                        "default_segment_number": 0, "flush_interval_sec": 5,
                    },
                },
            }  # fmt: skip
        elif kind == ("POST", "/points/scroll"):
            result = {"points": [], "next_page_offset": None}
        elif kind in (("PUT", "/index"), ("PUT", "/points")):
            result = {"operation_id": 1, "status": "completed"}
        else:
            raise AssertionError(kind)
        if kind == ("PUT", "/points"):
            if stub.batches >= stub.answers:
                self.close_connection = True
                return  # gone, in the middle of a request
            stub.batches += 1
            assert stub.points is not None
            stub.points.update({point["id"]: point for point in body["points"]})
        data = json.dumps({"result": result, "status": "ok", "time": 0.0}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = handle_any

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def stub() -> Iterator[Stub]:
    stub = Stub()
    yield stub
    stub.close()


def test_a_server_that_goes_away_is_told_the_rest_when_it_is_back(
    tmp_path: Path, stub: Stub
) -> None:
    stub.answers = 2
    with open_store(tmp_path / "s") as opened:
        opened.add([moment(n) for n in range(300)])
        with pytest.raises(StoreError, match=r"server at http://127.* does not answer"):
            push(opened, stub.url, api_key="secret")
        assert stub.points is not None and len(stub.points) == 128 and stub.keys == {"secret"}
        stub.answers = 10**9
        assert push(opened, stub.url, api_key="secret") == 300 - 128
        assert sorted(stub.points) == sorted(moment(n).id for n in range(300))
        assert stub.batches == 2 + 3
        point = stub.points[moment(7).id]
        assert np.array_equal(np.float32(point["vector"]), moment(7).embedding)
        assert point["payload"]["start_ns"] == EPOCH + 7 * SECOND
        assert not any("secret" in p.read_text() for p in (tmp_path / "s" / "pushes").iterdir())


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    gone = Stub()
    url = gone.url
    gone.close()
    with open_store(tmp_path / "s") as opened:
        opened.add([moment(1)])
        for bad in (url, "no address", "http://"):
            with pytest.raises(StoreError, match=f"server at {bad} does not answer, or refuses"):
                push(opened, bad)
        with pytest.raises(StoreError, match="does not answer"):
            FleetStore(url, MODEL, DIM).search(unit(1))


def test_without_the_client_a_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    with open_store(tmp_path / "s") as opened, pytest.raises(StoreError, match="pip install qdra"):
        push(opened, URL)
