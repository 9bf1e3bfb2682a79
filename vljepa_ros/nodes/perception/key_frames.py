"""The pictures that a change carries.

Invariant: none is kept where none is asked for, and none is made a JPEG but for a change.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header

from vljepa_ros.perception.perceiver import Change, Step
from vljepa_ros.perception.thumbnails import thumbnail
from vljepa_ros.ros.messages import jpeg_message, to_time

LONGEST = 512  # pixels


class KeyFrames:
    """The newest `count` pictures of each camera, one a step; the worker's, but for `count`."""

    def __init__(self) -> None:
        self.count = 0
        self._kept: dict[str, deque[tuple[int, Any]]] = {}  # stamp, RGB uint8 [H, W, 3]

    def keep(self, steps: Sequence[Step], pictures: Mapping[str, Any]) -> None:
        """Take the pictures, by camera, that a batch of steps comes from."""
        count = self.count
        if count == 0:
            self._kept.clear()
            return
        for name, step in {step.camera: step for step in steps}.items():
            kept = self._kept.setdefault(name, deque())
            if kept and kept[-1][0] > step.stamp_ns:  # the stream began anew
                kept.clear()
            kept.append((step.stamp_ns, pictures[name]))
            while len(kept) > count:
                kept.popleft()

    def of(self, step: Step, change: Change) -> list[CompressedImage]:
        """The pictures of the segment that a step opened, oldest first; the last is the step's."""
        return [
            jpeg_message(
                thumbnail(picture, LONGEST),
                Header(stamp=to_time(stamp_ns), frame_id=step.frame_id),
            )
            for stamp_ns, picture in self._kept.get(step.camera, ())
            if stamp_ns > change.segment_start_ns or stamp_ns == step.stamp_ns
        ]
