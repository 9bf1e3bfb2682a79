"""One table, its objects, its lighting and the camera, sampled from a seed.

The table top is the plane z = 0 with its centre at the origin; metres, x right, y away from the
camera. Everything random about a scene is in its `SceneSpec`: the same spec gives the same
model (`mjcf.py`).
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

from ..vocabulary import COLOURS, SHAPES, held_out

TIMESTEP = 1 / 240
FLOOR = -0.5
FINGER_LENGTH = 0.08
MAX_OPENING = 0.062  # of one finger
TALL = ("can", "bottle", "mug")

_BASE_COLOURS = {
    "red": (0.80, 0.09, 0.09),
    "green": (0.12, 0.58, 0.17),
    "blue": (0.11, 0.24, 0.82),
    "yellow": (0.93, 0.84, 0.10),
    "orange": (0.96, 0.47, 0.05),
    "purple": (0.50, 0.16, 0.62),
    "white": (0.94, 0.94, 0.94),
    "black": (0.06, 0.06, 0.06),
}
_TABLE_TONES = (
    (0.50, 0.36, 0.23),
    (0.40, 0.29, 0.20),
    (0.62, 0.50, 0.36),
    (0.47, 0.47, 0.48),
    (0.34, 0.35, 0.37),
    (0.68, 0.62, 0.52),
)
_FLOOR_TONES = ((0.22, 0.24, 0.27), (0.30, 0.28, 0.26), (0.42, 0.43, 0.45), (0.20, 0.18, 0.17))


@dataclass(frozen=True)
class ObjectSpec:
    """One object. `radius` is half its width (m), `height` its full height when it stands (m)."""

    shape: str
    colour: str
    radius: float
    height: float
    length: float  # half of the book's long side; equals `radius` for every other shape
    friction: float
    rgb: tuple[float, float, float]
    xy: tuple[float, float]
    yaw: float


@dataclass(frozen=True)
class SceneSpec:
    """Everything that is random about a scene's looks and set-up."""

    objects: tuple[ObjectSpec, ...]
    table_half: tuple[float, float]
    table_rgb: tuple[float, float, float]
    table_grain: float
    floor_rgb: tuple[float, float, float]
    gripper_grey: float
    skin_rgb: tuple[float, float, float]
    light_dir: tuple[float, float, float]
    light: float
    ambient: float
    camera_target: tuple[float, float, float]
    camera_distance: float
    camera_elevation: float
    camera_azimuth: float
    fovy: float
    texture_seed: int


def _jitter(name: str, rng: np.random.Generator) -> tuple[float, float, float]:
    hue, saturation, value = colorsys.rgb_to_hsv(*_BASE_COLOURS[name])
    hue = (hue + rng.uniform(-0.011, 0.011)) % 1.0
    saturation *= rng.uniform(0.9, 1.0)
    value = min(1.0, value * rng.uniform(0.9, 1.06))
    return colorsys.hsv_to_rgb(hue, saturation, value)


def _size(shape: str, rng: np.random.Generator) -> tuple[float, float, float]:
    """Radius, height and half length of an object (m)."""
    if shape == "cube":
        half = rng.uniform(0.026, 0.036)
        return half, 2 * half, half
    if shape == "ball":
        radius = rng.uniform(0.027, 0.038)
        return radius, 2 * radius, radius
    if shape == "can":
        radius = rng.uniform(0.026, 0.033)
        return radius, rng.uniform(0.085, 0.11), radius
    if shape == "bottle":
        radius = rng.uniform(0.024, 0.03)
        return radius, rng.uniform(0.14, 0.17), radius
    if shape == "mug":
        radius = rng.uniform(0.031, 0.038)
        return radius, rng.uniform(0.075, 0.09), radius
    half = rng.uniform(0.042, 0.05)
    return half, rng.uniform(0.022, 0.03), half * rng.uniform(1.35, 1.5)


def _pairs(count: int, rng: np.random.Generator, prefer_held_out: bool) -> list[tuple[str, str]]:
    """Distinct (colour, shape) pairs."""
    pairs: list[tuple[str, str]] = []
    while len(pairs) < count:
        pair = (COLOURS[rng.integers(len(COLOURS))], SHAPES[rng.integers(len(SHAPES))])
        wanted = ("pick_up", "push", "put_down", "carry", "reach")
        if prefer_held_out and not any(held_out(*pair, kind) for kind in wanted):
            continue
        if pair not in pairs:
            pairs.append(pair)
    return pairs


def _positions(
    spans: list[float], half: tuple[float, float], rng: np.random.Generator
) -> list[tuple[float, float]]:
    """Places that keep objects (of the given half widths) apart and away from the edge."""
    for attempt in range(400):
        gap = 0.06 * (1 - attempt / 400)
        places = [
            (
                rng.uniform(-half[0] + 0.07, half[0] - 0.07),
                rng.uniform(-half[1] + 0.06, half[1] - 0.06),
            )
            for _ in spans
        ]
        clear = all(
            np.hypot(a[0] - b[0], a[1] - b[1]) > spans[i] + spans[j] + gap
            for i, a in enumerate(places)
            for j, b in enumerate(places[:i])
        )
        if clear:
            return places
    raise ValueError(f"{len(spans)} objects do not fit on the table; use fewer or smaller ones")


def sample_scene(rng: np.random.Generator, count: int, prefer_held_out: bool = False) -> SceneSpec:
    """A random scene with `count` objects of distinct (colour, shape) pairs."""
    half = (float(rng.uniform(0.24, 0.28)), float(rng.uniform(0.185, 0.22)))
    pairs = _pairs(count, rng, prefer_held_out)
    sizes = [_size(shape, rng) for _, shape in pairs]
    places = _positions([length for _, _, length in sizes], half, rng)
    objects = []
    for (colour, shape), (radius, height, length), xy in zip(pairs, sizes, places):
        slippery = shape != "ball" and rng.random() < 0.42
        friction = rng.uniform(0.12, 0.17) if slippery else rng.uniform(0.5, 0.8)
        yaw = rng.uniform(-0.7, 0.7) if shape == "book" else rng.uniform(-np.pi, np.pi)
        rgb = _jitter(colour, rng)
        objects.append(
            ObjectSpec(shape, colour, radius, height, length, float(friction), rgb, xy, float(yaw))
        )
    table = np.array(_TABLE_TONES[rng.integers(len(_TABLE_TONES))]) * rng.uniform(0.9, 1.12)
    floor = np.array(_FLOOR_TONES[rng.integers(len(_FLOOR_TONES))]) * rng.uniform(0.85, 1.15)
    skin = np.array([0.87, 0.66, 0.53]) * rng.uniform(0.55, 1.05)
    fovy = float(rng.uniform(30, 48))
    width = rng.uniform(0.53, 0.61)
    return SceneSpec(
        objects=tuple(objects),
        table_half=half,
        table_rgb=tuple(table.tolist()),
        table_grain=float(rng.choice([0.0, 0.04, 0.08])),
        floor_rgb=tuple(floor.tolist()),
        gripper_grey=float(rng.uniform(0.45, 0.65)),
        skin_rgb=tuple(skin.tolist()),
        light_dir=(float(rng.uniform(-0.5, 0.5)), float(rng.uniform(-0.3, 0.5)), -1.0),
        light=float(rng.uniform(0.45, 0.7)),
        ambient=float(rng.uniform(0.35, 0.5)),
        camera_target=(
            float(rng.uniform(-0.025, 0.025)),
            float(rng.uniform(0.0, 0.04)),
            float(rng.uniform(0.01, 0.04)),
        ),
        camera_distance=float(width / (2 * np.tan(np.radians(fovy) / 2))),
        camera_elevation=float(rng.uniform(42, 62)),
        camera_azimuth=float(np.clip(rng.normal(0, 10), -22, 22)),
        fovy=fovy,
        texture_seed=int(rng.integers(1 << 31)),
    )
