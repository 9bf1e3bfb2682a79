"""The semantic stream of a video without ROS: the same steps as live.

Invariant: frame by frame, it makes the same calls as the perception node, with stamps
`start_ns + offset`; the camera node stamps frames in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator

from .perceiver import Perceiver, Step
from .video import VideoSource

SECOND_NS = 1_000_000_000


def run(
    source: VideoSource,
    perceiver: Perceiver,
    camera: str | None = None,
    start_ns: int = SECOND_NS,
    frame_id: str = "",
) -> Iterator[Step]:
    """The steps of every frame of `source`, as `camera` (by default the perceiver's first).

    `start_ns`: the stamp of the first frame, above 0. At whole rates in Hz any whole second
    selects the same frames. Nothing is dropped, however slow the machine.
    """
    camera = camera or perceiver.cameras[0]
    for offset_ns, image in source.frames():
        stamp_ns = start_ns + offset_ns
        if perceiver.due(camera, stamp_ns).due and perceiver.take(
            camera, stamp_ns, frame_id, image
        ):
            yield from perceiver.step([camera])
