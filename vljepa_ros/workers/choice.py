"""Where the workers of a command are. Invariant: theirs are as many engine threads as cores."""

from __future__ import annotations

from .cluster import RayActors
from .pool import Opening, Pool, Result, Task
from .processes import Processes, cores

ON_GPU = ("tensorrt", "tensorrt_rtx", "onnxruntime-cuda")  # backends


def engine_threads(workers: int) -> int:
    """How many threads an engine of each of so many workers on this machine gets."""
    return max(1, cores() // workers)


def open_pool(
    opening: Opening[Task, Result], workers: int, ray: str | None, backend: str = ""
) -> Pool[Task, Result]:
    """The pool that `--workers` (0: not said) and `--ray` (None: not there) mean. VLJepaError.

    `backend`: what runs the engines; where that is one of ON_GPU, by name, each worker on a
    cluster takes a GPU.
    """
    if ray is None:
        return Processes(opening, workers)
    return RayActors(opening, ray, workers, int(backend in ON_GPU))
