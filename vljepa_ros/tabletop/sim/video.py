"""A long stream as a video file, with its truth and what can be asked of it beside it.

The stream of a seed is one of the `stream` split: many kinds of events at Poisson times between
long quiet stretches, rendered at 640 x 480 with shadows and smooth edges.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2

from vljepa_ros.errors import VLJepaError

from ..choices import choices
from ..episode import DATA_VERSION, SPLITS, Episode, Event
from ..language import describe
from ..store import whole
from .camera import Camera
from .episode import begin, episode_events, play, truth_arrays
from .world import TICK, World

WIDTH, HEIGHT, FPS = 640, 480, 20
SHIPPED = SPLITS["stream"] + 636  # the seed of the shipped video
SHIPPED_SECONDS = 90.0
_TICKS_PER_FRAME = round(1 / (FPS * TICK))


def truth(world: World, seed: int, seconds: float, video: str) -> dict[str, Any]:
    """What is true of the stream that was played in `world`, as it stands beside its video."""
    names = [(item.colour, item.shape) for item in world.spec.objects]

    def entry(event: Event) -> dict[str, Any]:
        subject = None
        if event.object is not None:
            colour, shape = names[event.object]
            subject = {"colour": colour, "shape": shape}
        return {
            "kind": event.kind,
            "object": subject,
            "start": round(event.start, 3),
            "end": round(event.end, 3),
            "text": describe(event, names),
        }

    return {
        "video": video,
        "fps": FPS,
        "seconds": seconds,
        "seed": seed,
        "data_version": DATA_VERSION,
        "objects": [{"colour": colour, "shape": shape} for colour, shape in names],
        "events": [entry(event) for event in episode_events(world, round(seconds / TICK))],
    }


def questions(world: World, seed: int, seconds: float) -> list[dict[str, Any]]:
    """What can be asked of the stream that was played in `world` (see `choices`)."""
    return choices(Episode(truth_arrays(world, round(seconds / TICK)), {"seed": seed}))


def render(seed: int, seconds: float, out: Path) -> None:
    """Writes the stream of a seed as an mp4, with truth (.json) and questions (.jsonl) beside it.

    Each file is written whole or not at all. Raises VLJepaError when OpenCV cannot write the video.
    """
    world = begin(seed, (WIDTH, HEIGHT), fine=True)
    with whole(out) as part:
        writer = cv2.VideoWriter(str(part), cv2.VideoWriter.fourcc(*"mp4v"), FPS, (WIDTH, HEIGHT))
        if not writer.isOpened():
            raise VLJepaError(f"OpenCV cannot write {part}: check the folder and its ffmpeg.")
        with Camera(world, WIDTH, HEIGHT, shadows=True) as camera:
            for _ in play(world, seed, seconds, True, _TICKS_PER_FRAME):
                writer.write(cv2.cvtColor(camera.picture(), cv2.COLOR_RGB2BGR))
        writer.release()
        asked = [json.dumps(question) + "\n" for question in questions(world, seed, seconds)]
        told = json.dumps(truth(world, seed, seconds, out.name), indent=1) + "\n"
        for suffix, text in ((".jsonl", "".join(asked)), (".json", told)):
            with whole(out.with_suffix(suffix)) as beside:
                beside.write_text(text)
