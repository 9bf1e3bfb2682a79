"""What a bundle can do, measured on episodes and streams that training never saw.

Invariant: everything is measured through the bundle as the robot runs it (ONNX graphs, window,
gate, detector, decoder), never through the torch model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vljepa_ros.perception import offline
from vljepa_ros.perception.perceiver import Change, Perceiver, Step
from vljepa_ros.perception.settings import Settings
from vljepa_ros.perception.video import VideoSource
from vljepa_ros.runtime.model import VLJepa
from vljepa_ros.training.clips import EPISODE_RATE, STRIDE
from vljepa_ros.training.tabletop import language, store
from vljepa_ros.training.tabletop.episode import Episode
from vljepa_ros.training.tabletop.truth import Event
from vljepa_ros.training.tabletop.vocabulary import KINDS

Name = tuple[str | None, str | None, str | None]  # kind, colour, shape
UNIFORM_RATE = 1.0  # decodes per second that selective decoding is compared with


def embed_episode(
    model: VLJepa, episode: Episode, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The clips of one episode whose newest frames are `rows` `[S]`.

    Returns embeddings of the default query `[S, E]` and visual tokens `[S, N, C]`.
    """
    back = STRIDE * np.arange(model.bundle.clip.frames)[::-1]
    tokens = []
    for some in np.array_split(rows, max(1, len(rows) // 16)):
        clips = [np.stack([episode.frame(int(i)) for i in row - back]) for row in some]
        tokens.append(model.encode(np.stack(clips)))
    visual = np.concatenate(tokens)
    return model.predict(visual, [model.bundle.query.default])[:, 0], visual


def stream_rows(model: VLJepa, episode: Episode) -> np.ndarray:
    """The newest frames of the clips that a stream at the bundle's rate would show."""
    return np.arange((model.bundle.clip.frames - 1) * STRIDE, len(episode), STRIDE)


def middles(model: VLJepa, episode: Episode) -> tuple[list[Event], np.ndarray]:
    """The events of an episode that fill a clip, and for each the newest frame of its middle."""
    first = (model.bundle.clip.frames - 1) * STRIDE
    events, rows = [], []
    for event in episode.events:
        row = round(((event.start + event.end) / 2 + store.NAMED_AFTER) * EPISODE_RATE)
        if first <= row < len(episode):
            events.append(event)
            rows.append(row)
    return events, np.array(rows, int)


@dataclass
class Naming:
    """How often the nearest of all canonical sentences was right, per kind of event."""

    right_kind: dict[str, list[bool]] = field(default_factory=lambda: {k: [] for k in KINDS})
    right_object: list[bool] = field(default_factory=list)
    right_both: list[bool] = field(default_factory=list)
    answers: dict[str, list[bool]] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        kinds = {k: round(float(np.mean(v)), 3) for k, v in self.right_kind.items() if v}
        return {
            "clips": sum(map(len, self.right_kind.values())),
            "event_kind_balanced": round(float(np.mean(list(kinds.values()))), 3),
            "event_kind": kinds,
            "object": round(float(np.mean(self.right_object)), 3),
            "event_and_object": round(float(np.mean(self.right_both)), 3),
            "vqa": {k: round(float(np.mean(v)), 3) for k, v in sorted(self.answers.items())},
        }


def name_clips(model: VLJepa, episodes: Sequence[Path], seed: int = 0) -> dict[str, Any]:
    """Name the event of clips by the nearest canonical sentence, and answer closed questions.

    The clips are the middles of all events of the episodes. Chance for a kind is 1/13, for an
    object 1/48.
    """
    rng = np.random.default_rng(seed)
    named = language.canonical()
    texts, names = list(named), list(named.values())
    written = model.embed_text(texts)
    result = Naming()
    for path in episodes:
        episode = store.load_episode(path)
        events, rows = middles(model, episode)
        embeddings, visual = embed_episode(model, episode, rows)
        for at, event in enumerate(events):
            kind, colour, shape = names[int(np.argmax(written @ embeddings[at]))]
            result.right_kind[event.kind].append(kind == event.kind)
            same = True
            if event.object is not None:
                same = (colour, shape) == episode.object_names[event.object]
                result.right_object.append(same)
            result.right_both.append(kind == event.kind and same)
            _ask(model, episode, rows[at], visual[at], rng, result.answers)
    return result.summary()


def _ask(
    model: VLJepa, episode: Episode, row: int, tokens: np.ndarray, rng: np.random.Generator,
    results: dict[str, list[bool]],
) -> None:  # fmt: skip
    t = float(episode.stamps[row])
    asked = language.questions(store.moment(episode, t), store.current_event(episode, t), rng)
    closed = [q for q in asked if q[2] in language.ANSWERS]
    query, answer, kind = closed[int(rng.integers(len(closed)))]
    options = list(language.ANSWERS[kind])
    embedding = model.predict(tokens[None], [query])[0, 0]
    chosen = options[int(np.argmax(model.embed_text(options) @ embedding))]
    results.setdefault(kind, []).append(chosen == answer)


@dataclass(frozen=True)
class Spoken:
    """One sentence of the decoder and whether the ground truth holds what it names.

    `at` and `start` in seconds of the stream: when the change was detected, and where the segment
    begins. `kind_right`: the event's kind holds; `right`: its object too.
    """

    at: float
    start: float
    text: str
    truth: str
    score: float
    kind_right: bool
    right: bool


def judge(
    text: str, start: float, at: float, events: Sequence[dict[str, Any]]
) -> tuple[str, bool, bool]:
    """What truly happens at `at` s, and whether `text` names it by kind, and by kind and object.

    A sentence is about the segment that opens, as far as it is known: what holds at any time from
    the segment's `start` to the detection at `at` counts.
    """
    kind, colour, shape = language.name_event(text)
    holding = [e for e in events if e["start"] <= at and start < e["end"]]
    same = [e for e in holding if e["kind"] == kind]
    whole = [
        e for e in same
        if e["object"] is None or (e["object"]["colour"], e["object"]["shape"]) == (colour, shape)
    ]  # fmt: skip
    return holding[-1]["text"] if holding else "", bool(same), bool(whole)


def speak(
    model: VLJepa, video: Path, settings: Settings
) -> tuple[list[Step], list[tuple[Step, str]]]:
    """Run a video as the node would: all steps, and the steps that changed with what was said."""
    perceiver = Perceiver(model, ["camera"], settings)
    steps, said = [], []
    for step in offline.run(VideoSource(str(video)), perceiver):
        steps.append(step)
        if step.change is not None:
            said.append((step, model.decode(step.change.embedding)))
    return steps, said


def judge_stream(model: VLJepa, video: Path, truth: Path, settings: Settings) -> dict[str, Any]:
    """The shipped stream: what was said, whether it was true, and how much was saved."""
    known = json.loads(truth.read_text())
    steps, said = speak(model, video, settings)
    start = offline.SECOND_NS
    spoken = []
    for step, text in said:
        at = (step.stamp_ns - start) / 1e9
        change: Change = step.change  # type: ignore[assignment]
        opened = (change.segment_start_ns - start) / 1e9
        told, kind_right, right = judge(text, opened, at, known["events"])
        spoken.append(Spoken(at, opened, text, told, change.score, kind_right, right))
    uniform = known["seconds"] * UNIFORM_RATE
    return {
        "decodes": len(spoken),
        "uniform_decodes": uniform,
        "decode_fraction": round(len(spoken) / uniform, 3),
        "kind_right": round(float(np.mean([s.kind_right for s in spoken])), 3),
        "right": round(float(np.mean([s.right for s in spoken])), 3),
        "encodes_skipped": round(float(np.mean([s.reused for s in steps])), 3),
        "spoken": [vars(s) for s in spoken],
    }
