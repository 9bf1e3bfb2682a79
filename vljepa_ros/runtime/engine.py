"""Engines: one graph each, run by the best backend that this machine has (design section 6).

Invariant: an engine runs only inputs that match its declared names, dtypes and shapes, and a
backend that was passed over is reported, never silently replaced.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from . import ort
from .bundle import GraphSpec, TensorSpec
from .errors import EngineError

log = logging.getLogger(__name__)


class Engine(Protocol):
    """A graph that is ready to run. `run` is not re-entrant: one thread owns an engine."""

    name: str  # the graph's name
    backend: str
    precision: str
    device: str
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]

    def run(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs by name, fresh arrays. EngineError where an input does not match its spec."""
        ...

    def close(self) -> None:
        """Release the engine's memory; it cannot run afterwards."""
        ...


@dataclass(frozen=True)
class BackendReport:
    """Whether a backend can run here; if not, why, and what would make it run."""

    backend: str
    available: bool
    reason: str
    fix: str


@dataclass(frozen=True)
class _Backend:
    """A row of the table: `missing` says (reason, fix) or None where the backend can run."""

    name: str
    missing: Callable[[], tuple[str, str] | None]
    open: Callable[[GraphSpec, int], Engine] | None


def _not_built() -> tuple[str, str]:
    return (
        "the TensorRT backend is not part of this version",
        "nothing to install: use onnxruntime-cuda or onnxruntime-cpu",
    )


# In order of preference.
_BACKENDS = (
    _Backend("tensorrt", _not_built, None),
    _Backend("tensorrt_rtx", _not_built, None),
    _Backend("onnxruntime-cuda", ort.cuda_missing, functools.partial(ort.OrtEngine, cuda=True)),
    _Backend("onnxruntime-cpu", ort.cpu_missing, functools.partial(ort.OrtEngine, cuda=False)),
)

_reported: set[str] = set()


def backends() -> list[BackendReport]:
    """Every backend in order of preference, and whether it can run on this machine."""
    reports = []
    for backend in _BACKENDS:
        reason, fix = backend.missing() or ("", "")
        reports.append(BackendReport(backend.name, not reason, reason, fix))
    return reports


def open_engine(graph: GraphSpec, backend: str = "auto", threads: int = 0) -> Engine:
    """Open `graph` with the named backend, or with the first of `backends()` that works.

    `threads`: CPU threads for one run; 0 leaves the choice to the backend. Raises EngineError
    where the backend is unknown or unavailable, or the graph does not load or does not have the
    inputs and outputs that `graph` declares.
    """
    names = [b.name for b in _BACKENDS]
    if backend != "auto" and backend not in names:
        raise EngineError(f"Unknown backend '{backend}'; use auto or one of {', '.join(names)}.")
    passed_over: list[str] = []
    for candidate in _BACKENDS:
        if backend not in ("auto", candidate.name):
            continue
        missing = candidate.missing()
        if missing is not None or candidate.open is None:
            reason, fix = missing or _not_built()
            if backend != "auto":
                raise EngineError(f"The backend {backend} is not available: {reason}; {fix}.")
            passed_over.append(f"{candidate.name} ({reason})")
            continue
        try:
            engine = candidate.open(graph, threads)
        except ort.DeviceError as error:
            if backend != "auto":
                raise
            _report_once(logging.WARNING, f"{candidate.name} failed and is passed over: {error}")
            passed_over.append(f"{candidate.name} ({error})")
            continue
        if passed_over:
            _report_once(
                logging.INFO, f"Running on {candidate.name}; not on {', '.join(passed_over)}."
            )
        return engine
    raise EngineError(f"No backend can run '{graph.name}': {'; '.join(passed_over)}.")


def _report_once(level: int, message: str) -> None:
    if message not in _reported:
        _reported.add(message)
        log.log(level, message)
