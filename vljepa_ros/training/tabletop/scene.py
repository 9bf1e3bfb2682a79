"""One table, its objects, the gripper, the hand and the camera, as a MuJoCo model made from a seed.

The table top is the plane z = 0 with its centre at the origin; metres, x right, y away from the
camera. Everything random about a scene is in its `SceneSpec`: the same spec gives the same model.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import cv2
import mujoco
import numpy as np

from .vocabulary import COLOURS, SHAPES, held_out

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
            (rng.uniform(-half[0] + 0.07, half[0] - 0.07), rng.uniform(-half[1] + 0.06, half[1] - 0.06))
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


def _numbers(values: object) -> str:
    return " ".join(f"{value:.6g}" for value in np.atleast_1d(np.asarray(values, dtype=float)))


def _geom(kind: str, size: object, rgb: object, pos: object = (0, 0, 0), extra: str = "") -> str:
    return (
        f'<geom type="{kind}" size="{_numbers(size)}" pos="{_numbers(pos)}" '
        f'rgba="{_numbers(rgb)} 1" {extra}/>'
    )


_SOLID = 'class="solid" friction="{} 0.005 {}"'
_LOOK = 'class="look"'


def _object_geoms(spec: ObjectSpec) -> str:
    r, half = spec.radius, spec.height / 2
    rolling = 0.0011 if spec.shape == "ball" else 0.0008
    solid = _SOLID.format(f"{spec.friction:.4f}", rolling)
    rgb = np.array(spec.rgb)
    if spec.shape == "cube":
        return _geom("box", (r, r, r), rgb, extra=solid)
    if spec.shape == "ball":
        return _geom("sphere", r, rgb, extra=solid)
    if spec.shape == "can":
        lids = "".join(
            _geom("cylinder", (0.85 * r, 0.001), (0.72, 0.72, 0.74), (0, 0, side * half), _LOOK)
            for side in (-1, 1)
        )
        return _geom("cylinder", (r, half), rgb, extra=solid) + lids
    if spec.shape == "bottle":
        body = 0.3 * spec.height
        neck = half - body
        return (
            _geom("cylinder", (r, body), rgb, (0, 0, body - half), solid)
            + _geom("cylinder", (0.4 * r, neck), rgb, (0, 0, half - neck), solid)
            + _geom("ellipsoid", (0.98 * r, 0.98 * r, 0.025), rgb, (0, 0, 2 * body - half), _LOOK)
        )
    if spec.shape == "mug":
        x = r + 0.022
        bars = [(0.9 * r, half * 0.55, x, half * 0.55), (x, half * 0.55, x, -half * 0.55)]
        bars.append((0.9 * r, -half * 0.55, x, -half * 0.55))
        handle = "".join(
            f'<geom type="capsule" size="0.006" fromto="{a:.5f} 0 {b:.5f} {c:.5f} 0 {d:.5f}" '
            f'rgba="{_numbers(rgb)} 1" {_LOOK}/>'
            for a, b, c, d in bars
        )
        inside = _geom("cylinder", (0.82 * r, 0.001), 0.45 * rgb + 0.03, (0, 0, half), _LOOK)
        return _geom("cylinder", (r, half), rgb, extra=solid) + handle + inside
    pages = (0.86, 0.83, 0.74)
    return _geom("box", (r, spec.length, half), rgb, extra=solid) + _geom(
        "box", (r + 0.001, 0.97 * spec.length, 0.72 * half), pages, (0.003, 0, 0), _LOOK
    )


def _gripper(spec: SceneSpec) -> str:
    grey = np.full(3, spec.gripper_grey)
    dark = np.full(3, 0.22)
    length = FINGER_LENGTH / 2
    grip = 'class="grip"'
    fingers = "".join(
        f'<body name="finger{i}" pos="{side * 0.007} 0 0" gravcomp="1">'
        f'<joint name="finger{i}" type="slide" axis="{side} 0 0" range="-0.004 {MAX_OPENING}" damping="2"/>'
        + _geom("box", (0.006, 0.012, length), dark, (0, 0, length), grip)
        + "</body>"
        for i, side in enumerate((-1, 1))
    )
    joints = "".join(
        f'<joint name="{axis}" type="slide" axis="{vector}"/>'
        for axis, vector in (("x", "1 0 0"), ("y", "0 1 0"), ("z", "0 0 1"))
    )
    return (
        f'<body name="gripper" gravcomp="1">{joints}<joint name="yaw" type="hinge" axis="0 0 1"/>'
        '<inertial pos="0 0 0.1" mass="1" diaginertia="0.01 0.01 0.01"/>'
        + _geom("box", (0.05, 0.022, 0.018), grey, (0, 0, FINGER_LENGTH + 0.014), grip)
        + _geom("cylinder", (0.015, 0.4), 0.85 * grey, (0, 0, FINGER_LENGTH + 0.43), grip)
        + f"{fingers}</body>"
    )


def _hand(spec: SceneSpec) -> str:
    rgb = np.array(spec.skin_rgb)
    parts = [("0 -0.05 0 0 -0.5 0.12", 0.03), ("-0.02 0 0 0.02 0 0", 0.026), ("-0.02 -0.03 0 0.02 -0.03 0", 0.026)]
    parts += [(f"{x} 0.01 0 {1.35 * x:.4f} 0.085 -0.012", 0.009) for x in (-0.032, -0.011, 0.011, 0.032)]
    parts.append(("0.03 -0.03 0 0.065 0.02 -0.01", 0.01))
    geoms = "".join(
        f'<geom type="capsule" size="{size}" fromto="{ends}" rgba="{_numbers(rgb)} 1" {_LOOK}/>'
        for ends, size in parts
    )
    return f'<body name="hand" mocap="true" pos="0 0 -5">{geoms}</body>'


def _camera(spec: SceneSpec) -> str:
    elevation, azimuth = np.radians(spec.camera_elevation), np.radians(spec.camera_azimuth)
    back = np.array(
        [np.sin(azimuth) * np.cos(elevation), -np.cos(azimuth) * np.cos(elevation), np.sin(elevation)]
    )
    right = np.array([np.cos(azimuth), np.sin(azimuth), 0.0])
    position = np.array(spec.camera_target) + spec.camera_distance * back
    axes = np.concatenate([right, np.cross(back, right)])
    return (
        f'<camera name="view" pos="{_numbers(position)}" xyaxes="{_numbers(axes)}" fovy="{spec.fovy}"/>'
    )


def _texture(rgb: tuple[float, float, float], grain: float, seed: int) -> bytes:
    """A PNG of wood-like streaks around `rgb`."""
    rng = np.random.default_rng(seed)
    streaks = cv2.GaussianBlur(rng.normal(size=(128, 128)).astype(np.float32), (0, 0), 9, sigmaY=1.2)
    streaks *= grain / max(float(streaks.std()), 1e-6)
    image = np.clip(np.array(rgb)[::-1] * (1 + streaks[..., None]), 0, 1)
    ok, data = cv2.imencode(".png", (255 * image).astype(np.uint8))
    assert ok
    return data.tobytes()


def build(spec: SceneSpec, size: tuple[int, int], fine: bool) -> mujoco.MjModel:
    """The MuJoCo model of a scene, to be drawn at most `size` (width, height) large; `fine`: smooth edges."""
    half = spec.table_half
    bodies, welds = "", ""
    for i, item in enumerate(spec.objects):
        pos = (*item.xy, item.height / 2 + 0.0005)
        bodies += (
            f'<body name="object{i}" pos="{_numbers(pos)}" euler="0 0 {item.yaw:.6f}"><freejoint/>'
            f"{_object_geoms(item)}</body>"
        )
        welds += f'<weld name="weld{i}" body1="gripper" body2="object{i}" active="false" solref="0.01 1"/>'
    servo = "".join(f'<position joint="{axis}" kp="4000" kv="200"/>' for axis in "xyz")
    xml = f"""<mujoco>
<compiler angle="radian"/>
<option timestep="{TIMESTEP}" integrator="implicitfast" iterations="20" ls_iterations="12"/>
<size memory="4M"/>
<statistic extent="1" center="0 0 0"/>
<visual><headlight ambient="{spec.ambient} {spec.ambient} {spec.ambient}" diffuse="0.25 0.25 0.25" specular="0 0 0"/>
<global offwidth="{size[0]}" offheight="{size[1]}"/>
<quality offsamples="{4 if fine else 0}" shadowsize="{2048 if fine else 512}" numslices="20" numstacks="12"/>
<map znear="0.05" zfar="4" shadowclip="0.6"/></visual>
<default>
<default class="solid"><geom contype="1" conaffinity="3" condim="6" density="280" solref="0.012 1"/></default>
<default class="look"><geom contype="0" conaffinity="0" mass="0"/></default>
<default class="grip"><geom contype="2" conaffinity="0" friction="0.8" mass="0.05"/></default>
</default>
<asset><texture name="top" type="2d" file="top.png"/>
<material name="top" texture="top" specular="0.1" shininess="0.1"/></asset>
<worldbody>
<light directional="true" pos="0 0 2" dir="{_numbers(spec.light_dir)}" diffuse="{_numbers([spec.light] * 3)}"
 specular="0.15 0.15 0.15" castshadow="true"/>
{_camera(spec)}
<geom name="table" type="box" size="{half[0]} {half[1]} 0.015" pos="0 0 -0.015" material="top" friction="0.1 0.001 0.0001"/>
<geom name="floor" type="plane" size="3 3 0.1" pos="0 0 {FLOOR}" rgba="{_numbers(spec.floor_rgb)} 1"
 friction="1 0.05 0.02" solref="0.03 1.2"/>
{bodies}{_gripper(spec)}{_hand(spec)}
</worldbody>
<equality>{welds}</equality>
<actuator>{servo}<position joint="yaw" kp="100" kv="5"/>
<position joint="finger0" kp="400" kv="12" forcerange="-12 12"/>
<position joint="finger1" kp="400" kv="12" forcerange="-12 12"/></actuator>
</mujoco>"""
    picture = _texture(spec.table_rgb, spec.table_grain, spec.texture_seed)
    return mujoco.MjModel.from_xml_string(xml, {"top.png": picture})
