"""One simulated episode: frames at 8 Hz, what is true in each of them, and its events.

An episode is a function of its seed (and `DATA_VERSION`): the same seed gives the same bytes on the
same machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from ..episode import DATA_VERSION, FRAME_RATE, IMAGE_SIZE, SECONDS, SPLITS, Episode, Event
from ..vocabulary import COLOURS, KINDS, ON_TABLE, SHAPES
from . import plan, skills
from .camera import Camera, project, shrink
from .occlusion import HIDDEN, covered
from .scene import sample_scene
from .truth import InView, events, facts
from .world import TICK, World

TICKS_PER_FRAME = round(1 / (FRAME_RATE * TICK))
LOOK_AHEAD = round(2.0 / TICK)  # ticks past the last frame: where a motion leads tells what it is
MEAN_GAP = 3.6  # s, between the skills of a stream


@dataclass(frozen=True)
class Look:
    """How the frames of an episode are drawn."""

    shadows: bool
    noise: float  # standard deviation in grey levels


def _inside(uv: np.ndarray, margin: float = 0.0) -> np.ndarray:
    return np.all((uv > -margin) & (uv < 1 + margin), axis=-1)


def begin(
    seed: int, size: tuple[int, int] = (2 * IMAGE_SIZE, 2 * IMAGE_SIZE), fine: bool = False
) -> World:
    """The world of a seed before its first tick, gripper parked and objects at rest.

    `size` (width, height) and `fine` (smooth edges) are for the renderer and change no physics.
    """
    rng = np.random.default_rng(seed)
    shares = [0, 0, 0.4, 0.6] if seed >= SPLITS["stream"] else [0.3, 0.25, 0.25, 0.2]
    count = int(rng.choice([1, 2, 3, 4], p=shares))
    composition = SPLITS["composition"] <= seed < SPLITS["stream"]
    world = World(sample_scene(rng, count, composition), rng, size, fine)
    world.place_gripper(skills.parking_place(world, at_edge=False))
    world.settle(0.5)
    return world


def play(world: World, seed: int, seconds: float, calm: bool, every: int) -> Iterator[None]:
    """Runs the episode of a seed in its world, and a little on; yields every `every` ticks of it.

    What the gripper and the hand do is drawn from the world's own generator.
    """
    if seed >= SPLITS["stream"]:
        motion = plan.poisson(world, seconds, MEAN_GAP)
    else:
        rhythm = plan.CALM if calm else plan.BUSY
        motion = plan.mixed(world, seconds, rhythm, seed >= SPLITS["composition"])
    ticks = round(seconds / TICK)
    for tick in range(ticks + LOOK_AHEAD):
        next(motion)
        world.tick()
        if tick % every == 0 and tick < ticks:
            yield


def _capture(camera: Camera, look: Look, rng: np.random.Generator) -> np.ndarray:
    image = shrink(camera.picture(), IMAGE_SIZE)
    if look.noise:
        image = np.clip(image + rng.normal(0, look.noise, image.shape), 0, 255).astype(np.uint8)
    return image


def simulate(seed: int, seconds: float = SECONDS) -> Episode:
    """Runs the episode of a seed: `seconds * 8` frames of 128 x 128."""
    style = np.random.default_rng([seed, 1])
    calm = bool(style.random() < 0.35)
    look = Look(
        bool(style.random() < 0.3),
        float(style.choice([0.0, style.uniform(0.5, 2.0)], p=[0.6, 0.4])),
    )
    world = begin(seed)
    jpegs: list[np.ndarray] = []
    cells: list[np.ndarray] = []
    with Camera(world, 2 * IMAGE_SIZE, 2 * IMAGE_SIZE, look.shadows) as camera:
        for _ in play(world, seed, seconds, calm, TICKS_PER_FRAME):
            image = _capture(camera, look, style)
            ok, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
            assert ok
            jpegs.append(data.ravel())
            cells.append(camera.owners())
    arrays = truth_arrays(world, round(seconds / TICK))
    arrays["jpeg"] = np.concatenate(jpegs)
    arrays["cells"] = np.stack(cells)
    arrays["offsets"] = np.cumsum([0, *(len(data) for data in jpegs)], dtype=np.int64)
    meta = {
        "seed": seed,
        "data_version": DATA_VERSION,
        "seconds": seconds,
        "calm": calm,
        "shadows": look.shadows,
        "noise": look.noise,
    }
    return Episode(arrays, meta)


def episode_events(world: World, until: int) -> list[Event]:
    """The events of the first `until` ticks a world has recorded."""
    history = world.history.arrays()
    gripper_in_view = _inside(project(world, history["gripper"] + [0, 0, 0.01]))
    hand_in_view = _hand_in_view(world, history["hand"])
    uv = _object_uv(world, history)
    fading = 12  # ticks; a fall is named though it leads out of the view at once
    in_view = _inside(uv, 0.02)
    in_view[fading:] |= in_view[:-fading]
    seen = InView(gripper_in_view, hand_in_view, in_view, covered(world, history))
    return events(world.spec, history, facts(world.spec, history), seen, until)


def _object_uv(world: World, history: dict[str, np.ndarray]) -> np.ndarray:
    """Projected object centres, [T, O, 2]."""
    position = history["position"]
    return project(world, position.reshape(-1, 3)).reshape(*position.shape[:2], 2)


_HAND_POINTS = np.array(
    [[0, 0.08, 0], [-0.04, 0.04, 0], [0.05, 0.02, 0], [0, -0.08, 0], [0, -0.25, 0.05]]
)


def _hand_in_view(world: World, hand: np.ndarray) -> np.ndarray:
    """Whether any of the hand [T, 4] is in the square view; parked, under the floor, it is not."""
    cos, sin = np.cos(hand[:, 3]), np.sin(hand[:, 3])
    seen = np.zeros(len(hand), dtype=bool)
    for x, y, z in _HAND_POINTS:
        point = hand[:, :3] + np.stack(
            [cos * x - sin * y, sin * x + cos * y, np.full_like(cos, z)], axis=1
        )
        seen |= _inside(project(world, point))
    return (hand[:, 2] > -1) & seen


def truth_arrays(world: World, ticks: int) -> dict[str, np.ndarray]:
    """The truth fields of the file format, of the first `ticks` ticks."""
    history = world.history.arrays()
    known = facts(world.spec, history)
    found = episode_events(world, ticks)
    frames = slice(0, ticks, TICKS_PER_FRAME)
    uv = _object_uv(world, history)
    tips = history["gripper"] + np.array([0, 0, 0.02])
    gripper_uv, hand_uv = project(world, tips), project(world, history["hand"][:, :3])
    bits = known.bits()
    above = (bits & ON_TABLE > 0) | (history["position"][..., 2] > 0)
    objects = [[SHAPES.index(o.shape), COLOURS.index(o.colour)] for o in world.spec.objects]
    count = len(history["gripper"][frames])
    return {
        "stamps": np.arange(count) / FRAME_RATE,
        "objects": np.array(objects, dtype=np.int16),
        "object_uv": uv[frames].astype(np.float32),
        "object_visible": (_inside(uv) & above & (covered(world, history) < HIDDEN))[frames],
        "object_motion": np.gradient(uv, TICK, axis=0)[frames].astype(np.float32),
        "object_state": bits[frames],
        "gripper_uv": gripper_uv[frames].astype(np.float32),
        "gripper_visible": _inside(gripper_uv, 0.02)[frames],
        "gripper_closed": (1 - history["opening"][frames] / 0.062).clip(0, 1).astype(np.float32),
        "gripper_motion": np.gradient(gripper_uv, TICK, axis=0)[frames].astype(np.float32),
        "hand_visible": _hand_in_view(world, history["hand"])[frames],
        "hand_uv": hand_uv[frames].astype(np.float32),
        "event_kind": np.array([KINDS.index(e.kind) for e in found], dtype=np.int16),
        "event_object": np.array(
            [-1 if e.object is None else e.object for e in found], dtype=np.int16
        ),
        "event_span": np.array([[e.start, e.end] for e in found], dtype=np.float32).reshape(-1, 2),
    }
