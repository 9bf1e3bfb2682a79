"""Which skills follow each other in an episode, and the pauses between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ..vocabulary import held_out
from . import skills
from .scene import TALL
from .world import World

_PRODUCES = {
    skills.reach: ("reach",),
    skills.pick_and_place: ("reach", "pick_up", "carry", "put_down"),
    skills.pick_and_drop: ("reach", "pick_up", "carry", "drop"),
    skills.push: ("push",),
    skills.push_off: ("push", "fall_off"),
    skills.tip: ("tip_over",),
    skills.flick: ("roll", "slide"),
}
_WEIGHTS = {
    skills.reach: 0.5,
    skills.pick_and_place: 2.0,
    skills.pick_and_drop: 1.7,
    skills.push: 1.5,
    skills.push_off: 0.9,
    skills.tip: 1.8,
    skills.flick: 2.8,
}


@dataclass(frozen=True)
class Rhythm:
    """How dense an episode is: the chance to park after a skill, and the pause then (s)."""

    park: float
    pause: tuple[float, float]
    hand: float


BUSY = Rhythm(park=0.35, pause=(0.0, 1.2), hand=0.4)
CALM = Rhythm(park=1.0, pause=(2.0, 6.0), hand=0.35)


def _possible(world: World, index: int, seconds_left: float) -> list[Callable[..., Iterator[None]]]:
    item = world.object(index)
    upright = abs(world.rotation(index)[2, 2]) > 0.9
    on_table = sum(world.on_table(i) for i in range(world.count))
    choices = [skills.reach, skills.pick_and_place, skills.pick_and_drop]
    if item.shape != "ball":
        choices.append(skills.push)
    if on_table > 1 or seconds_left < 8:
        choices.append(skills.push_off)
    if item.shape in TALL and upright and item.friction > 0.4:
        choices.append(skills.tip)
    if item.shape == "ball" or (item.friction < 0.2 and (upright or item.shape not in TALL)):
        choices.append(skills.flick)
    return choices


def choose(
    world: World, seconds_left: float, prefer_held_out: bool, done: Counter[str] | None = None
) -> Iterator[None] | None:
    """A random skill on a random object that is on the table; None when the table is empty.

    With `done`, skills done before become less likely; the choice is counted there.
    """
    options, weights = [], []
    for index in range(world.count):
        if not (world.on_table(index) and skills.well_in_view(world, world.position(index))):
            continue
        item = world.object(index)
        for skill in _possible(world, index, seconds_left):
            weight = _WEIGHTS[skill]
            if prefer_held_out:
                kinds = _PRODUCES[skill]
                weight *= (
                    6.0 if any(held_out(item.colour, item.shape, kind) for kind in kinds) else 1.0
                )
            if done is not None:
                weight /= 6.0 ** done[skill.__name__]
            options.append((skill, index))
            weights.append(weight)
    if not options:
        return None
    share = np.array(weights) / np.sum(weights)
    skill, index = options[world.rng.choice(len(options), p=share)]
    if done is not None:
        done[skill.__name__] += 1
    return skill(world, index)


def with_hand(world: World, prefer_held_out: bool) -> Iterator[None]:
    """A hand passes by, or more often covers something."""
    weights = {}
    for index in range(world.count):
        item, position = world.object(index), world.position(index)
        if world.on_table(index) and skills.well_in_view(world, position):
            pair = (item.colour, item.shape)
            rare = prefer_held_out and any(held_out(*pair, kind) for kind in ("cover", "uncover"))
            weights[index] = 6.0 if rare else 1.0
    if not weights or world.rng.random() < 0.35:
        return skills.pass_hand(world)
    share = np.array(list(weights.values())) / sum(weights.values())
    return skills.cover(world, int(world.rng.choice(list(weights), p=share)))


def mixed(world: World, seconds: float, rhythm: Rhythm, prefer_held_out: bool) -> Iterator[None]:
    """Skills without end, with pauses by `rhythm`."""
    rng = world.rng
    parked = True
    yield from skills.wait(world, rng.uniform(0, 1.5) if rhythm is BUSY else rng.uniform(0.5, 4))
    while True:
        skill = choose(world, seconds - world.time, prefer_held_out)
        if skill is not None:
            yield from skill
            parked = False
        if not parked and (skill is None or rng.random() < rhythm.park):
            yield from skills.park(world, at_edge=rng.random() < 0.15)
            parked = True
        if parked:
            yield from skills.wait(world, rng.uniform(*rhythm.pause))
            if rng.random() < (0.5 if skill is None else rhythm.hand):
                yield from with_hand(world, prefer_held_out)
                yield from skills.wait(world, rng.uniform(0.3, rhythm.pause[1]))
            elif skill is None:
                yield from skills.wait(world, 2.0)


def poisson(world: World, seconds: float, mean_gap: float) -> Iterator[None]:
    """Skills of every kind at Poisson times: exponential pauses with a mean of `mean_gap` s."""
    rng = world.rng
    done: Counter[str] = Counter()
    while True:
        yield from skills.wait(world, 0.5 + rng.exponential(mean_gap))
        skill = None if rng.random() < 0.2 else choose(world, seconds - world.time, False, done)
        if skill is None:
            yield from with_hand(world, False)
        else:
            yield from skill
            yield from skills.park(world)
