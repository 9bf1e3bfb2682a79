"""The running simulation: what a controller commands, and the recorded history of its state.

One tick is `TICK` seconds. The truth about an episode is computed from `World.history` alone, never
from what a controller meant to do.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import mujoco
import numpy as np

from .mjcf import build
from .scene import ObjectSpec, SceneSpec

STEPS_PER_TICK = 6
TICK = 1 / 40

_TABLE, _FLOOR, _PALM, _LEFT, _RIGHT, _NOTHING = -1, -2, -3, -4, -5, -6


@dataclass
class History:
    """Lists with one entry a tick; `arrays()` stacks them along time."""

    position: list[np.ndarray] = field(default_factory=list)  # [O, 3] m
    quaternion: list[np.ndarray] = field(default_factory=list)  # [O, 4] w x y z
    velocity: list[np.ndarray] = field(default_factory=list)  # [O, 3] m/s
    spin: list[np.ndarray] = field(default_factory=list)  # [O, 3] rad/s
    touched: list[np.ndarray] = field(default_factory=list)  # [O] by any part of the gripper
    grasped: list[np.ndarray] = field(default_factory=list)  # [O] welded to the gripper
    gripper: list[np.ndarray] = field(default_factory=list)  # [3] finger tips, m
    opening: list[float] = field(default_factory=list)  # of one finger, m
    hand: list[np.ndarray] = field(default_factory=list)  # [4] x y z in m, yaw in rad

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: np.array(values) for name, values in vars(self).items()}


class World:
    """A scene with its state. Controllers set `setpoint` [x, y, z, yaw], `opening` and `hand`."""

    def __init__(
        self, spec: SceneSpec, rng: np.random.Generator, size: tuple[int, int], fine: bool = False
    ) -> None:
        self.spec = spec
        self.rng = rng
        self.model = build(spec, size, fine)
        self.data = mujoco.MjData(self.model)
        self.count = len(spec.objects)
        self.history = History()
        self.ticks = 0
        self._pinched = np.zeros(self.count, dtype=bool)
        self.opening = 0.03
        self.hand = np.array([0.0, 0.0, -5.0])
        self.hand_yaw = 0.0
        self.setpoint = np.array([0.0, 0.32, 0.45, 0.0])
        self._owner = self._geom_owners()
        self._gripper_qpos = 7 * self.count
        self._gripper_body = self.model.body("gripper").id
        self._bodies = [self.model.body(f"object{i}").id for i in range(self.count)]

    def _geom_owners(self) -> np.ndarray:
        """For each geom: the object's index, or which other thing it belongs to."""
        owners = np.full(self.model.ngeom, _NOTHING)
        names = {"gripper": _PALM, "finger0": _LEFT, "finger1": _RIGHT}
        names |= {f"object{i}": i for i in range(self.count)}
        for geom in range(self.model.ngeom):
            body = self.model.body(self.model.geom_bodyid[geom]).name
            owners[geom] = names.get(body, _NOTHING)
        owners[self.model.geom("table").id] = _TABLE
        owners[self.model.geom("floor").id] = _FLOOR
        return owners

    @property
    def time(self) -> float:
        return self.ticks * TICK

    def place_gripper(self, setpoint: np.ndarray) -> None:
        """Puts the gripper somewhere at once; only before the first tick."""
        self.setpoint = np.array(setpoint, dtype=float)
        start = self._gripper_qpos
        self.data.qpos[start : start + 4] = self.setpoint
        self.data.qpos[start + 4 : start + 6] = self.opening

    def settle(self, seconds: float) -> None:
        """Lets the objects come to rest before the episode begins."""
        self._command()
        mujoco.mj_step(self.model, self.data, nstep=int(seconds / self.model.opt.timestep))

    def _command(self) -> None:
        self.data.ctrl[:4] = self.setpoint
        self.data.ctrl[4:6] = self.opening
        self.data.mocap_pos[0] = self.hand
        self.data.mocap_quat[0] = [np.cos(self.hand_yaw / 2), 0, 0, np.sin(self.hand_yaw / 2)]

    def tick(self) -> None:
        """Advances the simulation by one tick and records the state."""
        self._command()
        mujoco.mj_step(self.model, self.data, nstep=STEPS_PER_TICK)
        self.ticks += 1
        self._record()

    def _record(self) -> None:
        poses = self.data.qpos[: 7 * self.count].reshape(self.count, 7)
        speeds = self.data.qvel[: 6 * self.count].reshape(self.count, 6)
        touched = np.zeros((self.count, 3), dtype=bool)
        for a, b in self._owner[self.data.contact.geom]:
            if a >= 0 and b in (_PALM, _LEFT, _RIGHT):
                touched[a, _PALM - b] = True
            elif b >= 0 and a in (_PALM, _LEFT, _RIGHT):
                touched[b, _PALM - a] = True
        between = np.abs(self._along_fingers()) < 0.03
        welded = self.data.eq_active[: self.count].astype(bool)
        record = self.history
        record.position.append(poses[:, :3].copy())
        record.quaternion.append(poses[:, 3:].copy())
        record.velocity.append(speeds[:, :3].copy())
        record.spin.append(speeds[:, 3:].copy())
        record.touched.append(touched.any(axis=1) | welded)
        self._pinched = touched[:, 1] & touched[:, 2] & between
        record.grasped.append(welded)
        record.gripper.append(self.data.xpos[self._gripper_body].copy())
        record.opening.append(float(self.finger_opening))
        record.hand.append(np.array([*self.hand, self.hand_yaw]))

    def _along_fingers(self) -> np.ndarray:
        """How far each object's centre is from the plane in which the fingers close (m), [O]."""
        normal = self.data.xmat[self._gripper_body].reshape(3, 3)[:, 1]
        centres = self.data.qpos[: 7 * self.count].reshape(self.count, 7)[:, :3]
        return (centres - self.data.xpos[self._gripper_body]) @ normal

    @property
    def finger_opening(self) -> float:
        start = self._gripper_qpos + 4
        return float(self.data.qpos[start : start + 2].mean())

    def position(self, index: int) -> np.ndarray:
        return self.data.xpos[self._bodies[index]].copy()

    def rotation(self, index: int) -> np.ndarray:
        return self.data.xmat[self._bodies[index]].reshape(3, 3).copy()

    def speed(self, index: int) -> float:
        return float(np.linalg.norm(self.data.qvel[6 * index : 6 * index + 3]))

    def object(self, index: int) -> ObjectSpec:
        return self.spec.objects[index]

    def on_table(self, index: int) -> bool:
        x, y, z = self.position(index)
        half = self.spec.table_half
        return bool(z > 0 and abs(x) < half[0] - 0.005 and abs(y) < half[1] - 0.005)

    def is_grasped(self, index: int) -> bool:
        """Whether both fingers press on the object and it lies between them."""
        return bool(self._pinched[index] or self.data.eq_active[index])

    def attach(self, index: int) -> None:
        """Welds an object to the gripper as it now lies between the fingers."""
        body, other = self._gripper_body, self._bodies[index]
        inverse, relative = np.zeros(4), np.zeros(4)
        mujoco.mju_negQuat(inverse, self.data.xquat[body])
        mujoco.mju_mulQuat(relative, inverse, self.data.xquat[other])
        offset = self.data.xmat[body].reshape(3, 3).T @ (
            self.data.xpos[other] - self.data.xpos[body]
        )
        self.model.eq_data[index, :3] = 0
        self.model.eq_data[index, 3:6] = offset
        self.model.eq_data[index, 6:10] = relative
        self.data.eq_active[index] = 1

    def detach(self) -> None:
        self.data.eq_active[:] = 0
