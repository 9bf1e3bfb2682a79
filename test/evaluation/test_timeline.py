"""The picture of a stream over time: what it shows, at any length, and that it can be read."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install matplotlib")

import cv2
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from vljepa_ros.evaluation import timeline
from vljepa_ros.evaluation.timeline import DPI, INK, VERDICTS, draw
from vljepa_ros.evaluation.tracks import Mark, Track, of_moments
from vljepa_ros.memory.moment import Moment

NOISE = np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8)
WORDS = "a person walks past the table and takes the red mug that stands there".split()
DAY = 1_777_645_800 * 10**9


def track(length: float, changes: int, verdict: str = "") -> Track:
    """A stream with so many changes at random times, each with a sentence of some length."""
    random = np.random.default_rng(changes)
    times = np.arange(0, length, max(0.25, length / 2000))
    marks = [
        Mark(at, at, " ".join(WORDS[: random.integers(2, len(WORDS))]), NOISE, verdict)
        for at in np.sort(random.uniform(0, length, changes)).tolist()
    ]
    scores = random.exponential(0.4, len(times)).tolist()
    return Track("front", length, times.tolist(), scores, marks)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Figure]]:
    """The figures that were drawn, kept open."""
    kept: list[Figure] = []
    monkeypatch.setattr(timeline.plt, "close", kept.append)
    yield kept
    monkeypatch.undo()
    for figure in kept:
        plt.close(figure)


def sentences(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts if axes.get_xlim()[0]
            <= text.get_position()[0] <= axes.get_xlim()[1]
            and text.get_text().startswith("a person")]  # fmt: skip


@pytest.mark.parametrize(("length", "changes"), [(10, 3), (90, 28), (600, 90), (3600, 300)])
def test_letters_lie_on_no_other_and_inside_the_picture(
    length: float, changes: int, tmp_path: Path, figures: list[Figure]
) -> None:
    out = tmp_path / "out.png"
    stream = track(length, changes)
    without_room = draw("a title", [stream], out)
    (figure,) = figures
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    boxes = [
        text.get_window_extent(renderer)
        for axes in figure.axes for text in axes.texts if text.get_text()
    ]  # fmt: skip
    assert len(boxes) > changes if length < 100 else len(boxes) > 60
    for one in boxes:
        assert one.x0 >= 0 and one.x1 <= figure.bbox.x1 and one.y0 >= 0 and one.y1 <= figure.bbox.y1
    overlaps = sum(
        one.x0 < other.x1 - 1 and other.x0 < one.x1 - 1
        and one.y0 < other.y1 - 1 and other.y0 < one.y1 - 1
        for one, other in combinations(boxes, 2)
    )  # fmt: skip
    assert overlaps == 0
    written = len(sentences(figure))
    if written < changes:
        assert without_room == f"{written} of {changes} sentences find room"
    else:
        assert without_room == ""
    picture = cv2.imread(str(out))
    assert picture.shape[1] == 15 * DPI and picture.shape[0] < 60 * DPI


def test_without_truth_there_is_one_colour(tmp_path: Path, figures: list[Figure]) -> None:
    draw("no truth", [track(30, 6)], tmp_path / "a.png")
    draw("truth", [track(30, 6, "wrong")], tmp_path / "b.png")
    for figure, colour in zip(figures, (INK, VERDICTS["wrong"]), strict=True):
        found = {
            text.get_color() for axes in figure.axes for text in axes.texts
            if text.get_text().startswith("a person")
        }  # fmt: skip
        assert found == {colour}


def test_key_frames_stand_in_the_order_of_their_times_and_apart() -> None:
    for wanted in ([0.0, 0.1, 0.2], [9.0, 9.1, 9.2], [-1.0, 5.0, 5.1, 12.0]):
        places = timeline._apart(wanted, 1.5, 10.0)
        assert min(places) >= 0 and max(places) <= 10
        assert all(b - a >= 1.5 - 1e-9 for a, b in pairwise(places))
    assert timeline._apart([1.0, 4.0], 1.5, 10.0) == [1.0, 4.0]


def moment(start_ns: int, seconds: float, camera: str = "front", text: str = "") -> Moment:
    end_ns = start_ns + round(seconds * 1e9)
    return Moment("r", camera, "q", 1, start_ns, end_ns, np.ones(1, np.float32), text)


def test_a_store_is_drawn_by_camera_and_session(tmp_path: Path, figures: list[Figure]) -> None:
    hour = 3600 * 10**9
    moments = [
        moment(DAY + hour, 5, text="later"), moment(DAY, 4, text="a person"),
        moment(DAY + 4 * 10**9, 6), moment(DAY, 3, "rear"),
    ]  # fmt: skip
    tracks = of_moments(moments)
    assert [(one.name, one.length, one.origin_ns) for one in tracks] == [
        ("front", 10, DAY), ("rear", 3, DAY), ("front", 5, DAY + hour),
    ]  # fmt: skip
    assert [(m.at, m.text) for m in tracks[0].marks] == [(0, "a person"), (4, "")]
    assert draw("a store", tracks, tmp_path / "out.png") == ""
    said = [t.get_text() for axes in figures[0].axes for t in axes.texts]
    assert {"a person", "later"} <= set(said)


def test_times_of_a_video_are_positions_in_it() -> None:
    (one,) = of_moments([moment(1_750_000_000, 2), moment(14_800_000_000, 2.2)])
    assert [mark.at for mark in one.marks] == [1.75, 14.8]
    clock = timeline._clock(one)
    assert clock(14.8, 1) == "14.8 s" and clock(14.8, 0) == "15 s"
    minutes = timeline._clock(Track("a", 700.0))
    assert minutes(74.84, 1) == "1:14.8" and minutes(660.0, 0) == "11:00"
    assert minutes(59.96, 1) == "1:00.0"
    hours = timeline._clock(Track("a", 7200.0))
    assert hours(3671.2, 1) == "1:01:11.2"


def test_more_than_fits_is_said(tmp_path: Path) -> None:
    tracks = [track(10, 1) for _ in range(timeline.ROWS + 2)]
    said = draw("many", tracks, tmp_path / "out.png")
    assert said.startswith(f"the last {timeline.ROWS} of {timeline.ROWS + 2} stretches are drawn")
