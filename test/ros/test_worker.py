"""The worker's thread: jobs, work, and what goes wrong in them."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Generator, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("rclpy", reason="ROS 2 is not there")

from rclpy.task import Future

from vljepa_ros.ros.worker import Worker


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


def pieces(log: list[str], name: str, count: int) -> Generator[None, None, str]:
    """A job of `count` pieces."""
    for k in range(count):
        log.append(f"{name}{k}")
        if k < count - 1:
            yield
    return name


def turns(jobs: list[int], work: int) -> tuple[list[str], list[Future]]:
    """The order in which a worker does jobs of so many pieces, and `work` pieces of its own.

    All of it is there before the first turn, as the worker's thread is held up until then.
    """
    log: list[str] = []
    left = [work]
    begun, held, ended = threading.Event(), threading.Event(), threading.Semaphore(0)

    def step() -> bool:
        left[0] -= 1
        log.append("work")
        if left[0] == 0:
            ended.release()
        return left[0] > 0

    def hold() -> None:
        begun.set()
        held.wait()

    worker = Worker("test", step)
    worker.submit(hold, Future())
    assert begun.wait(10)
    if work:
        worker.wake()
    futures = [Future() for _ in jobs]
    for k, (n, future) in enumerate(zip(jobs, futures)):
        future.add_done_callback(lambda _: ended.release())
        worker.submit(lambda k=k, n=n: pieces(log, "abcdefgh"[k], n), future)
    held.set()
    for _ in range(len(jobs) + bool(work)):
        assert ended.acquire(timeout=10)
    assert worker.close(10)
    return log, futures


@given(st.lists(st.integers(1, 5), max_size=8), st.integers(0, 10))
def test_jobs_and_work_take_turns_and_jobs_go_round(jobs: list[int], work: int) -> None:
    log, futures = turns(jobs, work)
    assert [future.result() for future in futures] == list("abcdefgh"[: len(jobs)])
    assert sorted(log) == sorted(
        ["work"] * work + [f"{'abcdefgh'[k]}{i}" for k, n in enumerate(jobs) for i in range(n)]
    )
    # While both wait, neither has two turns in a row.
    done = [entry for entry in log if entry != "work"]
    both = log[: 2 * min(work, len(done))]
    assert all((a == "work") != (b == "work") for a, b in itertools.pairwise(both))
    # Every job has had its k-th turn before another has its next.
    assert [int(entry[1:]) for entry in done] == sorted(int(entry[1:]) for entry in done)


def test_many_jobs_do_not_keep_the_work_waiting() -> None:
    log, _ = turns([1] * 8, 4)
    assert [k for k, entry in enumerate(log) if entry == "work"] == [0, 2, 4, 6]


def test_a_piece_that_raises_is_the_jobs_error(start: Callable[..., Worker]) -> None:
    def job() -> Generator[None, None, None]:
        yield
        raise KeyError("in the second piece")

    with pytest.raises(KeyError, match="in the second piece"):
        start(lambda: False).call(job)


def test_the_end_refuses_what_waits_and_runs_one_last_job() -> None:
    worker = Worker("test", lambda: False)
    begun, held, closed = threading.Event(), threading.Event(), []

    def endless() -> Generator[None, None, None]:
        try:
            while True:
                begun.set()
                held.wait()
                yield
        finally:
            closed.append(threading.current_thread().name)

    futures = [worker.submit(endless, Future()), worker.submit(lambda: 7, Future())]
    assert begun.wait(10)
    threading.Timer(0.01, held.set).start()
    assert worker.finish(lambda: threading.current_thread().name) == "test"
    assert closed == ["test"]
    assert isinstance(futures[0].exception(), RuntimeError)
    assert isinstance(futures[1].exception(), RuntimeError) or futures[1].result() == 7
    assert worker.close()
    with pytest.raises(RuntimeError, match="ended"):
        worker.call(lambda: 7)
