"""What the hand hides from the camera, from the recorded state alone."""

from __future__ import annotations

import numpy as np

from .mjcf import HAND_PARTS
from .world import World

HIDDEN = 0.8  # an object of which the hand hides this share is out of sight
_SPHERES = 6  # along each part of the hand


def _hand_spheres() -> tuple[np.ndarray, np.ndarray]:
    """Centres [S, 3] and radii [S] of spheres that fill the hand, in its own frame (m)."""
    along = np.linspace(0, 1, _SPHERES)[:, None]
    centres, radii = [], []
    for ends, radius in HAND_PARTS:
        first, last = np.array(ends[:3]), np.array(ends[3:])
        centres.append(first + along * (last - first))
        radii.append(np.full(_SPHERES, radius))
    return np.concatenate(centres), np.concatenate(radii)


def covered(world: World, history: dict[str, np.ndarray]) -> np.ndarray:
    """The share of each object that the hand hides from the camera, [T, O], 0..1.

    Five points stand for an object: its centre and four around it as the camera sees it.
    """
    hand, position = history["hand"], history["position"]
    share = np.zeros(position.shape[:2])
    ticks = np.flatnonzero(hand[:, 2] > -1)
    if not len(ticks):
        return share
    camera = world.model.camera("view").id
    eye = world.model.cam_pos[camera]
    right, up = _image_axes(world)
    local, radii = _hand_spheres()
    cos, sin = np.cos(hand[ticks, 3])[:, None], np.sin(hand[ticks, 3])[:, None]
    turned = np.stack(
        [cos * local[:, 0] - sin * local[:, 1], sin * local[:, 0] + cos * local[:, 1],
         np.broadcast_to(local[:, 2], (len(ticks), len(local)))], axis=-1,
    )  # fmt: skip
    spheres = turned + hand[ticks, None, :3] - eye  # [t, S, 3] from the eye
    for item, spec in enumerate(world.spec.objects):
        wide, high = 0.7 * spec.radius, 0.35 * max(spec.height, 2 * spec.radius)
        points = [np.zeros(3), wide * right, -wide * right, high * up, -high * up]
        rays = position[ticks, item][:, None] + np.array(points) - eye  # [t, 5, 3]
        length = np.linalg.norm(rays, axis=-1, keepdims=True)
        way = rays / length
        along = np.einsum("tpc,tsc->tps", way, spheres)
        square = (spheres**2).sum(-1)[:, None] - along**2
        hit = (square < radii**2) & (along > 0) & (along < length)
        share[ticks, item] = hit.any(axis=-1).mean(axis=-1)
    return share


def _image_axes(world: World) -> tuple[np.ndarray, np.ndarray]:
    """The camera's right and up as world vectors."""
    import mujoco

    matrix = np.zeros(9)
    mujoco.mju_quat2Mat(matrix, world.model.cam_quat[world.model.camera("view").id])
    axes = matrix.reshape(3, 3)
    return axes[:, 0], axes[:, 1]
