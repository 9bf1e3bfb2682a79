"""What an agent gets from the shipped stream: answers to questions, moments, conditions that hold.

Invariant: everything goes the way that the nodes go (perceiver, recorder, watches); only the truth
comes from the files beside the video.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.memory.moment import Moment
from vljepa_ros.memory.recorder import Recorder
from vljepa_ros.perception.perceiver import Perceiver, Step
from vljepa_ros.perception.settings import Settings
from vljepa_ros.recordings import offline
from vljepa_ros.recordings.json_lines import json_lines
from vljepa_ros.recordings.video import VideoSource
from vljepa_ros.tabletop import language, store

from .retrieval import ranks

WITHIN = 1.0  # s from the beginning of what was waited for
CAMERA = "camera"


@dataclass(frozen=True)
class Watched:
    """A stream as a watch sees it: stamps `[S]` in s, embeddings `[S, E]`.

    `events`: `start` and `end` in s and the canonical `text` of what truly happens.
    """

    stamps: np.ndarray
    embeddings: np.ndarray
    events: Sequence[dict[str, Any]]


def judge_agents(model: Runtime, video: Path) -> dict[str, Any]:
    """Questions, recall and watches on a video with its truth (.json) and questions (.jsonl)."""
    events = json.loads(video.with_suffix(".json").read_text())["events"]
    asked = [json.loads(row) for _, row in json_lines(video.with_suffix(".jsonl"))]
    perceiver = Perceiver(model, [CAMERA], Settings())
    moments: list[Moment] = []
    recorder = Recorder("", moments.append, lambda *_: None)
    steps, right = [], list[bool]()
    for step in offline.run(VideoSource(str(video)), perceiver):
        steps.append(step)
        _record(recorder, step)
        while len(right) < len(asked) and asked[len(right)]["at"] <= offline.seconds(step.stamp_ns):
            right.append(_answered(model, perceiver, asked[len(right)]))
    recorder.flush()
    watched = Watched(
        np.array([offline.seconds(step.stamp_ns) for step in steps]),
        np.stack([step.embedding for step in steps]), events,
    )  # fmt: skip
    return {
        "ask": _by_type(asked[: len(right)], right),
        "recall": recall(model, moments, events),
        "watch": watch(model, [watched], model.bundle.thresholds.watch),
    }


def recall(
    model: Runtime, moments: Sequence[Moment], events: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """How early the right moment is found for the description of each event.

    A moment is right if the middle of an event of that description lies in it. What happens is
    seen `store.NAMED_AFTER` later than it does.
    """
    texts = list(dict.fromkeys(event["text"] for event in events))
    scores = model.embed_text(texts) @ np.stack([m.embedding for m in moments]).T
    starts = np.array([offline.seconds(m.start_ns) for m in moments])
    right = np.zeros(scores.shape, bool)
    for event in events:
        middle = (event["start"] + event["end"]) / 2 + store.NAMED_AFTER
        place = np.searchsorted(starts, middle, side="right") - 1
        if place >= 0:
            right[texts.index(event["text"]), place] = True
    found = np.where(right.any(1), ranks(scores, right), np.inf)
    return {
        "descriptions": len(texts), "moments": len(moments),
        "first": round(float((found <= 1).mean()), 3),
        "first_three": round(float((found <= 3).mean()), 3),
    }  # fmt: skip


def watch(model: Runtime, streams: Sequence[Watched], threshold: float) -> dict[str, Any]:
    """Of every possible event, as a condition: whether it fires when it holds, and only then.

    `fired_in_time`: the share of all events whose condition fires within a second of their
    beginning; `fired_never`: of the conditions that never hold in a stream, the share that fires.
    """
    texts = list(language.canonical())
    written = model.embed_text(texts).T
    in_time, wrong = list[bool](), list[bool]()
    for stream in streams:
        above = stream.embeddings @ written >= threshold  # [S, conditions]
        holds = {event["text"] for event in stream.events}
        fired = above.any(0)
        wrong += [bool(fired[i]) for i, text in enumerate(texts) if text not in holds]
        for event in stream.events:
            near = (stream.stamps >= event["start"]) & (stream.stamps <= event["start"] + WITHIN)
            if near.any():
                in_time.append(bool(above[near, texts.index(event["text"])].any()))
    return {
        "threshold": round(float(threshold), 3), "events": len(in_time),
        "fired_in_time": round(float(np.mean(in_time)), 3),
        "conditions_that_never_hold": len(wrong),
        "fired_never": round(float(np.mean(wrong)), 3),
    }  # fmt: skip


def _answered(model: Runtime, perceiver: Perceiver, asked: dict[str, Any]) -> bool:
    """Whether the nearest candidate is the true answer, as the service `ask` chooses it."""
    seen = perceiver.seen(CAMERA)
    assert seen is not None  # a step was taken
    embedding = model.predict([seen.tokens], [asked["question"]])[0, 0]
    chosen = int(np.argmax(model.embed_text(asked["candidates"]) @ embedding))
    return bool(asked["candidates"][chosen] == asked["answer"])


def _by_type(asked: Sequence[dict[str, Any]], right: Sequence[bool]) -> dict[str, Any]:
    kinds = list(dict.fromkeys(one["type"] for one in asked))
    by_type = {
        kind: round(float(np.mean([r for r, a in zip(right, asked) if a["type"] == kind])), 3)
        for kind in kinds
    }
    return {"questions": len(right), "right": round(float(np.mean(right)), 3), **by_type}


def _record(recorder: Recorder, step: Step) -> None:
    if step.change is not None:
        change = step.change
        recorder.change(
            step.camera, step.query, change.segment_id, change.segment_start_ns,
            change.previous_segment_id, change.previous_segment_start_ns,
        )  # fmt: skip
    recorder.step(step.camera, step.query, step.stamp_ns, step.segment_id, step.embedding)
