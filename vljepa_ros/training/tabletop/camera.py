"""Projection of world points into the square image, and rendering."""

from __future__ import annotations

import cv2
import mujoco
import numpy as np

from .world import World


def project(world: World, points: np.ndarray) -> np.ndarray:
    """World points [..., 3] (m) to the square image [N, 2]: x right, y down, 0..1 inside.

    Points behind the camera give coordinates far outside.
    """
    camera = world.model.camera("view").id
    position = world.model.cam_pos[camera]  # the camera's body is the world
    matrix = np.zeros(9)
    mujoco.mju_quat2Mat(matrix, world.model.cam_quat[camera])
    local = (np.atleast_2d(points) - position) @ matrix.reshape(3, 3)
    depth = np.maximum(-local[..., 2], 1e-3)
    width = 2 * depth * np.tan(np.radians(world.spec.fovy) / 2)
    return np.stack([0.5 + local[..., 0] / width, 0.5 - local[..., 1] / width], axis=-1)


class Camera:
    """Renders the view of one world as RGB uint8 [height, width, 3]."""

    def __init__(self, world: World, width: int, height: int, shadows: bool) -> None:
        self._world = world
        font = (
            mujoco.mjtFontScale.mjFONTSCALE_50
        )  # no text is drawn; the smallest is the fastest to make
        self._renderer = mujoco.Renderer(world.model, height, width, max_geom=200, font_scale=font)
        self._drawn: np.ndarray | None = None
        self._picture = np.zeros((height, width, 3), dtype=np.uint8)
        flags = self._renderer.scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SHADOW] = shadows
        flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        flags[mujoco.mjtRndFlag.mjRND_SKYBOX] = False

    def picture(self) -> np.ndarray:
        """The view now; drawn again only when something moved by more than 0.05 mm (or mrad)."""
        data = self._world.data
        pose = np.concatenate([data.qpos, data.mocap_pos[0], data.mocap_quat[0]])
        if self._drawn is None or np.abs(pose - self._drawn).max() > 5e-5:
            self._drawn = pose
            self._renderer.update_scene(data, "view")
            self._picture = self._renderer.render()
        return self._picture

    def close(self) -> None:
        self._renderer.close()

    def __enter__(self) -> Camera:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def shrink(picture: np.ndarray, size: int) -> np.ndarray:
    """Area-averaged to [size, size, 3]."""
    return cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)
