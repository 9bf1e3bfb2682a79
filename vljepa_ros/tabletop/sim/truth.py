"""What happened, read from the recorded state alone: per-tick object facts, and events.

The events of an episode are a gap-free list: at every time exactly one is current. Where several
things are true at once the first of `PRIORITY` is named.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from ..episode import Event
from ..vocabulary import FALLEN, HELD, KINDS, MOVING, ON_TABLE, UPRIGHT
from .occlusion import HIDDEN
from .scene import FLOOR, TALL, SceneSpec
from .world import TICK

PRIORITY = (
    "fall_off", "drop", "tip_over", "pick_up", "put_down", "carry", "push", "roll", "slide",
    "cover", "uncover", "hand", "reach", "retreat", "still",
)  # fmt: skip
FLICKER = 0.3  # s; shorter runs of a kind are merged into their neighbours
PAUSE = 0.9  # s; shorter stillness is part of what went before
SHORT = {"drop": 0.8, "fall_off": 0.8, "tip_over": 0.8, "roll": 0.8, "slide": 0.8}  # s; extended to
MOVING_SPEED = 0.02  # m/s
_COASTING_SPEED = 0.035
_GRIPPER_SPEED = 0.02
_SLOW_SPEED = 0.08
_COVERED = 0.7  # s; a hand that goes by hides things for less
_NOTICED = 0.8  # s that hiding or showing lasts beyond the motion


@dataclass(frozen=True)
class InView:
    """What the camera can see at every tick."""

    gripper: np.ndarray  # bool [T]: in the view
    hand: np.ndarray  # bool [T]
    objects: np.ndarray  # bool [T, O]: in the view, or a moment ago
    covered: np.ndarray  # float [T, O]: the share of an object that the hand hides


@dataclass(frozen=True)
class Facts:
    """Per tick and object, from the state history; arrays are [T, O]."""

    held: np.ndarray
    moving: np.ndarray
    upright: np.ndarray
    on_table: np.ndarray
    fallen: np.ndarray
    speed: np.ndarray
    lowest: np.ndarray  # height of the lowest point above the table top, m
    tilt: np.ndarray  # rad, between the object's axis and the vertical

    def bits(self) -> np.ndarray:
        """uint8 [T, O] flags as stored in `object_state`."""
        state = HELD * self.held + MOVING * self.moving + UPRIGHT * self.upright
        return (state + ON_TABLE * self.on_table + FALLEN * self.fallen).astype(np.uint8)


def _axes(quaternion: np.ndarray) -> np.ndarray:
    """The vertical components of the three body axes, [T, O, 3]."""
    w, x, y, z = np.moveaxis(quaternion, -1, 0)
    return np.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], axis=-1)


def facts(spec: SceneSpec, history: dict[str, np.ndarray]) -> Facts:
    """Object facts at every tick; see `World.history` for the arrays."""
    position, up = history["position"], _axes(history["quaternion"])
    extent = np.zeros(position.shape[:2])
    for i, item in enumerate(spec.objects):
        half = np.array([item.radius, item.length, item.height / 2])
        if item.shape == "ball":
            extent[:, i] = item.radius
        elif item.shape in TALL:
            lean = np.abs(up[:, i, 2])
            extent[:, i] = item.radius * np.sqrt(np.maximum(0, 1 - lean**2)) + half[2] * lean
        else:
            extent[:, i] = np.abs(up[:, i]) @ half
    lowest = position[..., 2] - extent
    half_x, half_y = spec.table_half
    over = (np.abs(position[..., 0]) < half_x) & (np.abs(position[..., 1]) < half_y)
    fallen = np.maximum.accumulate(position[..., 2] < -0.03, axis=0)
    speed = np.linalg.norm(history["velocity"], axis=-1)
    spin = np.linalg.norm(history["spin"], axis=-1)
    held = _held(history, lowest)
    ball = np.array([item.shape == "ball" for item in spec.objects])
    turning = (spin > 1.0) & ~ball  # a toppling object turns about a point that rests
    return Facts(
        held=held,
        moving=(speed > MOVING_SPEED) | turning,
        upright=np.abs(up[..., 2]) > 0.9,
        on_table=over & ~fallen & ~held & (lowest < 0.015),
        fallen=fallen,
        speed=speed,
        lowest=lowest,
        tilt=np.arccos(np.clip(np.abs(up[..., 2]), 0, 1)),
    )


def _held(history: dict[str, np.ndarray], lowest: np.ndarray) -> np.ndarray:
    """Between the fingers, and moving as the gripper moves (within 5 cm/s), [T, O]."""
    grip = np.gradient(history["gripper"], TICK, axis=0)
    slip = np.linalg.norm(history["velocity"] - grip[:, None], axis=-1)
    return history["grasped"] & (slip < 0.05 + 0.5 * np.linalg.norm(grip, axis=-1)[:, None])


def _runs(flag: np.ndarray) -> list[tuple[int, int]]:
    """The half-open index ranges where a boolean array is true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flag.astype(np.int8), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist()))


def _bridge(flag: np.ndarray, seconds: float) -> np.ndarray:
    """Fills gaps shorter than `seconds` between true runs."""
    flag, runs = flag.copy(), _runs(flag)
    for (_, end), (start, _) in itertools.pairwise(runs):
        if (start - end) * TICK < seconds:
            flag[end:start] = True
    return flag


class _Canvas:
    """The current kind and object at every tick; a mark never covers one of higher priority."""

    def __init__(self, in_view: np.ndarray) -> None:
        ticks = len(in_view)
        self.in_view = in_view  # [T, O]: what nobody can see has no event
        self.kind = np.full(ticks, PRIORITY.index("still"))
        self.object = np.full(ticks, -1)

    def mark(self, kind: str, item: int, start: int, end: int) -> None:
        rank = PRIORITY.index(kind)
        part = slice(max(0, start), max(0, end))
        free = self.kind[part] > rank
        if item >= 0:
            free &= self.in_view[part, item]
        self.kind[part][free] = rank
        self.object[part][free] = item


def _mark_handling(
    canvas: _Canvas, item: int, facts: Facts, history: dict[str, np.ndarray]
) -> None:
    """pick_up, carry, put_down and drop of one object."""
    rise = np.gradient(history["gripper"][:, 2], TICK)
    closing = np.gradient(history["opening"], TICK) < -0.01
    held = _bridge(facts.held[:, item], 0.2)
    for start, end in _runs(held):
        lowest = facts.lowest[start:end, item]
        if lowest.max() < 0.012:  # squeezed, never lifted
            continue
        begin = max(0, start - 4)  # the fingers stop closing just before the hold counts
        while begin > 0 and closing[begin - 1] and start - begin < 0.6 / TICK:
            begin -= 1
        up = start + int(np.argmax(lowest > 0.012))
        while up < end and rise[up] > 0.02:
            up += 1
        canvas.mark("pick_up", item, begin, up)
        down = end
        while (down > up and rise[down - 1] < -0.02) or (
            down > up and end - down < 0.4 / TICK and lowest[down - 1 - start] < 0.012
        ):
            down -= 1
        canvas.mark("carry", item, up, end)
        if end == len(held):
            if down < end - 0.3 / TICK and lowest[-1] < 0.05:
                canvas.mark("put_down", item, down, end)
        elif facts.lowest[end - 1, item] < 0.015 and not facts.fallen[end - 1, item]:
            canvas.mark("put_down", item, down, end + round(0.25 / TICK))
        else:
            moving = np.flatnonzero(facts.moving[end : end + round(1.0 / TICK), item])
            canvas.mark("drop", item, end, end + 1 + (int(moving[-1]) if len(moving) else 0))


def _mark_falls(
    canvas: _Canvas, item: int, spec: SceneSpec, facts: Facts, history: dict[str, np.ndarray]
) -> None:
    position = history["position"][:, item]
    fallen = facts.fallen[:, item]
    if not fallen.any() or fallen[0]:
        return
    at = int(np.argmax(fallen))
    begin = at
    while begin > 0 and history["velocity"][begin - 1, item, 2] < -0.08 and at - begin < 0.5 / TICK:
        begin -= 1
    floor = at
    while floor < len(fallen) and position[floor, 2] > FLOOR + 0.12 and floor - at < 1.5 / TICK:
        floor += 1
    canvas.mark("fall_off", item, begin, floor)


def _mark_free_motion(
    canvas: _Canvas, item: int, spec: SceneSpec, facts: Facts, history: dict[str, np.ndarray]
) -> None:
    """tip_over, push, roll and slide of one object."""
    held, touched = facts.held[:, item], history["touched"][:, item]
    free = ~held & ~facts.fallen[:, item]
    shape = spec.objects[item].shape
    tilt = facts.tilt[:, item]
    tipping = np.zeros(len(tilt), dtype=bool)
    if shape in TALL:
        for start, end in _runs(tilt > 0.2):
            if start == 0 or tilt[start:end].max() < 1.0 or held[start : start + 8].any():
                continue
            down = (
                start + int(np.argmax(tilt[start:end] > 1.35))
                if tilt[start:end].max() > 1.35
                else end
            )
            tipping[start : down + round(0.25 / TICK)] = True
            canvas.mark("tip_over", item, start, down + round(0.1 / TICK))
    contact = _bridge(touched & free, 0.25)
    for start, end in _runs(contact & free):
        moving = facts.speed[start:end, item] > MOVING_SPEED
        if (
            moving.mean() > 0.2
            and np.linalg.norm(np.ptp(history["position"][start:end, item, :2], axis=0)) > 0.012
        ):
            first = start + int(np.argmax(moving))
            last = end - int(np.argmax(moving[::-1]))
            canvas.mark("push", item, first, last)
    coasting = (
        free
        & ~touched
        & ~tipping
        & (facts.speed[:, item] > _COASTING_SPEED)
        & (facts.lowest[:, item] < 0.02)
    )
    for start, end in _runs(_bridge(coasting, 0.15)):
        way = history["position"][end - 1, item, :2] - history["position"][start, item, :2]
        if np.linalg.norm(way) < 0.03:
            continue
        lying = shape in TALL and tilt[start:end].mean() > 0.8
        canvas.mark("roll" if shape == "ball" or lying else "slide", item, start, end)


def _mark_covering(canvas: _Canvas, item: int, covered: np.ndarray, fallen: np.ndarray) -> None:
    """Cover and uncover of one object: it goes out of sight under the hand, and comes back."""
    hidden = _bridge((covered >= HIDDEN) & ~fallen, 0.2)
    for start, end in _runs(hidden):
        if (end - start) * TICK < _COVERED:
            continue
        begin, last = start, end
        while begin > 0 and covered[begin - 1] > 0.1:
            begin -= 1
        while last < len(covered) and covered[last] > 0.1:
            last += 1
        half = (start + end) // 2
        canvas.mark("cover", item, begin, min(half, start + round(_NOTICED / TICK)))
        canvas.mark("uncover", item, end, last + round(_NOTICED / TICK))


def _approached(distance: np.ndarray, contact: np.ndarray, speed: np.ndarray) -> int | None:
    """The object the gripper goes to, by what follows: distance, contact [W, O]; speed [W]."""
    touch = contact & ~contact[0]
    if touch.any():  # it goes to what it touches first, past whatever is on the way
        at = int(np.argmax(touch.any(axis=1)))
        item = int(np.argmax(touch[at]))
    else:  # passing by is not reaching: only where the gripper slows down counts
        slow = np.where(speed[:, None] < _SLOW_SPEED, distance, np.inf)
        slow[:, distance[0] - slow.min(axis=0) < 0.012] = np.inf
        at, item = (int(i) for i in np.unravel_index(np.argmin(slow), slow.shape))
        if slow[at, item] > 0.11:
            return None
    farther = distance[: at + 1, item].max() - distance[0, item]
    return item if farther < 0.06 else None  # else it goes away first


def _mark_gripper(
    canvas: _Canvas, facts: Facts, history: dict[str, np.ndarray], in_view: np.ndarray
) -> None:
    """Reach and retreat: the gripper moves in the view with nothing held."""
    tips = history["gripper"]
    speed = np.linalg.norm(np.gradient(tips, TICK, axis=0), axis=-1)
    busy = (facts.held | (history["touched"] & facts.moving)).any(axis=1)
    moving = (speed > _GRIPPER_SPEED) & in_view & ~busy
    away = history["position"] - tips[:, None]
    half_height = history["position"][..., 2] - facts.lowest
    away[..., 2] = np.maximum(0, np.abs(away[..., 2]) - half_height)  # to the object's middle line
    distance = np.linalg.norm(away, axis=-1)
    distance[facts.fallen] = 1e3
    contact = facts.held | history["touched"]
    ahead = round(2.5 / TICK)
    for start, end in _runs(~busy):
        for tick in range(start, end):
            if not moving[tick]:
                continue
            # the tick of the touch itself counts: that is where the gripper was going
            window = distance[tick : min(end + 1, tick + ahead)]
            stop = np.flatnonzero(~in_view[tick : tick + len(window)])
            window = window[: stop[0]] if len(stop) else window
            item = _approached(
                window, contact[tick : tick + len(window)], speed[tick : tick + len(window)]
            )
            canvas.mark(
                "retreat" if item is None else "reach", -1 if item is None else item, tick, tick + 1
            )


def _to_runs(canvas: _Canvas) -> list[list[int]]:
    """[rank, object, start, end] runs of the canvas."""
    code = canvas.kind * 100 + canvas.object + 1
    cuts = [0, *(np.flatnonzero(np.diff(code)) + 1).tolist(), len(code)]
    return [[int(canvas.kind[a]), int(canvas.object[a]), a, b] for a, b in itertools.pairwise(cuts)]


def _join(runs: list[list[int]]) -> list[list[int]]:
    joined: list[list[int]] = []
    for run in runs:
        if joined and joined[-1][:2] == run[:2]:
            joined[-1][3] = run[3]
        elif run[3] > run[2]:
            joined.append(list(run))
    return joined


def _merge_flickers(runs: list[list[int]], keep_short: bool) -> list[list[int]]:
    """Gives runs that are too short to their neighbours, the shortest first.

    With `keep_short` the kinds that `_extend_short` will lengthen are left alone.
    """
    still = PRIORITY.index("still")
    while len(runs) > 1:
        lengths = []
        for index, (rank, _, start, end) in enumerate(runs):
            inside = 0 < index < len(runs) - 1
            limit = PAUSE if rank == still and inside else FLICKER
            kept = keep_short and PRIORITY[rank] in SHORT and (end - start) * TICK >= 0.1
            lengths.append(np.inf if kept or (end - start) * TICK >= limit else end - start)
        index = int(np.argmin(lengths))
        if lengths[index] == np.inf:
            return runs
        if index == 0:
            runs[1][2] = runs[0][2]
        else:
            runs[index - 1][3] = runs[index][3]
        del runs[index]
        runs = _join(runs)
    return runs


def _extend_short(runs: list[list[int]], ticks: int) -> list[list[int]]:
    """Lets brief events last long enough to be seen, over what follows unless that matters more."""
    for index, run in enumerate(runs):
        end = min(ticks, run[2] + round(SHORT.get(PRIORITY[run[0]], 0.0) / TICK))
        for later in runs[index + 1 :]:
            if later[0] < run[0]:
                end = min(end, later[2])
        if run[3] >= end:
            continue
        run[3] = end
        for later in runs[index + 1 :]:
            later[2] = max(later[2], end)
            later[3] = max(later[3], end)
    return _join(runs)


def events(
    spec: SceneSpec, history: dict[str, np.ndarray], facts: Facts, seen: InView, until: int
) -> list[Event]:
    """The gap-free list of events of the first `until` ticks.

    What comes later tells where the last motion led.
    """
    canvas = _Canvas(seen.objects)
    for item in range(len(spec.objects)):
        _mark_falls(canvas, item, spec, facts, history)
        _mark_handling(canvas, item, facts, history)
        _mark_free_motion(canvas, item, spec, facts, history)
        _mark_covering(canvas, item, seen.covered[:, item], facts.fallen[:, item])
    for start, end in _runs(seen.hand):
        canvas.mark("hand", -1, start, end)
    _mark_gripper(canvas, facts, history, seen.gripper)
    canvas.kind, canvas.object = canvas.kind[:until], canvas.object[:until]
    runs = _merge_flickers(_to_runs(canvas), keep_short=True)
    runs = _merge_flickers(_extend_short(runs, until), keep_short=False)
    return [
        Event(PRIORITY[rank], item if item >= 0 else None, start * TICK, end * TICK)
        for rank, item, start, end in runs
    ]


assert set(PRIORITY) == set(KINDS)
