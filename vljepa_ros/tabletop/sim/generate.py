"""Episodes of a split, simulated by workers. Invariant: those that are there are kept."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

from vljepa_ros.errors import VLJepaError
from vljepa_ros.workers.pool import LostError, Opening, Pool, Work, in_order
from vljepa_ros.workers.processes import Processes

from ..episode import SECONDS, SPLITS, Episode
from ..store import save_episode
from .episode import simulate

RENEW = 200  # episodes after which a worker is renewed, so that its renderer's memory cannot grow


@dataclass(frozen=True)
class Scene:
    """What is to be simulated: an episode of `seconds`."""

    seed: int
    seconds: float

    def __str__(self) -> str:
        return f"Episode {self.seed}"


def opening() -> Work[Scene, Episode]:
    """What a worker opens: nothing yet."""
    return _simulated


def _simulated(scene: Scene) -> Generator[float, None, Episode]:
    yield 0.0
    return simulate(scene.seed, scene.seconds)


def processes(opening: Opening[Scene, Episode]) -> Pool[Scene, Episode]:
    """Two processes of this machine."""
    return Processes(opening, 2)


def generate(
    out_dir: Path,
    split: str,
    episodes: int,
    seconds: float = SECONDS,
    start: int = 0,
    pool: Callable[[Opening[Scene, Episode]], Pool[Scene, Episode]] = processes,
    say: Callable[[str], None] = lambda sentence: None,
) -> None:
    """Simulate what is missing of a split's `episodes` episodes from number `start` on.

    `pool` makes the workers, which touch no file; `say` is told of one that died.
    """
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
    first = SPLITS[split] + start
    paths = {seed: out_dir / split / f"{seed:08d}.npz" for seed in range(first, first + episodes)}
    scenes = [Scene(seed, seconds) for seed, path in paths.items() if not path.exists()]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    (out_dir / split).mkdir(parents=True, exist_ok=True)  # where that cannot be, it fails now
    if not scenes:
        return
    errors = Console(stderr=True)
    workers = pool(opening)
    try:
        with Progress(*columns, console=errors, disable=not errors.is_terminal) as progress:
            task = progress.add_task(
                f"tabletop {split}", total=episodes, completed=episodes - len(scenes)
            )
            for scene, made in in_order(workers, scenes, say=say, renew=RENEW):
                if isinstance(made, LostError):
                    raise made
                save_episode(paths[scene.seed], made)
                progress.advance(task)
    finally:
        workers.close()
