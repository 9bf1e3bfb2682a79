"""Who does which task: order, retries, renewal; with workers that are made up, and processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import pytest
from mortal import Mortal, dead, no_file, squares

from vljepa_ros.errors import VLJepaError
from vljepa_ros.workers.pool import (
    AHEAD,
    TRIES,
    Died,
    Done,
    Failed,
    LostError,
    Message,
    Pool,
    Ready,
    Told,
    in_order,
)
from vljepa_ros.workers.processes import Processes


class Made(Pool[Any, Any]):
    """Workers without life: `does(worker, task)` says what one says of its task.

    The newest task is answered first, so that results come in the wrong order.
    """

    def __init__(self, size: int, does: Any, begins: Any = lambda worker: Ready()) -> None:
        self.size, self._does, self._begins = size, does, begins
        self._begun = deque[tuple[int, Message]]()
        self._said: list[list[tuple[int, Message]]] = []
        self.begun = 0
        self.given: list[tuple[int, Any]] = []
        self.ended: list[int] = []

    def begin(self) -> int:
        self.begun += 1
        self._begun.append((self.begun, self._begins(self.begun)))
        return self.begun

    def give(self, worker: int, task: Any) -> None:
        self.given.append((worker, task))
        self._said.append([(worker, one) for one in self._does(worker, task)])

    def end(self, worker: int) -> None:
        self.ended.append(worker)

    def heard(self) -> list[tuple[int, Message]]:
        if self._begun:
            return [self._begun.popleft()]
        assert self._said, "nothing is to come: it would hang"
        return self._said.pop()

    def close(self) -> None:
        pass


def done(worker: int, task: Any) -> list[Message]:
    return [Done((worker, task))]


def test_results_come_in_the_order_of_the_tasks() -> None:
    pool = Made(3, done)
    found = list(in_order(pool, range(20)))
    assert [task for task, _ in found] == list(range(20))
    assert [result[1] for _, result in found] == list(range(20))
    assert {worker for worker, _ in pool.given} == {1, 2, 3}


def test_fewer_tasks_than_workers_begin_fewer() -> None:
    pool = Made(8, done)
    assert len(list(in_order(pool, "ab"))) == pool.begun == 2
    assert list(in_order(Made(8, done), "")) == []


def test_results_that_are_held_are_bounded() -> None:
    """The first task is never done: the others go only so far ahead."""
    pool = Made(2, lambda worker, task: done(worker, task) if task else [])
    with pytest.raises(AssertionError, match="it would hang"):
        next(in_order(pool, range(100)))
    assert max(task for _, task in pool.given) == 2 * AHEAD - 1


def test_a_task_whose_worker_dies_is_done_by_another_and_comes_first() -> None:
    said: list[str] = []
    told: list[float] = []

    def does(worker: int, task: int) -> list[Message]:
        if task == 3 and len(lived) < 2:
            lived.add(worker)
            return [Told(7.0), Died("signal 9")]
        return done(worker, task)

    lived = set[int]()
    pool = Made(1, does)
    found = list(in_order(pool, range(6), told.append, said.append))
    assert [result for _, result in found][2:4] == [(1, 2), (3, 3)] and lived == {1, 2}
    assert [task for _, task in pool.given] == [0, 1, 2, 3, 3, 3, 4, 5]
    assert said == ["A worker died (signal 9) at 3, which another does again."] * 2
    assert told[-1] == 0  # what a dead one had done is not counted


def test_a_task_that_kills_every_worker_is_left_out_and_the_others_are_done() -> None:
    pool = Made(2, lambda worker, task: [Died("signal 9")] if task == 1 else done(worker, task))
    found = [result for _, result in in_order(pool, range(5))]
    assert isinstance(found[1], LostError) and [r[1] for r in (found[0], *found[2:])] == [
        0,
        2,
        3,
        4,
    ]
    assert f"1 is left out: {TRIES} workers died of it, the last of signal 9" in str(found[1])
    assert len([task for _, task in pool.given if task == 1]) == TRIES


def test_workers_that_die_as_they_begin_are_no_loop() -> None:
    pool = Made(2, done, lambda worker: Died("signal 9"))
    with pytest.raises(VLJepaError, match="3 workers died as they began, the last of signal 9"):
        list(in_order(pool, range(5)))
    pool = Made(2, done, lambda worker: Ready() if worker == 2 else Died("signal 9"))
    assert len(list(in_order(pool, range(5)))) == 5
    assert {worker for worker, _ in pool.given} == {2} and pool.begun == TRIES + 1


def test_that_no_worker_begins_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(Made):
        silent = 3

        def heard(self) -> list[tuple[int, Message]]:
            self.silent -= 1
            return [] if self.silent >= 0 else super().heard()

    monkeypatch.setattr("vljepa_ros.workers.pool.PATIENCE", -1.0)
    said: list[str] = []
    assert len(list(in_order(Late(2, done), "abc", say=said.append))) == 3
    assert [one[:41] for one in said] == ["Still waiting for the first of 2 workers:"]


def test_a_worker_that_fails_ends_it() -> None:
    with pytest.raises(VLJepaError, match="no disk"):
        list(in_order(Made(2, lambda worker, task: [Failed("no disk")]), range(5)))
    with pytest.raises(RuntimeError, match=r"A worker failed\.\nTraceback of it"):
        list(in_order(Made(2, lambda worker, task: [Failed("x", "Traceback of it")]), range(5)))


def test_workers_are_renewed() -> None:
    pool = Made(2, done)
    assert len(list(in_order(pool, range(12), renew=3))) == 12
    per_worker = [sum(worker == one for one, _ in pool.given) for worker in range(1, 6)]
    assert max(per_worker) == 3 and sum(per_worker) == 12
    assert len(pool.ended) == per_worker.count(3)


# --- processes ---


def run(pool: Pool[Any, Any], tasks: list[Any]) -> list[Any]:
    try:
        return [result for _, result in in_order(pool, tasks)]
    finally:
        pool.close()


def test_processes_do_it_and_one_that_is_killed_is_replaced(tmp_path: Path) -> None:
    grave = tmp_path / "grave"
    found = run(Processes(Mortal(squares, "5", 1, grave), 2), list(range(9)))
    assert [square for square, _ in found] == [k * k for k in range(9)]
    workers = {pid for _, pid in found}
    assert int(grave.read_text()) != found[5][1] and os.getpid() not in workers
    for pid in workers:
        assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    ("opening", "kind", "said"),
    [
        (squares, RuntimeError, "A worker failed.\nTraceback (.|\n)*TypeError"),
        (no_file, VLJepaError, "^/not/there: No such file or directory; check the path.$"),
        (dead, VLJepaError, "workers died as they began, the last of signal 9"),
    ],
)
def test_what_goes_wrong_in_a_process_is_said_here(
    opening: Any, kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        run(Processes(opening, 1), ["text"])


def test_processes_end_with_their_parent_and_ctrl_c_is_not_for_them() -> None:
    code = """
import os, time
from mortal import squares
from vljepa_ros.workers.pool import Ready
from vljepa_ros.workers.processes import Processes
if __name__ == "__main__":
    pool = Processes(squares, 2)
    starting = {pool.begin(), pool.begin()}
    while starting:
        starting -= {worker for worker, message in pool.heard() if isinstance(message, Ready)}
    print(*(process.pid for process, _ in pool._workers.values()), flush=True)
    time.sleep(600)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert parent.stdout is not None
    children = [Path("/proc", pid) for pid in parent.stdout.readline().split()]
    assert len(children) == 2
    for child in children:
        assert "spawn_main" in (child / "cmdline").read_text()
        blocked = re.search(r"SigBlk:\s*(\w+)", (child / "status").read_text())
        assert blocked and int(blocked[1], 16) >> (signal.SIGINT - 1) & 1
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 60
    for child in children:
        while lives(child):
            assert time.monotonic() < deadline, "a child outlives its parent"
            time.sleep(0.01)


def lives(process: Path) -> bool:
    try:
        return (process / "stat").read_text().split(") ")[1][0] != "Z"
    except OSError:
        return False
