"""Projection of world points into the square image, and rendering.

Invariant: a picture does not depend on what was drawn before it, though all of a thread's are drawn
in one OpenGL context: the first pictures of a new one take 80 ms, in which it compiles its shaders.
"""

from __future__ import annotations

import atexit
import threading
from typing import Any

import cv2
import mujoco
import numpy as np

from ..episode import CELLS, GRIPPER, HAND
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


CELL_PIXELS = 4  # a side, of the picture that tells
_FONT = mujoco.mjtFontScale.mjFONTSCALE_50  # no text is drawn; the smallest is the fastest to make
_GEOMS = 200  # at most so many in a scene
_thread = threading.local()


def _labels(world: World) -> list[int]:
    """For each geom of the model, its label in `Camera.owners`."""
    names = {"gripper": GRIPPER, "finger0": GRIPPER, "finger1": GRIPPER, "hand": HAND}
    names |= {f"object{i}": i + 1 for i in range(world.count)}
    bodies = (world.model.body(body).name for body in world.model.geom_bodyid)
    return [names.get(name, 0) for name in bodies]


def _gl_context() -> Any:
    """The OpenGL context of this thread."""
    if not hasattr(_thread, "gl_context"):
        _thread.gl_context = mujoco.GLContext(1, 1)  # a world has a frame buffer of its own
        atexit.register(_thread.gl_context.free)  # when Python clears up itself, it is too late
    return _thread.gl_context


class _View:
    """The camera "view" of one world, drawn into a frame buffer."""

    def __init__(self, world: World, width: int, height: int) -> None:
        self._model, self._data = world.model, world.data
        self.scene = mujoco.MjvScene(world.model, _GEOMS)
        self._option = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._camera.fixedcamid = world.model.camera("view").id
        self._area = mujoco.MjrRect(0, 0, width, height)
        self._gl_context = _gl_context()
        self._gl_context.make_current()
        self._context = mujoco.MjrContext(world.model, _FONT.value)

    def draw(self) -> np.ndarray:
        """RGB uint8 [height, width, 3]."""
        area, everything = self._area, mujoco.mjtCatBit.mjCAT_ALL.value
        upside_down = np.empty((area.height, area.width, 3), np.uint8)
        self._gl_context.make_current()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        mujoco.mjv_updateScene(
            self._model, self._data, self._option, None, self._camera, everything, self.scene
        )
        mujoco.mjr_render(area, self.scene, self._context)
        mujoco.mjr_readPixels(upside_down, None, area, self._context)
        return np.ascontiguousarray(upside_down[::-1])

    def close(self) -> None:
        self._gl_context.make_current()
        self._context.free()


class Divider(_View):
    """The same view, as the geom that each pixel shows."""

    def __init__(self, world: World, width: int, height: int) -> None:
        super().__init__(world, width, height)
        self.scene.flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = True
        self.scene.flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = True

    def geoms(self) -> np.ndarray:
        """Indices int64 [height, width]; -1: no geom of the model."""
        colours = self.draw()
        geoms = np.full(self.scene.ngeom + 1, -1)
        for drawn in self.scene.geoms[: self.scene.ngeom]:
            if drawn.objtype == mujoco.mjtObj.mjOBJ_GEOM and drawn.segid >= 0:
                geoms[drawn.segid + 1] = drawn.objid
        return geoms[colours @ (1, 1 << 8, 1 << 16)]


class Camera:
    """Renders the view of one world as RGB uint8 [height, width, 3]."""

    def __init__(self, world: World, width: int, height: int, shadows: bool) -> None:
        self._world = world
        self._view = _View(world, width, height)
        self._drawn: np.ndarray | None = None
        self._picture = np.zeros((height, width, 3), dtype=np.uint8)
        self._parted: np.ndarray | None = None
        self._cells = np.zeros((CELLS, CELLS), dtype=np.uint8)
        self._divider: Divider | None = None
        self._labels = np.append(_labels(world), 0).astype(np.uint8)
        flags = self._view.scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SHADOW] = shadows
        flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        flags[mujoco.mjtRndFlag.mjRND_SKYBOX] = False

    def picture(self) -> np.ndarray:
        """The view now; drawn again only when something moved by more than 0.05 mm (or mrad)."""
        pose = self._pose()
        if self._drawn is None or np.abs(pose - self._drawn).max() > 5e-5:
            self._drawn = pose
            self._picture = self._view.draw()
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
            self._divider = Divider(self._world, size, size)
        labels = self._labels[self._divider.geoms()]  # -1 takes the last entry: nothing
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
        self._view.close()
        if self._divider is not None:
            self._divider.close()

    def __enter__(self) -> Camera:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def shrink(picture: np.ndarray, size: int) -> np.ndarray:
    """Area-averaged to [size, size, 3]."""
    return cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)
