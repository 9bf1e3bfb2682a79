"""What the gripper and the hand do: controllers as generators that yield once a tick.

A controller only moves setpoints; whether a skill worked is for the physics to say, and `truth.py`
reads it from the state.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .camera import project
from .scene import MAX_OPENING, TALL
from .world import TICK, World

Motion = Iterator[None]


def wait(world: World, seconds: float) -> Motion:
    """Does nothing."""
    for _ in range(round(seconds / TICK)):
        yield


def _ease(fraction: float) -> float:
    """The minimum-jerk profile from 0 to 1."""
    return fraction**3 * (10 - 15 * fraction + 6 * fraction**2)


def travel(
    world: World, goal: np.ndarray, seconds: float, rise: float = 0.0, opening: float | None = None
) -> Motion:
    """Moves to `goal` [x, y, z, yaw], straight or, with `rise` (m), up and over."""
    start, begin = world.setpoint.copy(), world.opening
    goal = np.array(goal, dtype=float)
    goal[3] = (
        start[3] + (goal[3] - start[3] + np.pi / 2) % np.pi - np.pi / 2
    )  # the gripper is symmetric
    up = np.array([0, 0, rise, 0])
    ticks = max(1, round(seconds / TICK))
    for tick in range(1, ticks + 1):
        s = _ease(tick / ticks)
        a, b, c, d = (1 - s) ** 3, 3 * s * (1 - s) ** 2, 3 * s**2 * (1 - s), s**3
        world.setpoint = a * start + b * (start + up) + c * (goal + up) + d * goal
        if opening is not None:
            world.opening = begin + min(1.0, 1.5 * s) * (opening - begin)
        yield


def _duration(world: World, goal: np.ndarray, speed: float) -> float:
    return max(0.5, float(np.linalg.norm(goal[:3] - world.setpoint[:3])) / speed)


def squeeze(world: World, opening: float, seconds: float) -> Motion:
    """Moves both fingers to `opening` (m), at a constant speed."""
    begin = world.opening
    ticks = max(1, round(seconds / TICK))
    for tick in range(1, ticks + 1):
        world.opening = begin + tick / ticks * (opening - begin)
        yield


def settled(world: World, index: int, limit: float = 1.2) -> Motion:
    """Waits until an object rests, at most `limit` seconds."""
    for _ in range(round(limit / TICK)):
        if world.speed(index) < 0.02:
            return
        yield


def _angle(vector: np.ndarray) -> float:
    return float(np.arctan2(vector[1], vector[0]))


def grasp_pose(world: World, index: int) -> tuple[np.ndarray, float] | None:
    """Where fingers go to grasp an object [x, y, z, yaw] and its half width; None: they cannot."""
    item, position, rotation = world.object(index), world.position(index), world.rotation(index)
    radius, axis = item.radius, rotation[:, 2]
    if not world.on_table(index):
        return None
    if item.shape == "ball":
        top, yaw = position[2] + radius, world.rng.uniform(-np.pi, np.pi)
    elif item.shape == "cube":
        side = 0 if abs(rotation[2, 0]) < 0.3 else 1
        top, yaw = position[2] + radius, _angle(rotation[:, side])
    elif item.shape == "book":
        if abs(axis[2]) < 0.8:
            return None
        top, yaw = position[2] + item.height / 2, _angle(rotation[:, 0])
    elif abs(axis[2]) > 0.8:
        top = position[2] + item.height / 2
        yaw = _angle(rotation[:, 0]) + np.pi / 2  # across the mug's handle
        if item.shape == "bottle" and axis[2] > 0:
            radius = 0.4 * item.radius
    else:
        top, yaw = position[2] + radius, _angle(axis) + np.pi / 2
        if item.shape == "bottle":
            position = position - 0.15 * item.height * axis
    return np.array([position[0], position[1], max(0.012, top - 0.055), yaw]), radius


def reach(world: World, index: int) -> Motion:
    """Goes to just above an object and stays a moment."""
    yield from settled(world, index)
    pose = grasp_pose(world, index)
    if pose is None:
        return
    goal = pose[0] + np.array([0, 0, world.rng.uniform(0.035, 0.06), 0])
    speed = world.rng.uniform(0.25, 0.4)
    yield from travel(
        world, goal, _duration(world, goal, speed), 0.06, min(MAX_OPENING, pose[1] + 0.014)
    )
    yield from wait(world, world.rng.uniform(0.1, 0.4))


def grasp(world: World, index: int) -> Iterator[None]:
    """Goes to an object and closes on it; `world.is_grasped(index)` says whether it worked."""
    yield from settled(world, index)
    pose = grasp_pose(world, index)
    if pose is None:
        return
    goal, radius = pose
    speed = world.rng.uniform(0.22, 0.4)
    yield from travel(
        world, goal, _duration(world, goal, speed), 0.1, min(MAX_OPENING, radius + 0.014)
    )
    yield from squeeze(world, radius - 0.006, world.rng.uniform(0.2, 0.35))
    yield from wait(world, 0.05)
    if world.is_grasped(index):
        world.attach(index)


def lift(world: World, height: float) -> Motion:
    """Raises the gripper by `height` (m)."""
    goal = world.setpoint + np.array([0, 0, height, 0])
    yield from travel(world, goal, world.rng.uniform(0.7, 1.1))


def well_in_view(world: World, point: np.ndarray) -> bool:
    """Whether a world point is in the square image and not at its rim."""
    return bool(np.all(np.abs(project(world, point)[0] - 0.5) < 0.47))


def _free_place(world: World, index: int) -> np.ndarray:
    """A place (x, y) on the table, away from the other objects and from where it came."""
    half, here = world.spec.table_half, world.position(index)
    best, best_score = np.zeros(2), -np.inf
    for _ in range(24):
        place = np.array(
            [
                world.rng.uniform(-half[0] + 0.075, half[0] - 0.075),
                world.rng.uniform(-half[1] + 0.07, half[1] - 0.07),
            ]
        )
        gaps = [
            float(np.linalg.norm(world.position(i)[:2] - place))
            for i in range(world.count)
            if i != index
        ]
        if not well_in_view(world, np.array([*place, 0.03])):
            continue
        score = min([*gaps, 0.16]) + 0.4 * min(0.2, float(np.linalg.norm(place - here[:2])))
        if score > best_score:
            best, best_score = place, float(score)
    return best


def _release(world: World) -> Motion:
    world.detach()
    yield from squeeze(
        world, min(MAX_OPENING, world.finger_opening + 0.016), world.rng.uniform(0.18, 0.3)
    )


def _carry(world: World, index: int) -> Motion:
    place = _free_place(world, index)
    offset = world.setpoint[:2] - world.position(index)[:2]
    goal = np.array(
        [*(place + offset), world.setpoint[2] + world.rng.uniform(-0.02, 0.02), world.setpoint[3]]
    )
    yield from travel(world, goal, max(0.9, _duration(world, goal, world.rng.uniform(0.14, 0.24))))


def pick_and_place(world: World, index: int) -> Motion:
    """Grasps an object, carries it to a free place and puts it down."""
    yield from grasp(world, index)
    if not world.is_grasped(index):
        yield from _release(world)
        return
    bottom = world.setpoint[2]
    yield from lift(world, world.rng.uniform(0.07, 0.115))
    yield from _carry(world, index)
    down = world.setpoint.copy()
    down[2] = bottom + 0.003
    yield from travel(world, down, world.rng.uniform(0.7, 1.0))
    yield from _release(world)
    yield from wait(world, 0.1)


def pick_and_drop(world: World, index: int) -> Motion:
    """Grasps an object, lifts it, perhaps carries it, and lets it fall."""
    yield from grasp(world, index)
    if not world.is_grasped(index):
        yield from _release(world)
        return
    yield from lift(world, world.rng.uniform(0.08, 0.13))
    if world.rng.random() < 0.6:
        yield from _carry(world, index)
    yield from wait(world, world.rng.uniform(0.1, 0.3))
    yield from _release(world)
    yield from wait(world, world.rng.uniform(0.5, 0.9))


def _half_extent(world: World, index: int, direction: np.ndarray) -> float:
    """Half the object's width along a horizontal direction (m)."""
    item, rotation = world.object(index), world.rotation(index)
    if item.shape == "ball":
        return item.radius
    half = np.array([item.radius, item.length, item.height / 2])
    local = rotation.T @ np.array([*direction, 0.0])
    if item.shape in TALL:
        along = abs(local[2])
        return float(item.radius * np.sqrt(max(0.0, 1 - along**2)) + half[2] * along)
    return float(np.abs(local) @ half)


def _clear_direction(world: World, index: int, distance: float, leave: bool) -> np.ndarray:
    """A horizontal unit vector to push along, with room for the fingers and a free path."""
    half, here = np.array(world.spec.table_half), world.position(index)[:2]
    others = [world.position(i)[:2] for i in range(world.count) if i != index]
    best, best_cost = np.array([1.0, 0.0]), np.inf
    for angle in world.rng.uniform(-np.pi, np.pi, 16):
        way = np.array([np.cos(angle), np.sin(angle)])
        start = here - way * (_half_extent(world, index, way) + 0.035)
        end = here + way * distance
        cost = sum(2.0 for other in others if np.linalg.norm(other - start) < 0.075)
        for along in (0.5, 1.0):
            point = here + along * (end - here)
            cost += sum(0.5 for other in others if np.linalg.norm(other - point) < 0.085)
        outside = bool(np.any(np.abs(end) > half - 0.035))
        gone = bool(np.any(np.abs(end) > half + 0.01))
        cost += 3.0 if (not gone if leave else outside) else 0.0
        cost += 0.0 if leave or well_in_view(world, np.array([*end, 0.03])) else 1.5
        cost += 0.6 * max(0.0, way[1])  # away from the camera: less to see
        cost += world.rng.uniform(0, 0.3)
        if cost < best_cost:
            best, best_cost = way, cost
    return best


def _shove(
    world: World, index: int, way: np.ndarray, z: float, reach_on: float, peak: float,
    opening: float = 0.012,
) -> Motion:  # fmt: skip
    """Comes down behind an object and moves through to `reach_on` m beyond its near side."""
    yield from settled(world, index)
    if not world.on_table(index):
        return
    here = world.position(index)
    extent = _half_extent(world, index, way)
    start = np.array([*(here[:2] - way * (extent + 0.035)), z, _angle(way) + np.pi / 2])
    speed = world.rng.uniform(0.22, 0.4)
    yield from travel(world, start, _duration(world, start, speed), 0.1, opening)
    yield from wait(world, 0.05)
    length = 0.023 + reach_on
    goal = world.setpoint + np.array([*(way * length), 0, 0])
    yield from travel(world, goal, 1.875 * length / peak)


def push(world: World, index: int) -> Motion:
    """Pushes an object low, some 10 cm along the table."""
    distance = world.rng.uniform(0.07, 0.14)
    way = _clear_direction(world, index, distance, False)
    z = max(0.008, min(0.02, 0.3 * world.object(index).height))
    yield from _shove(world, index, way, z, distance, world.rng.uniform(0.12, 0.22))
    yield from wait(world, 0.1)


def _to_edge(world: World, index: int, way: np.ndarray) -> float:
    """How far the object's centre is from the table's edge along `way` (m)."""
    half, here = np.array(world.spec.table_half), world.position(index)[:2]
    along = np.where(np.abs(way) > 1e-6, way, 1e-6)
    return float(np.min((np.sign(along) * half - here) / along))


def push_off(world: World, index: int) -> Motion:
    """Pushes an object over the table's edge."""
    half, here = np.array(world.spec.table_half), world.position(index)[:2]
    distance = float(np.min(half - np.abs(here))) + 0.03
    way = _clear_direction(world, index, distance * 1.15, True)
    z = max(0.008, min(0.02, 0.3 * world.object(index).height))
    yield from _shove(
        world, index, way, z, _to_edge(world, index, way) + 0.03, world.rng.uniform(0.18, 0.3)
    )
    yield from wait(world, world.rng.uniform(0.6, 1.0))


def tip(world: World, index: int) -> Motion:
    """Pushes a tall object near its top with closed fingers, so that it goes over."""
    item = world.object(index)
    way = _clear_direction(world, index, item.height, False)
    height, peak = 0.88 * item.height, world.rng.uniform(0.25, 0.5)
    yield from _shove(world, index, way, height, 0.75 * item.height, peak, opening=-0.003)
    yield from wait(world, world.rng.uniform(0.4, 0.8))


def flick(world: World, index: int) -> Motion:
    """A quick short push, so that the object goes on by itself."""
    ball = world.object(index).shape == "ball"
    peak = world.rng.uniform(0.25, 0.45) if ball else world.rng.uniform(0.75, 1.0)
    way = _clear_direction(world, index, world.rng.uniform(0.15, 0.25), False)
    alone = sum(world.on_table(i) for i in range(world.count)) == 1
    if ball and (alone or world.rng.random() < 0.6):  # slow enough to stop on the table
        peak = min(peak, float(np.sqrt(0.32 * max(0.04, _to_edge(world, index, way)))))
    z = world.object(index).radius - 0.01 if ball else 0.3 * world.object(index).height
    yield from _shove(world, index, way, max(0.008, z), 0.035 if ball else 0.05, peak)
    yield from wait(world, world.rng.uniform(0.8, 1.4))


def parking_place(world: World, at_edge: bool) -> np.ndarray:
    """Out of the view beyond its upper edge, or with `at_edge` just inside it."""
    x, yaw = world.rng.uniform(-0.2, 0.2), world.rng.uniform(-0.5, 0.5)
    limit = world.rng.uniform(0.06, 0.12) if at_edge else -0.1
    for s in np.linspace(0, 1, 40):
        place = np.array([x, 0.1 + 0.3 * s, 0.18 + 0.37 * s, yaw])
        if project(world, place[:3])[0, 1] < limit:
            break
    return place


def park(world: World, at_edge: bool = False) -> Motion:
    """Moves the gripper out of the view."""
    goal = parking_place(world, at_edge)
    yield from travel(world, goal, _duration(world, goal, world.rng.uniform(0.2, 0.32)))
    yield from travel(world, goal, 0.2, opening=0.03)


def pass_hand(world: World) -> Motion:
    """A hand sweeps across the table, above the objects, and leaves."""
    side = world.rng.choice([-1.0, 1.0])
    depth, height = world.rng.uniform(-0.08, 0.06), world.rng.uniform(0.12, 0.17)
    seconds = world.rng.uniform(2.6, 4.2)
    returns = world.rng.random() < 0.4
    ticks = round(seconds / TICK)
    for tick in range(ticks):
        s = tick / ticks
        along = 0.5 * (0.9 * np.sin(np.pi * s) * 2 - 1) if returns else s - 0.5
        world.hand = np.array([side * along, depth - 0.12 * abs(along), height + 0.05 * abs(along)])
        world.hand_yaw = -side * along * 0.6
        yield
    world.hand = np.array([0.0, 0.0, -5.0])
    yield


def cover(world: World, index: int) -> Motion:
    """A hand comes between the camera and an object, stays a while, and leaves."""
    position = world.position(index)
    eye = world.model.cam_pos[world.model.camera("view").id]
    way = (eye - position) / np.linalg.norm(eye - position)
    over = position + way * world.rng.uniform(0.07, 0.11)
    over[:2] += world.rng.uniform(-0.008, 0.008, 2)
    side = world.rng.choice([-1.0, 1.0])
    outside = np.array([side * 0.5, over[1] - 0.1, over[2] + 0.04])
    yaw = side * world.rng.uniform(0.0, 0.5)
    come, leave = world.rng.uniform(0.9, 1.6, 2)
    for ticks, fractions in (
        (round(come / TICK), (0.0, 1.0)),
        (round(world.rng.uniform(1.0, 2.6) / TICK), (1.0, 1.0)),
        (round(leave / TICK), (1.0, 0.0)),
    ):
        for tick in range(1, ticks + 1):
            near = fractions[0] + (fractions[1] - fractions[0]) * _ease(tick / ticks)
            world.hand = outside + near * (over - outside)
            world.hand_yaw = yaw * near
            yield
    world.hand = np.array([0.0, 0.0, -5.0])
    yield
