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


GRIPPER, HAND = 254, 255
CELLS = 16  # a side: the grid in which an episode says what can be seen where
CELL_PIXELS = 4  # a side, of the picture that tells
_FONT = mujoco.mjtFontScale.mjFONTSCALE_50  # no text is drawn; the smallest is the fastest to make


def _labels(world: World) -> list[int]:
    """For each geom of the model, its label in `Camera.owners`."""
    names = {"gripper": GRIPPER, "finger0": GRIPPER, "finger1": GRIPPER, "hand": HAND}
    names |= {f"object{i}": i + 1 for i in range(world.count)}
    bodies = (world.model.body(body).name for body in world.model.geom_bodyid)
    return [names.get(name, 0) for name in bodies]


class Camera:
    """Renders the view of one world as RGB uint8 [height, width, 3]."""

    def __init__(self, world: World, width: int, height: int, shadows: bool) -> None:
        self._world = world
        self._renderer = mujoco.Renderer(world.model, height, width, max_geom=200, font_scale=_FONT)
        self._drawn: np.ndarray | None = None
        self._picture = np.zeros((height, width, 3), dtype=np.uint8)
        self._parted: np.ndarray | None = None
        self._cells = np.zeros((CELLS, CELLS), dtype=np.uint8)
        self._divider: mujoco.Renderer | None = None
        self._labels = np.append(_labels(world), 0).astype(np.uint8)
        flags = self._renderer.scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SHADOW] = shadows
        flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        flags[mujoco.mjtRndFlag.mjRND_SKYBOX] = False

    def picture(self) -> np.ndarray:
        """The view now; drawn again only when something moved by more than 0.05 mm (or mrad)."""
        data = self._world.data
        pose = self._pose()
        if self._drawn is None or np.abs(pose - self._drawn).max() > 5e-5:
            self._drawn = pose
            self._renderer.update_scene(data, "view")
            self._picture = self._renderer.render()
        return self._picture

    def owners(self) -> np.ndarray:
        """What each cell of a grid over the square view shows, uint8 [CELLS, CELLS].

        0: neither of the following, i + 1: object i, `GRIPPER` or `HAND`. A cell belongs to what
        covers most of it, if that is at least an eighth.
        """
        pose = self._pose()
        if self._parted is None or np.abs(pose - self._parted).max() > 5e-5:
            self._parted = pose
            self._cells = self._part()
        return self._cells

    def _part(self) -> np.ndarray:
        if self._divider is None:
            size = CELLS * CELL_PIXELS
            self._divider = mujoco.Renderer(
                self._world.model, size, size, max_geom=200, font_scale=_FONT
            )
            self._divider.enable_segmentation_rendering()
        self._divider.update_scene(self._world.data, "view")
        parts = self._divider.render()
        geoms = np.where(parts[..., 1] == mujoco.mjtObj.mjOBJ_GEOM, parts[..., 0], -1)
        labels = self._labels[geoms]  # -1 takes the last entry: nothing
        pixels = labels.reshape(CELLS, CELL_PIXELS, CELLS, CELL_PIXELS).swapaxes(1, 2)
        values = np.unique(labels[labels > 0])
        if not len(values):
            return np.zeros((CELLS, CELLS), np.uint8)
        shares = (pixels[..., None] == values).mean(axis=(2, 3))
        most = values[shares.argmax(axis=-1)]
        return np.where(shares.max(axis=-1) >= 1 / 8, most, 0).astype(np.uint8)

    def _pose(self) -> np.ndarray:
        data = self._world.data
        return np.concatenate([data.qpos, data.mocap_pos[0], data.mocap_quat[0]])

    def close(self) -> None:
        self._renderer.close()
        if self._divider is not None:
            self._divider.close()

    def __enter__(self) -> Camera:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def shrink(picture: np.ndarray, size: int) -> np.ndarray:
    """Area-averaged to [size, size, 3]."""
    return cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)
