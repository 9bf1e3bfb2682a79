"""A long stream as a video file, with its truth and what can be asked of it beside it.

The stream of a seed is one of the `stream` split: many kinds of events at Poisson times between
long quiet stretches, rendered at 640 x 480 with shadows and smooth edges.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import cv2

from .choices import choices
from .language import describe
from .sim.camera import Camera
from .sim.episode import (
    DATA_VERSION,
    LOOK_AHEAD,
    Episode,
    begin,
    controller,
    episode_events,
    truth_arrays,
)
from .sim.truth import Event
from .sim.world import TICK, World

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
    return episode_events(_run(seed, seconds), round(seconds / TICK))


def stream_questions(seed: int, seconds: float) -> list[dict[str, Any]]:
    """What can be asked of a stream (see `choices`), without drawing it."""
    return _questions(_run(seed, seconds), seed, seconds)


def _run(seed: int, seconds: float) -> World:
    world = begin(seed)
    motion = controller(world, seed, seconds, calm=True)
    for _ in range(round(seconds / TICK) + LOOK_AHEAD):
        next(motion)
        world.tick()
    return world


def _questions(world: World, seed: int, seconds: float) -> list[dict[str, Any]]:
    return choices(Episode(truth_arrays(world, round(seconds / TICK)), {"seed": seed}))


def render_stream(seed: int, seconds: float, out_video: Path, out_truth: Path) -> None:
    """Writes the stream of a seed as an mp4, its truth as JSON, and questions beside the truth.

    The questions are a file of the same name that ends in .jsonl, one a line. Each file is written
    whole or not at all. Raises OSError when OpenCV cannot write the video.
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
    asked = [json.dumps(question) + "\n" for question in _questions(world, seed, seconds)]
    _write(out_truth.with_suffix(".jsonl"), "".join(asked))
    _write(out_truth, json.dumps(_truth(world, seed, seconds, out_video.name), indent=1) + "\n")
    part_video.rename(out_video)


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".{os.getpid()}.{path.name}")
    part.write_text(text)
    part.rename(path)
