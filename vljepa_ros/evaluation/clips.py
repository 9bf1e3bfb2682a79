"""The clips that a bundle is judged on, each seen once.

Invariant: the clips of an episode are the middles of all its events that fill a clip, whatever the
bundle makes of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vljepa_ros.inference.preprocess import prepare
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.tabletop import language, store
from vljepa_ros.tabletop.episode import FRAME_RATE, Episode, Event
from vljepa_ros.tabletop.store import STRIDE
from vljepa_ros.tabletop.vocabulary import held_out

Name = tuple[str | None, str | None, str | None]  # kind, colour, shape
BATCH = 16  # clips per run of the X-encoder


@dataclass(frozen=True)
class Asked:
    """A closed question of a clip with its true answer, and the answer's embedding `[E]`."""

    type: str
    query: str
    answer: str
    embedding: np.ndarray


@dataclass(frozen=True)
class SeenClip:
    """One clip: its episode's number, what truly happens, and what the bundle makes of it.

    `embedding` `[E]` answers the default query; `picture` uint8 `[T, P, P, 3]` is a thumbnail.
    """

    episode: int
    name: Name
    embedding: np.ndarray
    asked: tuple[Asked, ...]
    picture: np.ndarray

    @property
    def caption(self) -> str:
        """The canonical sentence."""
        return wordings(self.name)[0]

    @property
    def is_held_out(self) -> bool:
        """Whether training never saw this kind of event with this object."""
        kind, colour, shape = self.name
        return colour is not None and held_out(colour, str(shape), str(kind))


def name_of(event: Event, objects: Sequence[tuple[str, str]]) -> Name:
    """The kind, colour and shape of an event; `objects` are those that it indexes."""
    colour, shape = (None, None) if event.object is None else objects[event.object]
    return event.kind, colour, shape


def wordings(name: Name) -> list[str]:
    """Every training wording of an event, the canonical one first."""
    kind, colour, shape = name
    phrase = "" if colour is None else language.object_phrase((colour, str(shape)))
    return [form.format(object=phrase) for form in language.TEMPLATES[str(kind)]]


def window(episode: Episode, row: int, frames: int, size: int) -> np.ndarray:
    """The clip whose newest frame is number `row`, uint8 `[T, size, size, 3]`."""
    chosen = row - STRIDE * np.arange(frames)[::-1]
    return np.stack([prepare(episode.frame(int(i)), size) for i in chosen])


def encode(model: Runtime, episode: Episode, rows: np.ndarray) -> np.ndarray:
    """Visual tokens `[S, N, C]` of the clips of an episode whose newest frames are `rows` `[S]`."""
    spec = model.bundle.clip
    return np.concatenate([
        model.encode(np.stack([window(episode, r, spec.frames, spec.image_size) for r in some]))
        for some in np.array_split(rows, max(1, -(-len(rows) // BATCH)))
    ])  # fmt: skip


def middles(frames: int, episode: Episode) -> tuple[list[Event], np.ndarray]:
    """The events of an episode that fill a clip of `frames`, and the newest frame of each middle.

    What happens is named 0.25 s after the event's middle, when it can be seen.
    """
    first = (frames - 1) * STRIDE
    events, rows = [], []
    for event in episode.events:
        row = round(((event.start + event.end) / 2 + store.NAMED_AFTER) * FRAME_RATE)
        if first <= row < len(episode):
            events.append(event)
            rows.append(row)
    return events, np.array(rows, int)


def closed_questions(episode: Episode, row: int, rng: np.random.Generator) -> list[tuple[str, ...]]:
    """(query, answer, type) of all closed questions about the clip whose newest frame is `row`."""
    t = float(episode.stamps[row])
    asked = language.questions(store.situation(episode, t), store.current_event(episode, t), rng)
    return [question for question in asked if question[2] in language.ANSWERS]


def see(model: Runtime, paths: Sequence[Path], seed: int = 0) -> list[SeenClip]:
    """Every clip of the episodes, encoded once and asked everything in one run of the predictor.

    Every second clip is asked closed questions.
    """
    clips: list[SeenClip] = []
    spec = model.bundle.clip
    for number, path in enumerate(paths):
        episode = store.load_episode(path)
        rng = np.random.default_rng([seed, number])
        events, rows = middles(spec.frames, episode)
        if not events:
            continue
        visual = encode(model, episode, rows)
        for event, row, tokens in zip(events, rows, visual, strict=True):
            asked = closed_questions(episode, int(row), rng) if len(clips) % 2 == 0 else []
            queries = [model.bundle.default_query, *(question[0] for question in asked)]
            answered = model.predict(tokens[None], queries)[0]
            clips.append(SeenClip(
                episode=number,
                name=name_of(event, episode.object_names),
                embedding=answered[0],
                asked=tuple(
                    Asked(kind, query, answer, embedding)
                    for (query, answer, kind), embedding in zip(asked, answered[1:], strict=True)
                ),
                picture=window(episode, int(row), spec.frames, THUMBNAIL),
            ))  # fmt: skip
    return clips


THUMBNAIL = 8  # pixels; all that the baseline sees
