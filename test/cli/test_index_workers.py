"""`vljepa index` by several workers, some of which are killed, and into a Qdrant server."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

pytest.importorskip("qdrant_edge", reason="not installed: pip install qdrant-edge-py")
pytest.importorskip("rosbags.rosbag2", reason="not installed: pip install rosbags")

from bags import write_bag
from bundles import make_bundle
from mortal import Mortal

import vljepa_ros.cli.memory.index as command
from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.cli.app import app
from vljepa_ros.cli.memory.making import Opening
from vljepa_ros.errors import BundleError, VLJepaError
from vljepa_ros.memory import fleet
from vljepa_ros.memory.fleet import FleetStore
from vljepa_ros.memory.moment import Moment, Pose
from vljepa_ros.memory.store import MomentStore
from vljepa_ros.perception.settings import Settings
from vljepa_ros.recordings.indexing.recording import Recording
from vljepa_ros.workers import pool
from vljepa_ros.workers.choice import open_pool
from vljepa_ros.workers.cluster import QUIET

SECOND = 1_000_000_000
THRESHOLDS = {"gate": 3.0, "change": 0.05, "watch": 0.5}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("index") / "tiny", thresholds=THRESHOLDS)


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four bags of one camera, the first of which is the longest."""
    folder, begin = tmp_path_factory.mktemp("bags"), itertools.count(1_700_000_000, 1000)
    random = np.random.default_rng(0)
    cells = random.integers(0, 256, (8, 6, 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)

    def images(seconds: int) -> Iterator[tuple[str, int, np.ndarray]]:
        first = next(begin) * SECOND
        for k in range(10 * seconds):
            yield "/front/image_raw", first + k * SECOND // 10, cells[(k // 15 + seconds) % 8]

    return [write_bag(folder / f"{k}", images(n)) for k, n in enumerate((15, 6, 9, 6))]


def run(bundle: Path, *arguments: Any) -> Result:
    given = ["index", "--bundle", bundle, "--robot", "robbie", *arguments]
    return CliRunner().invoke(app, [str(argument) for argument in given])


def told(done: Result) -> list[Any]:
    """The lines of JSON, without how long it took."""
    assert done.exit_code == 0, done.exception
    *found, summary = [json.loads(line) for line in done.stdout.splitlines()]
    return [*found, {**summary, "took": 0, "folder": ""}]


def rows(folder: Path) -> list[tuple[Any, ...]]:
    """All of a store's moments with all that is known of each, in the order of writing."""
    with MomentStore(folder, read_only=True) as store:
        return [
            (revision, replace(m, embedding=np.zeros(0)).__dict__ | {"embedding": None}, m.id,
             m.embedding.tobytes())
            for revision, m in store.changed_after(0, 10_000)
        ]  # fmt: skip


@contextmanager
def of_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A cluster of two machines with a CPU each, and the arguments that mean it."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("not installed: pip install ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    for name, value in QUIET.items():  # before Ray is imported
        monkeypatch.setenv(name, value)
    from ray.cluster_utils import Cluster

    size: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 << 20}
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:  # names are to be short
        cluster = Cluster(
            initialize_head=True,
            head_node_args={**size, "include_dashboard": False, "temp_dir": folder},
        )
        try:
            cluster.add_node(**size)
            cluster.wait_for_nodes()
            yield ["--ray", cluster.address]
        finally:
            cluster.shutdown()


@contextmanager
def of_processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    yield ["--workers", "2"]


@pytest.mark.parametrize("place", [of_processes, of_ray])
def test_a_worker_that_is_killed_in_the_middle_of_a_bag_leaves_nothing_to_see(
    bundle: Path, bags: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any
) -> None:
    alone = told(run(bundle, "--store", tmp_path / "alone", "--json", *bags))
    grave = tmp_path / "grave"

    def mortal(opening: Any, *how: Any) -> Any:
        return open_pool(Mortal(opening, str(bags[2]), 30, grave), *how)

    monkeypatch.setattr(command, "open_pool", mortal)
    with place(monkeypatch) as arguments:
        done = run(bundle, "--store", tmp_path / "both", "--json", *arguments, *bags)
    assert int(grave.read_text()) != os.getpid()
    assert f"at {bags[2]}, which another does again." in " ".join(done.stderr.split())
    assert told(done) == alone and len(alone) > 10
    assert rows(tmp_path / "both") == rows(tmp_path / "alone")


def test_what_recordings_lack_is_said_as_one_process_says_it(
    bundle: Path, bags: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "PATIENCE", math.inf)  # however long they need to begin
    depth = np.ones((48, 64), np.float32)
    grey = np.zeros((48, 64, 3), np.uint8)
    for name, picture, count in (("deep", depth, 20), ("short", grey, 2)):
        stamps = [SECOND + k * SECOND // 10 for k in range(count)]
        write_bag(tmp_path / name, ((f"/{name}/image_raw", at, picture) for at in stamps))
    said = {}
    for name, how in (("alone", ()), ("two", ("--workers", 2))):
        given = (tmp_path / "deep", bags[1], tmp_path / "short", bags[3])
        done = run(bundle, "--store", tmp_path / name, *how, *given)
        assert done.exit_code == 1
        said[name] = done.stderr
    assert said["alone"] == said["two"]
    assert "20 images of camera 'deep' cannot be used" in said["two"]
    assert "short is too short: the model needs 4 frames" in said["two"]
    assert rows(tmp_path / "alone") == rows(tmp_path / "two") != []


def test_a_recording_that_a_worker_cannot_read_is_refused(bundle: Path) -> None:
    opening = Opening(
        str(bundle), load_bundle(bundle).model_id, "auto", 1, True, Settings(), "r", (0, 65535)
    )
    steps = opening()(Recording(Path("/not/there"), {"/front/image_raw": "front"}, 1.0))
    with pytest.raises(StopIteration) as ended:
        next(steps)
    made = ended.value.value
    assert (made.moments, made.whole) == ([], False) and "/not/there" in made.refused


# --- a server ---


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Any:
    """qdrant-client's local mode, in place of every server."""
    qdrant_client = pytest.importorskip("qdrant_client", reason="pip install qdrant-client")
    client = qdrant_client.QdrantClient(":memory:")
    monkeypatch.setattr(fleet, "connect", lambda url, api_key: client)
    return client


@pytest.mark.filterwarnings("ignore:Payload indexes have no", "ignore:Local mode performs")
def test_into_a_server_and_nothing_that_it_knows_is_forgotten(
    bundle: Path, bags: list[Path], tmp_path: Path, server: Any
) -> None:
    told(run(bundle, "--store", tmp_path / "store", "--json", bags[1]))
    with MomentStore(tmp_path / "store", read_only=True) as store:
        kept = {m.id: m for _, m in store.changed_after(0, 1000)}
    url = ("--url", "http://fleet:6333", "--collection", "shifts")
    first = told(run(bundle, *url, "--json", "--workers", 2, bags[1]))
    assert first[-1]["new_moments"] == len(kept) == server.count("shifts").count > 2
    loaded = load_bundle(bundle)
    shared = FleetStore(url[1], loaded.model_id, loaded.embedding_dim, "shifts")
    found = shared.search(np.eye(1, loaded.embedding_dim, dtype=np.float32)[0], limit=100)
    assert {f.moment.id: same(f.moment) for f in found} == {k: same(m) for k, m in kept.items()}
    known = next(iter(kept.values()))
    pose = Pose("map", (1.0, 2.0, 3.0), (0.0, 0.0, 0.0, 1.0), 5)
    shared.add([replace(known, pose=pose, pinned=True)])
    assert shared.set_text(known.id, "what the robot said", 0.5)
    assert not shared.set_text("00000000-0000-0000-0000-000000000000", "nobody", 0.5)
    again = told(run(bundle, *url, "--json", "--no-words", bags[1]))
    assert again[-1]["new_moments"] == 0
    there = shared.get(known.id)
    assert there is not None and there.text == "what the robot said"
    assert there.pinned and there.pose == pose and shared.get("0" * 32) is None


def same(moment: Moment) -> tuple[Any, ...]:
    return (
        moment.robot, moment.camera, moment.segment_id, moment.start_ns, moment.end_ns, moment.text,
        moment.thumbnail, *np.round(moment.embedding, 5),
    )  # fmt: skip


def test_a_server_that_is_not_there_is_said_before_any_work(
    bundle: Path, bags: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("qdrant_client", reason="pip install qdrant-client")
    monkeypatch.setattr(command, "_alone", None)
    done = run(bundle, "--url", "http://127.0.0.1:9", bags[1])
    assert "server at http://127.0.0.1:9 does not answer" in str(done.exception)


# --- the command line ---


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["{bag}", "--ray"], (0, "")),
        (["--ray", "{bag}"], (0, "")),
        (["--ray", "--workers", "3", "{bag}"], (3, "")),
        (["--ray", "auto", "{bag}"], (0, "auto")),
        (["{bag}", "--ray", "head.lab:6379"], (0, "head.lab:6379")),
        (["--ray=local", "{bag}"], (0, "local")),
        (["{bag}", "--workers", "4"], (4, None)),
    ],
)
def test_ray_may_stand_with_and_without_an_address(
    bundle: Path, bags: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], wanted: tuple[int, str | None],
) -> None:  # fmt: skip
    def opened(opening: Opening, workers: int, ray: str | None, backend: str) -> Any:
        assert opening.threads == 1 or ray is None
        raise VLJepaError(f"{(workers, ray)}")

    monkeypatch.setattr(command, "open_pool", opened)
    given = [argument.format(bag=bags[1]) for argument in arguments]
    done = run(bundle, "--store", tmp_path / "store", *given)
    assert str(done.exception) == f"{wanted}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--workers", "2", "--export", "x.mcap"], "A stream is written by one process"),
        (["--store", "x", "--url", "http://fleet:6333"], "Give one of --store and --url."),
    ],
)
def test_what_cannot_be_done_is_a_sentence(
    bundle: Path, bags: list[Path], arguments: list[str], said: str
) -> None:
    assert said in str(run(bundle, bags[1], *arguments).exception)


def test_without_ray_it_is_a_sentence(
    bundle: Path, bags: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    done = run(bundle, "--store", tmp_path / "store", bags[1], "--ray")
    assert str(done.exception).endswith("pip install 'ray>=2.40'.")


def nothing() -> pool.Work[str, str]:
    """What a worker would open, and none does."""
    raise AssertionError("a worker has begun")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:9", "There is no Ray cluster at 127.0.0.1:9 "),
        ("ray://127.0.0.1:9", r"Ray's client \(ray://127.0.0.1:9\) is not supported"),
    ],
)
def test_a_cluster_that_is_not_there_is_a_sentence_at_once(
    address: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="not installed: pip install ray")
    with pytest.raises(VLJepaError, match=said):
        open_pool(nothing, 2, address)


def test_a_worker_with_another_bundle_or_version_refuses(bundle: Path) -> None:
    own = load_bundle(bundle).model_id
    how = ("auto", 1, True, Settings(), "robbie", (0, 65535))
    assert callable(Opening(str(bundle), own, *how)())
    with pytest.raises(BundleError, match=f"is {own} here and other@1 where the command was begun"):
        Opening(str(bundle), "other@1", *how)()
    with pytest.raises(
        BundleError, match=r"here and 0\.0 where the command was begun: install the"
    ):
        Opening(str(bundle), own, *how, "0.0")()
