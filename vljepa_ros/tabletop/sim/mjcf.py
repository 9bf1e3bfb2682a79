"""The MuJoCo model of a scene: geometry, joints, actuators, lights and the camera.

Objects collide with everything, the gripper with objects only, the hand with nothing.
"""

from __future__ import annotations

import cv2
import mujoco
import numpy as np

from .scene import FINGER_LENGTH, FLOOR, MAX_OPENING, TIMESTEP, ObjectSpec, SceneSpec


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
        f'<joint name="finger{i}" type="slide" axis="{side} 0 0" '
        f'range="-0.004 {MAX_OPENING}" damping="2"/>'
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


HAND_PARTS: list[tuple[tuple[float, ...], float]] = [  # capsules: both ends and the radius, m
    ((0, -0.05, 0, 0, -0.5, 0.12), 0.03),  # forearm
    ((-0.02, 0, 0, 0.02, 0, 0), 0.026),  # palm
    ((-0.02, -0.03, 0, 0.02, -0.03, 0), 0.026),
    *(((x, 0.01, 0, 1.35 * x, 0.085, -0.012), 0.009) for x in (-0.032, -0.011, 0.011, 0.032)),
    ((0.03, -0.03, 0, 0.065, 0.02, -0.01), 0.01),  # thumb
]


def _hand(spec: SceneSpec) -> str:
    geoms = "".join(
        f'<geom type="capsule" size="{size}" fromto="{_numbers(ends)}" '
        f'rgba="{_numbers(spec.skin_rgb)} 1" {_LOOK}/>'
        for ends, size in HAND_PARTS
    )
    return f'<body name="hand" mocap="true" pos="0 0 -5">{geoms}</body>'


def _camera(spec: SceneSpec) -> str:
    elevation, azimuth = np.radians(spec.camera_elevation), np.radians(spec.camera_azimuth)
    back = np.array(
        [
            np.sin(azimuth) * np.cos(elevation),
            -np.cos(azimuth) * np.cos(elevation),
            np.sin(elevation),
        ]
    )
    right = np.array([np.cos(azimuth), np.sin(azimuth), 0.0])
    position = np.array(spec.camera_target) + spec.camera_distance * back
    axes = np.concatenate([right, np.cross(back, right)])
    pose = f'pos="{_numbers(position)}" xyaxes="{_numbers(axes)}"'
    return f'<camera name="view" {pose} fovy="{spec.fovy}"/>'


def _texture(rgb: tuple[float, float, float], grain: float, seed: int) -> bytes:
    """A PNG of wood-like streaks around `rgb`."""
    rng = np.random.default_rng(seed)
    streaks = cv2.GaussianBlur(
        rng.normal(size=(128, 128)).astype(np.float32), (0, 0), 9, sigmaY=1.2
    )
    streaks *= grain / max(float(streaks.std()), 1e-6)
    image = np.clip(np.array(rgb)[::-1] * (1 + streaks[..., None]), 0, 1)
    ok, data = cv2.imencode(".png", (255 * image).astype(np.uint8))
    assert ok
    return data.tobytes()


def build(spec: SceneSpec, size: tuple[int, int], fine: bool) -> mujoco.MjModel:
    """The model of a scene, drawn at most `size` (width, height) large; `fine`: smooth edges."""
    half = spec.table_half
    bodies, welds = "", ""
    for i, item in enumerate(spec.objects):
        pos = (*item.xy, item.height / 2 + 0.0005)
        bodies += (
            f'<body name="object{i}" pos="{_numbers(pos)}" euler="0 0 {item.yaw:.6f}"><freejoint/>'
            f"{_object_geoms(item)}</body>"
        )
        ends = f'body1="gripper" body2="object{i}"'
        welds += f'<weld name="weld{i}" {ends} active="false" solref="0.01 1"/>'
    servo = "".join(f'<position joint="{axis}" kp="4000" kv="200"/>' for axis in "xyz")
    xml = f"""<mujoco>
<compiler angle="radian"/>
<option timestep="{TIMESTEP}" integrator="implicitfast" iterations="20" ls_iterations="12"/>
<size memory="4M"/>
<statistic extent="1" center="0 0 0"/>
<visual>
<headlight ambient="{_numbers([spec.ambient] * 3)}" diffuse="0.25 0.25 0.25" specular="0 0 0"/>
<global offwidth="{size[0]}" offheight="{size[1]}"/>
<quality offsamples="{4 if fine else 0}" shadowsize="{4096 if fine else 1024}"
 numslices="20" numstacks="12"/>
<map znear="0.05" zfar="4" shadowclip="0.6"/></visual>
<default>
<default class="solid"><geom contype="1" conaffinity="3" condim="6" density="280"
 solref="0.012 1"/></default>
<default class="look"><geom contype="0" conaffinity="0" mass="0"/></default>
<default class="grip"><geom contype="2" conaffinity="0" friction="0.8" mass="0.05"/></default>
</default>
<asset><texture name="top" type="2d" file="top.png"/>
<material name="top" texture="top" specular="0.1" shininess="0.1"/></asset>
<worldbody>
<light directional="true" pos="{_numbers(-1.5 * np.array(spec.light_dir))}"
 dir="{_numbers(spec.light_dir)}" diffuse="{_numbers([spec.light] * 3)}"
 specular="0.15 0.15 0.15" castshadow="true"/>
{_camera(spec)}
<geom name="table" type="box" size="{half[0]} {half[1]} 0.015" pos="0 0 -0.015"
 material="top" friction="0.1 0.001 0.0001"/>
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
