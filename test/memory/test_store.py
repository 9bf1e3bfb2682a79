"""The store: what is kept, found, limited and refused."""

from __future__ import annotations

import json
import logging
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moments import DIM, EPOCH, MODEL, SECOND, moment, numbers, open_store, same, unit

from vljepa_ros.errors import StoreError
from vljepa_ros.memory import edge, store
from vljepa_ros.memory.files import disk_bytes
from vljepa_ros.memory.moment import Moment, Pose
from vljepa_ros.memory.store import Found, Limits, MomentStore, default_store
from vljepa_ros.memory.table import ADDED

pytest.importorskip("qdrant_edge", reason="no qdrant_edge: pip install qdrant-edge-py")
DAY = 86400 * SECOND


def test_a_moment_comes_back_as_it_went_in(tmp_path: Path) -> None:
    pose = Pose("map", (1.0, -2.5, 0.1), (0.0, 0.0, 0.6, 0.8), EPOCH)
    jpeg = bytes(range(256)) * 40
    given = moment(7, text="Die Tür\tgeht auf — 扉", confidence=0.25, pose=pose, thumbnail=jpeg)
    with open_store(tmp_path / "a" / "store") as opened:
        opened.add([given, moment(8, thumbnail=b"")])
        for _ in range(2):
            assert same(opened.get(given.id), given)
            opened.close()
            opened = open_store(tmp_path / "a" / "store")
        assert len(opened) == 2 and opened.get("nobody") is None
        assert same(opened.search(given.embedding, limit=1)[0].moment, given)
        plain = opened.search(given.embedding, limit=1, exclude_thumbnails=True)[0].moment
        assert same(plain, replace(given, thumbnail=b""))


@pytest.mark.parametrize("had", [0, 1, 3])  # how many of the added columns
def test_a_store_of_an_older_version_is_read_and_gone_on_with(tmp_path: Path, had: int) -> None:
    folder = tmp_path / "s"
    with open_store(folder) as opened:
        opened.add([moment(1), moment(2)])
    with sqlite3.connect(folder / "moments.sqlite") as older:
        for column in list(ADDED)[had:]:
            older.execute(f"ALTER TABLE moments DROP COLUMN {column}")
    older.close()

    def added(opened: MomentStore) -> list[tuple[float, int, str, int]]:
        return [(m.familiarity, m.episode, m.task, m.video_start_ns) for m in opened.newest()]

    with MomentStore(folder, read_only=True) as opened:
        assert added(opened) == [(-1, -1, "", -1)] * 2
    new = moment(3, familiarity=0.25, episode=7, task="open the drawer", video_start_ns=EPOCH)
    with open_store(folder) as opened:
        opened.add([new])
        assert added(opened) == [(0.25, 7, "open the drawer", EPOCH), *[(-1, -1, "", -1)] * 2]
    with MomentStore(folder, read_only=True) as opened:
        assert same(opened.search(new.embedding, limit=1)[0].moment, new)


def test_the_identity_is_robot_camera_query_start_and_episode() -> None:
    one = moment(1)
    same_ids = [replace(one, end_ns=one.end_ns + 1, text="x", segment_id=9, pinned=True)]
    others = [
        replace(one, robot="r3"), replace(one, camera="rear"), replace(one, query="?"),
        replace(one, start_ns=one.start_ns + 1), replace(one, robot="r2f", camera="ront"),
        replace(one, episode=0), replace(one, episode=1),
    ]  # fmt: skip
    assert {m.id for m in same_ids} == {one.id}
    assert len({m.id for m in (one, *others)}) == 1 + len(others)


def test_where_a_moment_lies_in_its_video_or_episode() -> None:
    one = moment(1)
    assert one.position is None and replace(one, start_ns=0).position is None
    assert replace(one, video_start_ns=one.start_ns - 1_500_000_000).position == 1.5
    assert replace(one, start_ns=250_000_000, video_start_ns=0).position == 0.25
    assert replace(one, start_ns=250_000_000, episode=2).position == 0.25


def test_adding_again_replaces_what_is_known_and_keeps_the_pin(tmp_path: Path) -> None:
    with open_store(tmp_path / "s") as opened:
        opened.add([moment(n) for n in range(5)])
        assert opened.pin(moment(3).id, True)
        revision = opened.changed_after(0, 10)[-1][0]
        opened.add([moment(n) for n in range(5)])
        assert opened.changed_after(revision, 10) == []  # nothing has changed
        longer = replace(moment(3), end_ns=moment(3).end_ns + 5, embedding=unit(99), text="new")
        opened.add([longer])
        assert len(opened) == 5
        assert same(opened.get(longer.id), replace(longer, pinned=True))
        assert numbers([m for _, m in opened.changed_after(revision, 10)]) == [3]
        best = opened.search(unit(99), limit=5)
        assert best[0].moment.text == "new" and best[0].score == pytest.approx(1)
        assert sorted(numbers([f.moment for f in best])) == [0, 1, 2, 3, 4]


def test_words_and_pins_come_later_and_last(tmp_path: Path) -> None:
    with open_store(tmp_path / "s") as opened:
        opened.add([moment(1), moment(2)])
        assert opened.set_text(moment(1).id, "the cup falls", 0.5)
        assert opened.pin(moment(1).id, True) and opened.pin(moment(1).id, True)
        assert not opened.pin("nobody", True) and not opened.set_text("nobody", "x", 1.0)
    with open_store(tmp_path / "s") as opened:
        expected = replace(moment(1), text="the cup falls", confidence=0.5, pinned=True)
        assert same(opened.get(moment(1).id), expected)
        assert opened.pin(moment(1).id, False) and not opened.get(moment(1).id).pinned  # type: ignore[union-attr]
        assert opened.pinned == 0


def test_newest_first(tmp_path: Path) -> None:
    with open_store(tmp_path / "s") as opened:
        assert opened.newest() == [] and opened.span_ns() == (0, 0)
        opened.add([moment(n, "front" if n % 2 else "rear") for n in (4, 1, 3, 0, 2)])
        assert numbers(opened.newest(3)) == [4, 3, 2]
        assert numbers(opened.newest(9, ["front"])) == [3, 1]
        assert opened.cameras() == {"front": 2, "rear": 3}
        assert opened.span_ns() == (moment(0).start_ns, moment(4).end_ns)


# --- searching ---


def exact(
    moments: list[Moment], vector: np.ndarray, cameras: list[str], after: int, before: int
) -> dict[str, float]:
    """Cosines by id of what lies within the bounds."""
    direction = vector / np.linalg.norm(vector)
    return {
        m.id: float(m.embedding @ direction)
        for m in moments
        if (not cameras or m.camera in cameras)
        and (not after or m.end_ns >= after)
        and (not before or m.start_ns <= before)
    }


def check(found: list[Found], allowed: dict[str, float], limit: int) -> None:
    """The right number, the right scores, best first, nothing from out of bounds."""
    assert len(found) == min(limit, len(allowed))
    assert [f.score for f in found] == pytest.approx(
        sorted(allowed.values(), reverse=True)[:limit], abs=1e-5
    )
    for f in found:
        assert f.score == pytest.approx(allowed[f.moment.id], abs=1e-5)
    assert len({f.moment.id for f in found}) == len(found)


STAMPS = st.one_of(  # close together, where 64 bit floats cannot tell them apart, and far apart
    st.integers(1, 40), st.integers(EPOCH, EPOCH + 600), st.integers(EPOCH, EPOCH + 10**12)
)
MOMENTS = st.lists(
    st.builds(
        lambda n, camera, start, length: moment(n, camera, start, start + length),
        st.integers(0, 10**6), st.sampled_from(["a", "b", "c"]), STAMPS, st.integers(0, 500),
    ),
    max_size=40, unique_by=lambda m: m.id,
)  # fmt: skip


FRESH = [HealthCheck.function_scoped_fixture]  # each example makes its own folder in tmp_path


@settings(max_examples=60, suppress_health_check=FRESH)
@given(
    MOMENTS, st.integers(0, 99), st.lists(st.sampled_from(["a", "b", "nobody"]), max_size=2),
    st.one_of(st.just(0), STAMPS), st.one_of(st.just(0), STAMPS), st.integers(0, 12),
)  # fmt: skip
def test_a_search_finds_what_brute_force_finds(
    tmp_path: Path, moments: list[Moment], seed: int, cameras: list[str], after: int, before: int,
    limit: int,
) -> None:  # fmt: skip
    folder = tmp_path / "s"
    vector = 3 * unit(seed)
    allowed = exact(moments, vector, cameras, after, before)
    with open_store(folder) as opened:
        opened.add(moments)
        check(opened.search(vector, cameras, after, before, limit), allowed, limit)
        with MomentStore(folder, read_only=True) as reader:
            check(reader.search(vector, cameras, after, before, limit), allowed, limit)
    shutil.rmtree(folder)


@settings(max_examples=25, suppress_health_check=FRESH)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(0, 30), st.integers(1, 20)),
            st.tuples(st.just("again"), st.integers(0, 30), st.integers(1, 9)),
            st.tuples(st.just("pin"), st.integers(0, 40), st.booleans()),
            st.tuples(st.just("reopen"), st.just(0), st.just(0)),
        ),
        max_size=12,
    ),
    st.integers(0, 12),
)
def test_any_history_leaves_what_a_model_says(
    tmp_path: Path, steps: list[tuple[str, int, int]], most: int
) -> None:
    """Adding, replacing, pinning, limits and tomes that fill, beside a dict."""
    folder = tmp_path / "s"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edge, "TOME", 8)
        patch.setattr(store, "FLUSH", 20)
        opened = open_store(folder, limits=Limits(moments=most))
        model: dict[str, Moment] = {}
        for step, first, value in steps:
            if step == "reopen":
                opened.close()
                opened = open_store(folder, limits=Limits(moments=most))
            elif step == "pin":
                known = model.get(moment(first).id)
                assert opened.pin(moment(first).id, bool(value)) == (known is not None)
                if known:
                    model[known.id] = replace(known, pinned=bool(value))
            else:
                added = [moment(n) for n in range(first, first + value)]
                if step == "again":
                    added = [replace(m, embedding=unit(m.segment_id + 500)) for m in added]
                opened.add(added)
                for m in added:
                    pinned = m.id in model and model[m.id].pinned
                    model[m.id] = replace(m, pinned=pinned)
            if step in ("add", "again", "reopen"):
                prune(model, most)
            assert len(opened) == len(model)
            assert opened.pinned == sum(m.pinned for m in model.values())
            check(
                opened.search(unit(7), limit=60),
                exact(list(model.values()), unit(7), [], 0, 0), 60,
            )  # fmt: skip
        for known in model.values():
            assert same(opened.get(known.id), known)
        opened.close()
    shutil.rmtree(folder)


def prune(model: dict[str, Moment], most: int) -> None:
    """The oldest go until `most` are left, but not a pinned one, nor the newest."""
    in_order = sorted(model.values(), key=lambda m: m.end_ns)
    for m in in_order[:-1]:
        if most and len(model) > most and not m.pinned:
            del model[m.id]


def test_codes_find_what_an_exact_search_finds(tmp_path: Path) -> None:
    """Enough moments that most of them are no candidate; recall of the ten best."""
    rng = np.random.default_rng(5)
    centres = rng.standard_normal((40, 64)).astype(np.float32)
    vectors = centres[rng.integers(0, 40, 3000)] + 0.7 * rng.standard_normal((3000, 64))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    with open_store(tmp_path / "s", dim=64) as opened:
        opened.add([moment(n, embedding=v, thumbnail=b"") for n, v in enumerate(vectors)])
        hits = 0
        for query in vectors[::100]:
            best = set(np.argsort(-(vectors @ query))[:10].tolist())
            hits += len(best & set(numbers([f.moment for f in opened.search(query)])))
    assert hits >= 0.95 * 300


# --- limits ---


def test_the_oldest_go_first_whatever_the_order_they_came_in(tmp_path: Path) -> None:
    with open_store(tmp_path / "s", limits=Limits(moments=4)) as opened:
        opened.add([moment(n) for n in (5, 1, 9)])
        opened.add([moment(n) for n in (3, 7, 2)])
        assert numbers(opened.newest()) == [9, 7, 5, 3]
        opened.add([moment(0)])
        assert numbers(opened.newest()) == [9, 7, 5, 3]


def test_age_counts_from_the_newest_moment(tmp_path: Path) -> None:
    """Bags are old: the clock says nothing about them."""
    old = [moment(n, start_ns=n * DAY + SECOND) for n in range(1, 6)]
    with open_store(tmp_path / "s", limits=Limits(days=2.5)) as opened:
        opened.add(old[:2])
        assert numbers(opened.newest()) == [2, 1]
        opened.pin(old[0].id, True)
        opened.add(old[2:])
        assert numbers(opened.newest()) == [5, 4, 3, 1]


def test_pinned_ones_that_exceed_the_limit_stay_and_are_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_store(tmp_path / "s", limits=Limits(moments=3)) as opened:
        opened.add([moment(n, pinned=n < 3) for n in range(4)])
        assert numbers(opened.newest()) == [3, 2, 1, 0]
        opened.add([moment(4)])
        opened.add([moment(5)])
        assert numbers(opened.newest()) == [5, 2, 1, 0]
        assert [r.message for r in caplog.records if "Pinned moments alone" in r.message] != []
        assert len(caplog.records) == 1
        opened.pin(moment(0).id, False)
        opened.add([moment(6)])
        assert numbers(opened.newest()) == [6, 2, 1]


def test_the_size_on_the_disk_is_bounded(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("disk") / "s"  # holes of files take room in a tmpfs
    monkeypatch.setattr(edge, "TOME", 64)
    monkeypatch.setattr(store, "FLUSH", 64)
    most = 6 * 2**20
    with open_store(folder, limits=Limits(0, megabytes=6)) as opened:
        opened.add([moment(0, pinned=True)])
        for at in range(1, 500, 50):
            opened.add([moment(n, thumbnail=bytes(30_000)) for n in range(at, at + 50)])
            assert opened.size() < 1.25 * most + 2**24 + 2**22  # SQLite's journal, one add over
        before = len(opened)
        assert 0.6 * most < before * 30_000 < most
        assert opened.newest(1)[0].segment_id == 500
        assert same(opened.get(moment(0).id), moment(0, pinned=True))
    with open_store(folder, limits=Limits(0, megabytes=3)) as opened:
        assert 0.25 * before < len(opened) < 0.6 * before
    assert disk_bytes(folder) < 1.25 * most / 2


def test_emptied_tomes_leave_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "TOME", 16)
    with open_store(tmp_path / "s", limits=Limits(moments=20)) as opened:
        opened.add([moment(0, pinned=True)])
        for n in range(1, 200):
            opened.add([moment(n)])
        tomes = [p for p in (tmp_path / "s" / "index").iterdir() if p.is_dir()]
        assert len(tomes) <= 4
        check(opened.search(unit(0)), exact(opened.newest(20), unit(0), [], 0, 0), 10)
        assert opened.search(unit(0), limit=1)[0].moment.pinned


# --- what is refused ---


def test_another_model_is_refused_and_never_mixed(tmp_path: Path) -> None:
    open_store(tmp_path / "s").close()
    for read_only in (False, True):
        with pytest.raises(StoreError, match=r"holds moments of toy@\w+ \(16 numbers"):
            MomentStore(tmp_path / "s", "other@1", DIM, read_only=read_only)
        with pytest.raises(StoreError, match="folder of its own"):
            MomentStore(tmp_path / "s", MODEL, DIM + 1, read_only=read_only)
    with MomentStore(tmp_path / "s") as opened:  # and nothing is locked after the refusals
        assert (opened.model_id, opened.dim) == (MODEL, DIM)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    open_store(tmp_path / "s").close()
    about = tmp_path / "s" / "store.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "format": 99}))
    for read_only in (False, True):
        with pytest.raises(StoreError, match="update vljepa_ros"):
            open_store(tmp_path / "s", read_only=read_only)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": "1", "model_id": 2}'])
def test_a_damaged_description_is_refused(tmp_path: Path, text: str) -> None:
    with open_store(tmp_path / "s") as opened:
        opened.add([moment(1)])
    (tmp_path / "s" / "store.json").write_text(text)
    for read_only in (False, True):
        with pytest.raises(StoreError, match=r"store\.json is damaged"):
            open_store(tmp_path / "s", read_only=read_only)


def test_a_damaged_table_is_refused(tmp_path: Path) -> None:
    open_store(tmp_path / "s").close()
    (tmp_path / "s" / "moments.sqlite").write_bytes(b"no database" * 1000)
    for read_only in (False, True):
        with pytest.raises(StoreError, match=r"moments\.sqlite cannot be opened"):
            open_store(tmp_path / "s", read_only=read_only)


def test_folders_that_are_no_store_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="There is no moment store"):
        open_store(tmp_path / "none", read_only=True)
    with pytest.raises(StoreError, match="There is no moment store"):
        MomentStore(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"")
    with pytest.raises(StoreError, match="holds other files"):
        open_store(tmp_path / "photos")
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["cat.jpg"]
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot be opened"):
        open_store(tmp_path / "file" / "s")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"embedding": unit(1, DIM + 1)}, "not of 16 numbers"),
        ({"embedding": 2 * unit(1)}, "of length 2, not 1"),
        ({"embedding": np.full(DIM, np.nan, np.float32)}, "of length nan"),
        ({"end_ns": 5}, "ends before it starts"),
        ({"confidence": float("nan")}, "not a number"),
        ({"text": "\ud800"}, "cannot be written"),
        ({"segment_id": 2**70}, "cannot be written"),
    ],
)
def test_a_bad_moment_is_refused_and_none_of_its_batch_is_kept(
    tmp_path: Path, values: dict[str, object], reason: str
) -> None:
    with open_store(tmp_path / "s") as opened:
        with pytest.raises(StoreError, match=reason):
            opened.add([moment(1), moment(2, **values)])  # type: ignore[arg-type]
        assert len(opened) == 0 and opened.search(unit(1)) == []
        opened.add([moment(1)])
        assert numbers([f.moment for f in opened.search(unit(1))]) == [1]


def test_a_bad_search_is_refused(tmp_path: Path) -> None:
    with open_store(tmp_path / "s") as opened:
        for vector, reason in (
            (unit(1, 5), "shape"), (np.zeros(DIM), "no direction"),
            (np.full(DIM, np.nan), "no direction"),
        ):  # fmt: skip
            with pytest.raises(StoreError, match=reason):
                opened.search(vector)


def test_a_reader_cannot_write(tmp_path: Path) -> None:
    open_store(tmp_path / "s").close()
    with MomentStore(tmp_path / "s", read_only=True) as reader:
        for change in (
            lambda: reader.add([moment(1)]), lambda: reader.pin("x", True),
            lambda: reader.set_text("x", "y", 0.0),
        ):  # fmt: skip
            with pytest.raises(StoreError, match="reading only"):
                change()


# --- the index is made of the table ---


@pytest.mark.parametrize(
    "damage", ["lost", "marker", "segment", "panic", "silent", "older", "foreign"]
)
def test_a_lost_or_torn_index_is_made_again(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    index = tmp_path / "s" / "index"
    with open_store(tmp_path / "s") as opened:
        opened.add([moment(n) for n in range(30)])
    if damage == "older":
        shutil.copytree(index, tmp_path / "older")
    with open_store(tmp_path / "s") as opened:
        opened.add([moment(n) for n in range(30, 50)])
    if damage == "lost":
        shutil.rmtree(index)
    elif damage == "marker":
        (index / "flushed.json").write_text("{")
    elif damage == "segment":
        for file in index.rglob("segment.json"):
            file.write_text("{}")
    elif damage == "panic":  # Rust's, which is no Exception
        for file in index.rglob("quantized_data/status.dat"):
            file.write_bytes(b"")
    elif damage == "silent":  # opens, and finds nothing
        for file in index.rglob("quantized_data/status.dat"):
            file.unlink()
    elif damage == "older":
        shutil.rmtree(index)
        shutil.copytree(tmp_path / "older", index)
    else:
        with open_store(tmp_path / "other") as other:
            other.add([moment(n) for n in range(90)])
        shutil.rmtree(index)
        shutil.copytree(tmp_path / "other" / "index", index)
    with open_store(tmp_path / "s") as opened, caplog.at_level(logging.WARNING):
        check(opened.search(unit(3), limit=60), exact(opened.newest(60), unit(3), [], 0, 0), 60)
        assert opened._current
    assert len(caplog.records) == (0 if damage in ("lost", "older") else 1)


def test_an_index_that_breaks_while_it_is_open_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> list[int]:
        raise RuntimeError("torn")

    with open_store(tmp_path / "s") as opened:
        opened.add([moment(n) for n in range(30)])
        monkeypatch.setattr(edge.EdgeIndex, "search", broken)
        for new in (30, 31):
            check(opened.search(unit(3), limit=60), exact(opened.newest(60), unit(3), [], 0, 0), 60)
            opened.add([moment(new)])
        assert ["its index cannot be read: torn" in r.message for r in caplog.records] == [True]
    monkeypatch.undo()
    with open_store(tmp_path / "s") as opened:
        check(opened.search(unit(3), limit=60), exact(opened.newest(60), unit(3), [], 0, 0), 60)
        assert opened._current and len(opened) == 32


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.delenv("VLJEPA_MEMORY", raising=False)
    assert default_store() == tmp_path / ".local/share/vljepa/memory"
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_store() == Path("/data/vljepa/memory")
    monkeypatch.setenv("VLJEPA_MEMORY", "~/robot")
    assert default_store() == tmp_path / "robot"
