"""Episodes of a split, simulated by several processes. Invariant: those that are there are kept."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vljepa_ros.errors import VLJepaError

from ..episode import SECONDS, SPLITS
from ..store import save_episode
from .episode import simulate


def _generate_one(job: tuple[Path, int, float]) -> Path:
    path, seed, seconds = job
    save_episode(path, simulate(seed, seconds))
    return path


def generate(
    out_dir: Path,
    split: str,
    episodes: int,
    workers: int = 2,
    seconds: float = SECONDS,
    start: int = 0,
) -> None:
    """Simulates what is missing of a split's `episodes` episodes from number `start` on."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    if split not in SPLITS:
        raise VLJepaError(f"There is no split '{split}'; choose one of {', '.join(SPLITS)}.")
    seeds = range(SPLITS[split] + start, SPLITS[split] + start + episodes)
    paths = [out_dir / split / f"{seed:08d}.npz" for seed in seeds]
    jobs = [(path, seed, seconds) for path, seed in zip(paths, seeds) if not path.exists()]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    (out_dir / split).mkdir(parents=True, exist_ok=True)  # where that cannot be, it fails now
    errors = Console(stderr=True)
    with Progress(*columns, console=errors, disable=not errors.is_terminal) as progress:
        task = progress.add_task(
            f"tabletop {split}", total=episodes, completed=episodes - len(jobs)
        )
        # fork would share the renderer's state; a worker is renewed so that GL memory cannot grow
        context = multiprocessing.get_context("spawn")
        with _without_interrupts():
            pool = context.Pool(workers, maxtasksperchild=200)
        with pool:
            for _ in pool.imap_unordered(_generate_one, jobs, chunksize=2):
                progress.advance(task)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes that are begun here never get SIGINT: on Ctrl-C the pool ends them, without traces.

    So do those that the pool begins later: its threads are begun here, too.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
