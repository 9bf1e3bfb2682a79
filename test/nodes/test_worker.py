"""The worker's thread: jobs, work, and what goes wrong in them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not there")

from vljepa_ros.nodes.worker import Worker


@pytest.fixture
def start() -> Iterator[Callable[[Callable[[], bool]], Worker]]:
    workers: list[Worker] = []

    def begin(work: Callable[[], bool]) -> Worker:
        workers.append(Worker("test", work))
        return workers[-1]

    yield begin
    for worker in workers:
        assert worker.close()


def test_it_works_until_there_is_no_more(start: Callable[..., Worker]) -> None:
    left, done = [3], threading.Event()

    def work() -> bool:
        left[0] -= 1
        if left[0] == 0:
            done.set()
        return left[0] > 0

    start(work).wake()
    assert done.wait(10)
    assert left == [0]


def test_work_that_raises_is_logged_and_the_thread_goes_on(
    start: Callable[..., Worker], caplog: pytest.LogCaptureFixture
) -> None:
    tried = threading.Event()

    def work() -> bool:
        tried.set()
        raise ZeroDivisionError("in the work")

    worker = start(work)
    worker.wake()
    assert tried.wait(10)
    assert worker.call(threading.current_thread).name == "test"
    assert "in the work" in caplog.text


def test_a_job_gives_its_result_or_its_error(start: Callable[..., Worker]) -> None:
    worker = start(lambda: False)
    assert worker.call(lambda: 7) == 7
    with pytest.raises(KeyError):
        worker.call(lambda: {}["nothing"])
    assert worker.close()
    with pytest.raises(RuntimeError, match="ended"):
        worker.call(lambda: 7)
