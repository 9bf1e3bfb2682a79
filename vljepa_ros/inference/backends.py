"""The table of backends, and how a graph gets its engine: the best that this machine has.

Invariant: a backend that was passed over is reported, never silently replaced. Importing this
imports no backend's library.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from vljepa_ros.bundle.graphs import GraphSpec
from vljepa_ros.errors import BuildError, DeviceError, EngineError, PrecisionError

from . import openvino, ort
from .engine import PRECISIONS, Engine, Report
from .trt.library import missing as trt_missing
from .trt.open import open_trt, to_build

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BackendReport:
    """Whether a backend can run here; if not, why, and what would make it run.

    `by_name`: it runs only where it is asked for by name.
    """

    backend: str
    available: bool
    reason: str
    fix: str
    by_name: bool


@dataclass(frozen=True)
class _Backend:
    """A row of the table.

    `missing` says (reason, fix) or None where the backend can run; `builds` whether it would have
    to build an engine before it could open it. `by_name`: never taken by auto.
    """

    name: str
    missing: Callable[[], tuple[str, str] | None]
    open: Callable[[GraphSpec, int, str, Report | None], Engine]
    builds: Callable[[GraphSpec, str], bool] = lambda graph, precision: False
    by_name: bool = False


def _tensorrt(library: str) -> _Backend:
    return _Backend(
        library,
        functools.partial(trt_missing, library),
        lambda graph, _threads, precision, report: open_trt(graph, library, precision, report),
        lambda graph, precision: to_build(graph, library, precision),
    )


def _onnxruntime(name: str, missing: Callable[[], tuple[str, str] | None], cuda: bool) -> _Backend:
    return _Backend(
        name,
        missing,
        lambda graph, threads, precision, _: ort.OrtEngine(graph, threads, precision, cuda=cuda),
    )


# In order of preference.
_BACKENDS = (
    _tensorrt("tensorrt"),
    _tensorrt("tensorrt_rtx"),
    _onnxruntime("onnxruntime-cuda", ort.cuda_missing, cuda=True),
    _onnxruntime("onnxruntime-cpu", ort.cpu_missing, cuda=False),
    _Backend(
        "openvino",
        openvino.missing,
        lambda graph, threads, precision, _: openvino.OpenVinoEngine(graph, threads, precision),
        by_name=True,  # where it is installed for something else, embeddings shall not change
    ),
)
BACKENDS = tuple(backend.name for backend in _BACKENDS)

_reported: set[str] = set()


def backends() -> list[BackendReport]:
    """Every backend in order of preference, and whether it can run on this machine."""
    reports = []
    for backend in _BACKENDS:
        reason, fix = backend.missing() or ("", "")
        reports.append(BackendReport(backend.name, not reason, reason, fix, backend.by_name))
    return reports


def open_engine(
    graph: GraphSpec,
    backend: str = "auto",
    threads: int = 0,
    precision: str = "auto",
    report: Report | None = None,
    but: Collection[str] = (),
    build: bool = True,
) -> Engine:
    """Open `graph` with the named backend, or with the first of `backends()` that works.

    `threads`: CPU threads for one run; 0 leaves the choice to the backend. `precision`: one of
    PRECISIONS; auto is what the backend runs fastest within the bundle's tolerance. A backend that
    has to build the engine first does so now, which takes minutes, and tells `report`; without
    `build` it is passed over. `but`: backends passed over by auto, which also takes another
    precision where a backend does not have the one asked for. Raises EngineError where the backend
    is unknown or unavailable, does not have the precision, or the graph does not load or does not
    have the inputs and outputs that `graph` declares.
    """
    passed_over: list[str] = []
    for candidate in _candidates(backend, precision, but, passed_over):
        if not build and candidate.builds(graph, precision):
            passed_over.append(f"{candidate.name} (its engine is not built yet)")
            continue
        try:
            engine = _open(candidate, graph, threads, precision, report, strict=backend != "auto")
        except (DeviceError, BuildError) as error:
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


def _open(
    backend: _Backend, graph: GraphSpec, threads: int, precision: str, report: Report | None,
    strict: bool,
) -> Engine:  # fmt: skip
    """Open with one backend; unless `strict`, in a precision that it has rather than not at all."""
    try:
        return backend.open(graph, threads, precision, report)
    except PrecisionError as error:
        if strict:
            raise
        _report_once(logging.WARNING, f"{backend.name}: {error} It runs in the backend's own.")
        return backend.open(graph, threads, "auto", report)


def must_build(graph: GraphSpec, backend: str = "auto", precision: str = "auto") -> bool:
    """Whether `open_engine` would build an engine first. EngineError as there."""
    for candidate in _candidates(backend, precision, (), []):
        return candidate.builds(graph, precision)
    return False


def _candidates(
    backend: str, precision: str, but: Collection[str], passed_over: list[str]
) -> Iterator[_Backend]:
    """The backends that may run a graph; those that cannot go to `passed_over`, with reasons."""
    if backend not in ("auto", *BACKENDS):
        raise EngineError(f"Unknown backend '{backend}'; use auto or one of {', '.join(BACKENDS)}.")
    if precision not in PRECISIONS:
        raise EngineError(f"Unknown precision '{precision}'; use one of {', '.join(PRECISIONS)}.")
    for candidate in _BACKENDS:
        if backend == "auto" and (candidate.by_name or candidate.name in but):
            continue
        if backend not in ("auto", candidate.name):
            continue
        missing = candidate.missing()
        if missing is None:
            yield candidate
        elif backend == "auto":
            passed_over.append(f"{candidate.name} ({missing[0]})")
        else:
            reason, fix = missing
            raise EngineError(f"The backend {backend} is not available: {reason}; {fix}.")


def _report_once(level: int, message: str) -> None:
    if message not in _reported:
        _reported.add(message)
        log.log(level, message)
