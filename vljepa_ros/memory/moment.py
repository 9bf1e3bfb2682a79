"""A moment: one closed segment of what a camera saw, as it is remembered.

Invariant: the identity of a moment follows from robot, camera, standing query and start alone, and
the episode where there is one, so the same recording indexed twice, or by two programs, gives the
same moments.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

import numpy as np

from vljepa_ros.stamps import SECOND_NS

NAMESPACE = uuid.UUID("6f2c1c62-5d0e-5c39-9c83-8e2f1f0a7b54")


@dataclass(frozen=True)
class Pose:
    """Where the robot was: metres and a unit quaternion (x, y, z, w) in `frame`."""

    frame: str
    position: tuple[float, float, float]
    orientation: tuple[float, float, float, float]
    stamp_ns: int


@dataclass(frozen=True, eq=False)
class Moment:
    """A segment with one meaning, from its first to its last step.

    `embedding`: float32 `[E]`, unit length, the mean of the segment's steps. `start_ns`, `end_ns`:
    stamps of the images at its first and last step. `text`, `confidence`: what was said about it
    and the cosine that the decoder gave it; empty where nothing was said. `thumbnail`: a JPEG, or
    empty. `pinned`: never pruned. `familiarity`: the mean of its steps, 0..1; -1: not known.
    `episode`: its number in a data set, in which `start_ns` and `end_ns` are then positions; -1:
    of none. `task`: what was to be done in it; empty where nobody said. `video_start_ns`: the stamp
    at which its video begins, 0 where nobody said when that was; -1: of none.
    """

    robot: str
    camera: str
    query: str
    segment_id: int
    start_ns: int
    end_ns: int
    embedding: np.ndarray
    text: str = ""
    confidence: float = 0.0
    thumbnail: bytes = b""
    pose: Pose | None = None
    pinned: bool = False
    familiarity: float = -1.0
    episode: int = -1
    task: str = ""
    video_start_ns: int = -1

    @property
    def position(self) -> float | None:
        """Seconds from the beginning of its video or episode; None where it is of none."""
        begin_ns = 0 if self.episode >= 0 else self.video_start_ns
        return (self.start_ns - begin_ns) / SECOND_NS if begin_ns >= 0 else None

    @property
    def id(self) -> str:
        """A UUID that is the same for the same robot, camera, query, start and episode."""
        parts = [self.robot, self.camera, self.query, str(self.start_ns)]
        if self.episode >= 0:
            parts.append(str(self.episode))
        return str(uuid.uuid5(NAMESPACE, "\0".join(parts)))
