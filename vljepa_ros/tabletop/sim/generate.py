"""Episodes of a split, simulated by several processes. Invariant: those that are there are kept."""

from __future__ import annotations

import multiprocessing
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
    with Progress(*columns) as progress:
        task = progress.add_task(
            f"tabletop {split}", total=episodes, completed=episodes - len(jobs)
        )
        # fork would share the renderer's state; a worker is renewed so that GL memory cannot grow
        context = multiprocessing.get_context("spawn")
        with context.Pool(workers, maxtasksperchild=200) as pool:
            for _ in pool.imap_unordered(_generate_one, jobs, chunksize=2):
                progress.advance(task)
