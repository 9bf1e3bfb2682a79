"""Episodes on disk: one `<root>/<split>/<seed:08d>.npz` each, written whole or not at all.

Fields (F frames, O objects, E events): `jpeg` uint8 (the frames one after the other) with `offsets`
int64 [F+1]; `stamps` float64 [F] s; `objects` int16 [O, 2] (shape, colour); `object_uv` float32
[F, O, 2] (square image, 0..1, x right, y down); `object_visible` bool [F, O]; `object_motion`
float32 [F, O, 2] image widths per second; `object_state` uint8 [F, O] flags (held, moving, upright,
on table, fallen); `gripper_uv`, `gripper_motion` float32 [F, 2]; `gripper_visible` bool [F];
`gripper_closed` float32 [F] 0..1; `hand_visible` bool [F]; `hand_uv` float32 [F, 2]; `event_kind`
int16 [E], `event_object` int16 [E] (-1: none), `event_span` float32 [E, 2] s; `meta` a JSON string.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from vljepa_ros.errors import VLJepaError

from .episode import DATA_VERSION, Episode, Event
from .language import Situation
from .vocabulary import held_out

STRIDE = 2  # frames of an episode from one of a clip to the next: 4 Hz


def default_root() -> Path:
    """Where the data is kept: outside the repository, one folder per data version."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return cache / "vljepa_ros" / f"tabletop-{DATA_VERSION}"


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to that becomes `path` at the end: the file is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{os.getpid()}.{path.name}")
    yield part
    part.rename(path)


def save_episode(path: Path, episode: Episode) -> None:
    """Writes an episode whole or not at all."""
    fields = {"meta": np.array(json.dumps(episode.meta)), **episode.arrays}
    with whole(path) as part, part.open("wb") as file:
        np.savez(file, **fields)  # type: ignore[arg-type]


def load_episode(path: Path) -> Episode:
    """Reads an episode; frames stay encoded until they are asked for."""
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    return Episode(arrays, json.loads(str(arrays.pop("meta"))))


def episode_paths(root: Path, split: str) -> list[Path]:
    """The episodes of a split that are there, by seed."""
    return sorted((root / split).glob("[0-9]*.npz"))


def needed(root: Path, split: str) -> list[Path]:
    """The episodes of a split; VLJepaError where there are none."""
    found = episode_paths(root, split)
    if not found:
        raise VLJepaError(
            f"There are no episodes of the split '{split}' in {root}: "
            f"run `vljepa data --split {split}` first."
        )
    return found


NAMED_AFTER = 0.25  # s; a change is named only once it can be seen


def current_event(episode: Episode, t: float) -> Event:
    """The event that a clip whose newest frame is at `t` seconds shows."""
    return episode.event_at(t - NAMED_AFTER)


def situation(episode: Episode, t: float) -> Situation:
    """What is true in the frame at or before `t` seconds."""
    frame = max(0, int(np.searchsorted(episode.arrays["stamps"], t, side="right")) - 1)
    falls = (
        event for event in episode.events if event.kind == "fall_off" and event.object is not None
    )
    return Situation(
        objects=episode.object_names,
        uv=episode.arrays["object_uv"][frame],
        visible=episode.arrays["object_visible"][frame],
        state=episode.arrays["object_state"][frame],
        falls_soon=frozenset(event.object for event in falls if t < event.start < t + 2.0),  # type: ignore[misc]
    )


def trainable(episode: Episode, start: float, end: float) -> bool:
    """Whether `start` to `end` (s) is free of combinations kept for the composition test."""
    return not any(
        held_out(*episode.object_names[event.object], event.kind)
        for event in episode.events
        if event.object is not None and event.start < end and event.end > start
    )
