"""What an episode of the simulated table is, wherever it comes from.

Invariant: nothing here simulates: episodes are read, and trained and judged on, without MuJoCo.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np

from .vocabulary import COLOURS, KINDS, SHAPES

DATA_VERSION = 2
IMAGE_SIZE = 128
FRAME_RATE = 8  # Hz
SECONDS = 30.0
SPLITS = {
    "train": 0,
    "test": 10_000_000,
    "stills": 5_000_000,  # of two frames: many scenes for the image stage, cheaply
    "composition": 20_000_000,
    "stream": 30_000_000,
}  # first seeds
CELLS = 16  # a side: the grid in which an episode says what can be seen where
GRIPPER, HAND = 254, 255  # labels of cells; object i has i + 1


@dataclass(frozen=True)
class Event:
    """One thing that happens from `start` to `end` (s); `object` is an index or None."""

    kind: str
    object: int | None
    start: float
    end: float


@dataclass
class Episode:
    """An episode with jpeg frames that are decoded when asked for.

    `arrays` holds the fields of the file format (see `store.py`); F frames, O objects, E events.
    """

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]

    def __getattr__(self, name: str) -> np.ndarray:
        try:
            return self.__dict__["arrays"][name]
        except KeyError:
            raise AttributeError(f"an episode has no field {name!r}") from None

    def __len__(self) -> int:
        return len(self.arrays["stamps"])

    def frame(self, index: int) -> np.ndarray:
        """RGB uint8 [128, 128, 3]."""
        start, end = self.arrays["offsets"][index : index + 2]
        image = cv2.imdecode(self.arrays["jpeg"][start:end], cv2.IMREAD_COLOR)
        if image is None:
            raise ValueError(f"frame {index} of episode {self.meta['seed']} is not a jpeg image")
        return np.ascontiguousarray(image[..., ::-1])

    @cached_property
    def object_names(self) -> list[tuple[str, str]]:
        """(colour, shape) of every object."""
        return [(COLOURS[colour], SHAPES[shape]) for shape, colour in self.arrays["objects"]]

    @cached_property
    def events(self) -> list[Event]:
        kinds, items, spans = (self.arrays[f"event_{name}"] for name in ("kind", "object", "span"))
        return [
            Event(KINDS[kind], int(item) if item >= 0 else None, float(start), float(end))
            for kind, item, (start, end) in zip(kinds, items, spans)
        ]

    def event_at(self, t: float) -> Event:
        """The current event at `t` seconds; outside the episode, the nearest one."""
        index = int(np.searchsorted(self.arrays["event_span"][:, 0], t, side="right")) - 1
        return self.events[max(0, index)]
