"""A long stream as a video file with its truth beside it.

The stream of a seed is one of the `stream` split: many kinds of events at Poisson times between
long quiet stretches, rendered at 640 x 480 with shadows and smooth edges.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import cv2

from .camera import Camera
from .episode import DATA_VERSION, LOOK_AHEAD, begin, controller, episode_events
from .language import describe
from .truth import Event
from .world import TICK, World

WIDTH, HEIGHT, FPS = 640, 480, 20
_TICKS_PER_FRAME = round(1 / (FPS * TICK))


def _truth(world: World, seed: int, seconds: float, video: str) -> dict[str, Any]:
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


def stream_events(seed: int, seconds: float) -> list[Event]:
    """The events of a stream, without drawing it."""
    world = begin(seed)
    motion = controller(world, seed, seconds, calm=True)
    for _ in range(round(seconds / TICK) + LOOK_AHEAD):
        next(motion)
        world.tick()
    return episode_events(world, round(seconds / TICK))


def render_stream(seed: int, seconds: float, out_video: Path, out_truth: Path) -> None:
    """Writes the stream of a seed as an mp4 and its truth as JSON, each complete or not at all.

    Raises OSError when OpenCV cannot write the video.
    """
    world = begin(seed, (WIDTH, HEIGHT), fine=True)
    motion = controller(world, seed, seconds, calm=True)
    part_video = out_video.with_name(f".{os.getpid()}.{out_video.name}")
    writer = cv2.VideoWriter(str(part_video), cv2.VideoWriter.fourcc(*"mp4v"), FPS, (WIDTH, HEIGHT))
    if not writer.isOpened():
        raise OSError(
            f"OpenCV cannot write {part_video}; check the folder and that OpenCV has ffmpeg"
        )
    ticks = round(seconds / TICK)
    with Camera(world, WIDTH, HEIGHT, shadows=True) as camera:
        for tick in range(ticks + LOOK_AHEAD):
            next(motion)
            world.tick()
            if tick % _TICKS_PER_FRAME == 0 and tick < ticks:
                writer.write(cv2.cvtColor(camera.picture(), cv2.COLOR_RGB2BGR))
    writer.release()
    part_truth = out_truth.with_name(f".{os.getpid()}.{out_truth.name}")
    part_truth.write_text(json.dumps(_truth(world, seed, seconds, out_video.name), indent=1) + "\n")
    part_video.rename(out_video)
    part_truth.rename(out_truth)
