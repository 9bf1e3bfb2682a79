"""Answers to many callers: few go at once, those to a crowd one by one, and all go."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("rclpy", reason="ROS 2 is not there")

from rclpy.task import Future

from vljepa_ros.ros.pace import KEPT, LONGEST, PER_CALLER, Pace


class Node:
    """What `Pace` needs of a node, with timers that tick when they are told to."""

    waiting_services = steady = None

    def __init__(self) -> None:
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def promise(self) -> Future:
        return Future()

    def create_timer(self, seconds: float, callback: Callable[[], None], *_: Any) -> Any:
        self.timers.append((seconds, callback))
        return self.timers[-1]

    def destroy_timer(self, timer: Any) -> None:
        self.timers.remove(timer)


def start(pace: Pace, count: int) -> list[Coroutine[Any, Any, None]]:
    """So many callers whose answers are there; those that have to wait for their turn."""
    for _ in range(count):
        pace.enter()
    return [one for one in [pace.leave() for _ in range(count)] if not advance(one)]


def advance(answer: Coroutine[Any, Any, None]) -> bool:
    """Whether the answer is on its way."""
    try:
        answer.send(None)
    except StopIteration:
        return True
    return False


@given(st.integers(1, KEPT))
def test_few_do_not_wait(count: int) -> None:
    node = Node()
    assert start(Pace(node), count) == []  # type: ignore[arg-type]
    assert node.timers == []


@given(st.integers(KEPT + 1, 300))
def test_a_crowd_is_answered_one_by_one_in_order_until_few_are_left(count: int) -> None:
    node = Node()
    pace = Pace(node)  # type: ignore[arg-type]
    waiting = start(pace, count)
    assert len(waiting) == count
    ((seconds, tick),) = node.timers
    assert seconds == pytest.approx(min(count * PER_CALLER, LONGEST))
    while len(waiting) > KEPT + 1:
        tick()
        assert advance(waiting.pop(0))
        assert not any(advance(one) for one in waiting)
    tick()
    assert all(advance(one) for one in waiting)
    assert node.timers == []
    assert start(pace, KEPT) == []  # the crowd is forgotten


def test_nobody_waits_when_the_process_ends() -> None:
    node = Node()
    pace = Pace(node)  # type: ignore[arg-type]
    waiting = start(pace, 50)
    pace.hurry = True
    assert start(pace, 50) == []
    node.timers[0][1]()
    assert all(advance(one) for one in waiting)
