"""`vljepa recall` from a store and a server: the table, JSON, the sheet, what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner, Result

pytest.importorskip("qdrant_edge", reason="not installed: pip install qdrant-edge-py")

from bundles import make_bundle
from json_records import check_record

from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.cli.app import app
from vljepa_ros.cli.memory import sheet
from vljepa_ros.cli.memory.sheet import CAPTION, HEIGHT, MARGIN, TITLE, WIDTH, draw_sheet
from vljepa_ros.cli.times import parse_stamp
from vljepa_ros.errors import VLJepaError
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.memory.moment import Moment
from vljepa_ros.memory.store import Found, MomentStore
from vljepa_ros.perception.thumbnails import thumbnail
from vljepa_ros.stamps import clock

SECOND = 1_000_000_000
BEGIN = 1_700_000_000  # seconds
TEXTS = ("a red cube falls", "a blue ball rolls", "the hand picks up the cube", "nothing moves")


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Iterator[Runtime]:
    model = Runtime(load_bundle(tiny_bundle), parts=("y_encoder",))
    yield model
    model.close()


def moment(model: Runtime, number: int) -> Moment:
    """Ten seconds apart; its embedding is that of its text, its picture of one grey."""
    picture = np.full((120, 160, 3), 40 + 50 * number, np.uint8)
    start = (BEGIN + 10 * number) * SECOND
    return Moment(
        "robbie", "front" if number < 3 else "rear", "what?", number, start, start + 3 * SECOND,
        model.embed_text([TEXTS[number]])[0], TEXTS[number], 0.5,
        thumbnail(picture) if number else b"",
    )  # fmt: skip


@pytest.fixture
def store(model: Runtime, tmp_path: Path) -> Iterator[Path]:
    """A store that stays open for writing, as a robot's does."""
    bundle = model.bundle
    with MomentStore(tmp_path / "store", bundle.model_id, bundle.embedding_dim) as opened:
        opened.add([moment(model, number) for number in range(len(TEXTS))])
        yield tmp_path / "store"


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["recall", *map(str, arguments)], env={"COLUMNS": "120"})


def recall(*arguments: Any) -> str:
    done = run(*arguments)
    if done.exception is not None:
        raise done.exception
    return done.output


def found(*arguments: Any) -> list[str]:
    return [m["text"] for m in json.loads(recall(*arguments, "--json"))]


def test_the_best_is_first_with_time_and_length(tiny_bundle: Path, store: Path) -> None:
    shown = recall(TEXTS[1], "--store", store, "--bundle", tiny_bundle).splitlines()
    assert shown[0].split() == ["time", "camera", "s", "score", "text"]
    assert len(shown) == 5
    at = clock((BEGIN + 10) * SECOND)
    assert shown[1].split() == [*at.split(), "front", "3.0", "1.00", *TEXTS[1].split()]


def test_bounds_cameras_and_limit(tiny_bundle: Path, store: Path) -> None:
    given = (TEXTS[0], "--store", store, "--bundle", tiny_bundle)
    assert len(found(*given)) == 4
    assert len(found(*given, "--limit", 2)) == 2
    assert found(*given, "--camera", "rear") == [TEXTS[3]]
    iso = clock((BEGIN + 20) * SECOND).replace(" ", "T")
    assert set(found(*given, "--after", iso)) == {TEXTS[2], TEXTS[3]}
    assert found(*given, "--after", BEGIN + 13.5, "--before", BEGIN + 20) == [TEXTS[2]]
    assert found(*given, "--after", BEGIN + 1000) == []
    assert "Nothing that fits" in recall(*given, "--after", BEGIN + 1000)


def test_json_says_everything(tiny_bundle: Path, store: Path, model: Runtime) -> None:
    best = json.loads(recall(TEXTS[2], "--store", store, "--bundle", tiny_bundle, "--json"))[0]
    check_record("recall", best)
    wanted = moment(model, 2)
    assert best["id"] == wanted.id and best["score"] == pytest.approx(1, abs=1e-3)
    assert (best["start_ns"], best["end_ns"]) == ((BEGIN + 20) * SECOND, (BEGIN + 23) * SECOND)
    assert parse_stamp("--after", best["start"]) == best["start_ns"]
    assert (best["robot"], best["query"], best["pinned"]) == ("robbie", "what?", False)


def test_the_sheet_shows_every_moment(tiny_bundle: Path, store: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    order = found(TEXTS[0], "--store", store, "--bundle", tiny_bundle, "--sheet", sheet)
    picture = cv2.imread(str(sheet))
    columns, down = 2, HEIGHT + CAPTION + MARGIN
    width, height = columns * (WIDTH + MARGIN) + MARGIN, TITLE + 2 * down + MARGIN // 2
    assert picture.shape == (height, width, 3)
    for place, text in enumerate(order):
        x = MARGIN + place % columns * (WIDTH + MARGIN) + WIDTH // 2
        y = TITLE + place // columns * down
        number = TEXTS.index(text)
        if number:  # the first has no picture
            assert np.abs(picture[y + 10, x].astype(int) - (40 + 50 * number)).max() < 4
        caption = picture[y + HEIGHT + 4 : y + HEIGHT + CAPTION, x - WIDTH // 2 : x]
        assert np.ptp(caption) > 100  # there are letters
    assert np.ptp(picture[:TITLE]) > 100


def test_what_lies_below_the_bundles_threshold_is_weak(
    tiny_bundle: Path, store: Path, model: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = (TEXTS[1], "--store", store, "--bundle", tiny_bundle)
    rows = json.loads(recall(*given, "--json"))
    enough = model.bundle.thresholds.watch
    assert [row["weak"] for row in rows] == [row["score"] < enough for row in rows]
    assert not rows[0]["weak"]
    written: list[str] = []
    monkeypatch.setattr(sheet, "_write", lambda canvas, text, *_: written.append(text))
    one = moment(model, 1)
    sheet.draw_sheet("title", [Found(one, enough), Found(one, enough - 0.01)], enough)
    assert written.count("weak") == 1
    # The position in a video, and for how long.
    video = replace(one, start_ns=14_800_000_000, end_ns=17_000_000_000)
    sheet.draw_sheet("title", [Found(video, 1.0)], enough)
    assert "1.  14.800 s for 2.2 s" in written


@pytest.mark.parametrize("count", [0, 1, 3, 30])
def test_a_sheet_of_any_number(model: Runtime, count: int) -> None:
    long = Moment("r", "c" * 99, "q", 1, 0, 10**18, np.zeros(1), "扉 " + "word " * 99)
    picture = draw_sheet("a title that is far too long " * 9, [Found(long, -0.5)] * count)
    assert picture.dtype == np.uint8 and picture.shape[1] <= 4 * (WIDTH + MARGIN) + MARGIN


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["", "--store", "{store}"], "The text is empty"),
        (["x" * 1001, "--store", "{store}"], "1,001 characters"),
        (["a\x1b[2Jb", "--store", "{store}"], "control character U+001B"),
        (["a", "--store", "{store}", "--camera", "left"], "no camera 'left' in"),
        (["a", "--store", "{store}", "--after", "9", "--before", "8"], "earlier than --after"),
        (["a", "--store", "{store}", "--after", "noon"], "--after 'noon' is no time"),
        (["a", "--store", "{store}", "--url", "http://x"], "Give one of --store, --url"),
        (["a", "--store", "{store}/absent"], "There is no moment store"),
        (["a", "--store", "{store}", "--sheet", "{store}/a.txt"], "is no name of a picture"),
        (["a", "--store", "{store}", "--sheet", "{store}/no/a.png"], "cannot be written"),
        (["a", "--url", "http://127.0.0.1:1"], "The Qdrant server at http://127.0.0.1:1 does not"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(
    tiny_bundle: Path, store: Path, arguments: list[str], said: str
) -> None:
    done = run(*(a.format(store=store) for a in arguments), "--bundle", tiny_bundle)
    assert done.exit_code != 0
    assert isinstance(done.exception, VLJepaError), done.exception
    assert said in str(done.exception)


def test_another_models_bundle_is_refused(store: Path, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "other", name="other", seed=3)
    done = run("a cube", "--store", store, "--bundle", other)
    assert "give the one that they were made with (--bundle)" in str(done.exception)


def test_a_fleet_s_server(tiny_bundle: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against qdrant-client's own local mode."""
    qdrant = pytest.importorskip("qdrant_client", reason="not installed: pip install qdrant-client")
    from vljepa_ros.memory import fleet

    server, asked = qdrant.QdrantClient(":memory:"), []

    def connect(url: str, api_key: str) -> Any:
        asked.append((url, api_key))
        return server

    monkeypatch.setattr(fleet, "connect", connect)
    monkeypatch.setitem(os.environ, "QDRANT_API_KEY", "secret")
    with MomentStore(store, read_only=True) as opened:
        assert fleet.push(opened, "http://fleet", "garage") == 4
    given = (TEXTS[3], "--url", "http://fleet", "--collection", "garage", "--bundle", tiny_bundle)
    assert found(*given)[0] == TEXTS[3]
    assert asked[-1] == ("http://fleet", "secret")
    assert found(*given, "--camera", "front", "--limit", 1) != [TEXTS[3]]


def test_times() -> None:
    assert parse_stamp("--after", "") == 0
    assert parse_stamp("--after", "1.5") == 1_500_000_000
    assert parse_stamp("--after", "1700000000.123456789") == 1_700_000_000_123_456_789
    for zone in ("+00:00", "Z"):
        assert parse_stamp("--after", f"2026-05-01T14:30:00{zone}") == 1_777_645_800 * SECOND
    for stamp in (1_700_000_000_250_000_000, 12_500_000_000):
        assert parse_stamp("--after", clock(stamp)) == stamp
    for bad in ("noon", "-5", "1e9", "1960-01-01", "nan", "1.2.3"):
        with pytest.raises(VLJepaError, match="--after"):
            parse_stamp("--after", bad)
    for late in ("2147483648", "9" * 30, "2040-01-01"):  # ROS counts seconds in 32 bits
        with pytest.raises(VLJepaError, match=r"--after '.*' is after 2038, and ROS has no such"):
            parse_stamp("--after", late)
    assert parse_stamp("--after", "2147483647.999999999") == 2**31 * SECOND - 1


def test_where_a_moment_lies_comes_through_the_memory_node(model: Runtime) -> None:
    pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")
    from vljepa_ros.cli.live.calls import _found
    from vljepa_ros.nodes.memory.messages import moment_message

    one = moment(model, 1)
    for kept in (
        one,
        replace(one, video_start_ns=one.start_ns - 1_250_000_000),
        replace(one, start_ns=250_000_000, episode=7, task="open the drawer"),
    ):
        got = _found(moment_message(kept, 0.5)).moment
        assert (got.episode, got.task, got.position) == (kept.episode, kept.task, kept.position)
        assert got.start_ns == kept.start_ns
