"""What is measured of answers, moments and watches, on streams whose truth is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vljepa_ros.evaluation.tasks import agents
from vljepa_ros.memory.moment import Moment
from vljepa_ros.stamps import SECOND_NS
from vljepa_ros.tabletop import language
from vljepa_ros.tabletop.choices import CANDIDATES, TYPES
from vljepa_ros.tabletop.sim import video
from vljepa_ros.tabletop.sim.episode import begin, play

VIDEO = Path(__file__).parents[2] / "videos" / "tabletop.mp4"
TEXTS = list(language.canonical())


class Model:
    """Every canonical sentence is a direction of its own."""

    def embed_text(self, texts: list[str]) -> np.ndarray:
        return np.eye(len(TEXTS), dtype=np.float32)[[TEXTS.index(text) for text in texts]]


def moment(text: str, start: float, end: float) -> Moment:
    return Moment(
        robot="", camera="camera", query="", segment_id=1,
        start_ns=SECOND_NS + round(start * 1e9), end_ns=SECOND_NS + round(end * 1e9),
        embedding=Model().embed_text([text])[0],
    )  # fmt: skip


def event(text: str, start: float, end: float) -> dict[str, Any]:
    return {"text": text, "start": start, "end": end}


def test_a_moment_is_right_if_the_middle_of_the_event_lies_in_it() -> None:
    a, b, c, d = TEXTS[:4]
    events = [event(a, 0, 4), event(b, 4, 8), event(c, 8, 10)]
    moments = [moment(a, 0, 4), moment(b, 4.5, 7.5), moment(c, 8, 10)]
    found = agents.recall(Model(), moments, events)  # type: ignore[arg-type]
    assert (found["descriptions"], found["moments"]) == (3, 3)
    assert found["first"] == found["first_three"] == 1
    # Where another moment is taken for b, b's own comes later.
    moments = [moment(b, 0, 4), moment(d, 4.5, 7.5), moment(c, 8, 10)]
    found = agents.recall(Model(), moments, events)  # type: ignore[arg-type]
    assert found["first"] == pytest.approx(1 / 3, abs=1e-3)
    assert found["first_three"] == 1


def test_an_event_without_a_moment_is_not_found() -> None:
    a, b = TEXTS[:2]
    found = agents.recall(Model(), [moment(a, 4, 8)], [event(a, 4, 8), event(b, 0, 2)])  # type: ignore[arg-type]
    assert found["first"] == found["first_three"] == 0.5


def test_a_watch_must_fire_within_a_second_and_never_without_cause() -> None:
    a, b, c = TEXTS[:3]
    stamps = np.arange(0, 10, 0.25)
    written = Model().embed_text([a, b, c])
    embeddings = np.zeros((len(stamps), len(TEXTS)), np.float32)
    embeddings[(stamps >= 0.5) & (stamps < 4)] = written[0]  # a, which begins at 0
    embeddings[(stamps >= 6) & (stamps < 8)] = written[1]  # b, which begins at 4: too late
    embeddings[stamps >= 8] = written[2]  # c, which never happens
    events = [event(a, 0, 4), event(b, 4, 10)]
    seen = agents.Watched(stamps, embeddings, events)
    found = agents.watch(Model(), [seen, seen], 0.9)  # type: ignore[arg-type]
    assert (found["events"], found["fired_in_time"]) == (4, 0.5)
    assert found["conditions_that_never_hold"] == 2 * (len(TEXTS) - 2)
    assert found["fired_never"] == pytest.approx(1 / (len(TEXTS) - 2), abs=1e-3)


def test_the_shipped_questions_are_those_of_the_shipped_stream() -> None:
    """The simulation of the video's seed gives them again, and the same events."""
    truth = json.loads(VIDEO.with_suffix(".json").read_text())
    shipped = [json.loads(line) for line in VIDEO.with_suffix(".jsonl").read_text().splitlines()]
    world = begin(truth["seed"])
    for _ in play(world, truth["seed"], truth["seconds"], calm=True, every=1):
        pass
    assert shipped == video.questions(world, truth["seed"], truth["seconds"])
    assert truth == video.truth(world, video.SHIPPED, video.SHIPPED_SECONDS, VIDEO.name)


def test_one_of_four_candidates_is_true_and_they_concern_the_scene() -> None:
    truth = json.loads(VIDEO.with_suffix(".json").read_text())
    names = {f"the {thing['colour']} {thing['shape']}" for thing in truth["objects"]}
    asked = [json.loads(line) for line in VIDEO.with_suffix(".jsonl").read_text().splitlines()]
    assert {one["type"] for one in asked} == set(TYPES)
    for one in asked:
        assert len(set(one["candidates"])) == CANDIDATES
        assert one["answer"] in one["candidates"]
        if one["type"] in ("moving", "holding"):
            assert names < set(one["candidates"])
        if one["type"] == "event":
            (happens,) = [
                e["text"] for e in truth["events"] if e["start"] <= one["at"] - 0.25 < e["end"]
            ]
            assert one["answer"] == happens
