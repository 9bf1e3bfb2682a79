"""From a graph to an open engine: out of the cache, or built first, and compared with the CPU.

Invariant: an engine that was opened gives the numbers of its base graph within the graph's
tolerance; one that does not is kept with its figure and refused, not built again and again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import BuildError, EngineError, PrecisionError
from ..graphs import GraphSpec
from . import cache, cuda
from . import library as libraries
from .build import ANY_GPU, ANY_VERSION, Request
from .builder import build_in_child
from .cache import Entry, Key
from .cuda import Device
from .engine import StalePlanError, TrtEngine, profile_shapes
from .numerics import least_cosine

log = logging.getLogger(__name__)

Report = Callable[[str, float], None]

AUTO = ("fp16", "fp32")  # in order of preference
NEEDS = {"bf16": (8, 0), "fp8": (8, 9)}  # the least compute capability
VARIANT_TOLERANCE = 0.995  # least cosine of int8 and fp8 engines
WORKSPACE_MIB = 1024
ANY = "any"


def to_build(graph: GraphSpec, library: str, precision: str) -> bool:
    """Whether `open_trt` would build an engine first; False where nothing can be built."""
    try:
        gpu = cuda.device()
        for one in _precisions(graph, precision, gpu):
            entry = _cached(graph, library, one, gpu)
            if entry is None:
                return True
            if not _too_far(entry, graph):
                return False
    except EngineError:  # `open_trt` says it
        return False
    return False


def open_trt(graph: GraphSpec, library: str, precision: str, report: Report | None) -> TrtEngine:
    """Open a graph's engine, see the package's `open_trt`."""
    gpu = cuda.device()
    *preferred, last = _precisions(graph, precision, gpu)
    for one in preferred:
        try:
            return _open(graph, library, one, gpu, report or _silent)
        except InexactError as error:
            log.warning("%s It is tried in the next precision.", error)
    return _open(graph, library, last, gpu, report or _silent)


class InexactError(BuildError):
    """An engine whose numbers are too far from its graph's."""


def ensure_built(
    graph: GraphSpec, library: str, precision: str, report: Report,
    options: tuple[str, ...] = (), workspace_mib: int = WORKSPACE_MIB,
) -> Entry:  # fmt: skip
    """An engine of the cache, built if it is not there; also where there is no GPU to run it.

    `options`: of ANY_GPU and ANY_VERSION; TensorRT for RTX needs ANY_GPU where there is no GPU.
    Raises BuildError, PrecisionError and EngineError as `open_trt` does.
    """
    gpu = cuda.device() if cuda.missing() is None else None
    key = _key(graph, library, _precisions(graph, precision, gpu)[0], gpu, options)
    return cache.find(key) or _build(graph, key, report, workspace_mib)


def _silent(phase: str, done: float) -> None:
    pass


def _precisions(graph: GraphSpec, precision: str, gpu: Device | None) -> tuple[str, ...]:
    """The precisions to try, in order. PrecisionError where the graph or the GPU has it not."""
    if precision == "auto":
        return AUTO
    if precision in ("int8", "fp8") and precision not in graph.variants:
        raise PrecisionError(
            f"The bundle has no '{graph.name}' in {precision}; export it with that variant, or "
            "use fp16."
        )
    needed = NEEDS.get(precision)
    if gpu is not None and needed is not None and gpu.capability < needed:
        raise PrecisionError(
            f"{gpu.name} has no {precision}, which needs compute capability {_dotted(needed)} and "
            f"not {_dotted(gpu.capability)}; use fp16."
        )
    return (precision,)


def _dotted(capability: tuple[int, ...]) -> str:
    return ".".join(map(str, capability))


def _source(graph: GraphSpec, precision: str) -> GraphSpec:
    """The graph that an engine of that precision is built from."""
    return graph.at(precision) if precision in graph.variants else graph


def _key(
    graph: GraphSpec, library: str, precision: str, gpu: Device | None, options: tuple[str, ...]
) -> Key:
    """The key of the engine. EngineError where that library has no such engine here."""
    if ANY_VERSION in options and library != "tensorrt":
        raise EngineError(f"{library} has no engines that load in other versions of it.")
    if gpu is None and (library != "tensorrt_rtx" or ANY_GPU not in options):
        reason, fix = cuda.missing() or ("", "")
        raise EngineError(
            f"{library} builds engines for the GPU that is here, and there is none ({reason}); "
            f"{fix}, or build for any GPU with tensorrt_rtx."
        )
    version = str(libraries.load(library).__version__)
    if ANY_VERSION in options:
        version = version.split(".")[0]
    name, capability = ANY, "8.0 and newer"
    if ANY_GPU not in options:
        assert gpu is not None
        name, capability = gpu.name, _dotted(gpu.capability)
    return Key(
        graph.name, _source(graph, precision).sha256, library, version, name, capability,
        precision, dict(graph.profile), tuple(sorted(options)),
    )  # fmt: skip


def _keys(graph: GraphSpec, library: str, precision: str, gpu: Device) -> Iterator[Key]:
    """The keys of engines that this machine can load, the fastest first."""
    versions: tuple[tuple[str, ...], ...] = ((), (ANY_VERSION,))
    for at_any_version in versions if library == "tensorrt" else ((),):
        yield _key(graph, library, precision, gpu, at_any_version)
        if gpu.capability >= (8, 0):
            yield _key(graph, library, precision, gpu, (ANY_GPU, *at_any_version))


def _cached(graph: GraphSpec, library: str, precision: str, gpu: Device) -> Entry | None:
    entries = (cache.find(key) for key in _keys(graph, library, precision, gpu))
    return next((entry for entry in entries if entry is not None), None)


def _open(
    graph: GraphSpec, library: str, precision: str, gpu: Device, report: Report
) -> TrtEngine:
    """Open an engine in one precision; a plan that does not load is built again, once."""
    entry = _cached(graph, library, precision, gpu)
    if entry is not None:
        _refuse_if_too_far(entry, graph)
        try:
            return _loaded(graph, entry, report)
        except StalePlanError as error:
            log.warning("%s is built again: %s", entry.plan, error)
            cache.discard(entry)
    entry = _build(graph, _key(graph, library, precision, gpu, ()), report, WORKSPACE_MIB)
    _refuse_if_too_far(entry, graph)
    return _loaded(graph, entry, report)


def _loaded(graph: GraphSpec, entry: Entry, report: Report) -> TrtEngine:
    """The engine of a cache entry, compared with its graph if it was not yet."""
    key = entry.key
    engine = TrtEngine(
        graph, key.library, key.precision, entry.plan.read_bytes(),
        jit=entry.jit if key.library == "tensorrt_rtx" else None,
        host_code=ANY_VERSION in key.options,
    )  # fmt: skip
    try:
        if entry.cosine is None:
            entry = cache.compared(entry, least_cosine(engine, graph, report))
            engine.save_compiled()
            log.info("The %s engine of '%s' in %s has cosine %.5f to the graph on the CPU.",
                     key.library, key.graph, key.precision, entry.cosine)  # fmt: skip
        _refuse_if_too_far(entry, graph)
    except BaseException:
        engine.close()
        raise
    return engine


def _tolerance(graph: GraphSpec, precision: str) -> float:
    if precision in ("int8", "fp8"):
        return min(graph.tolerance, VARIANT_TOLERANCE)
    return graph.tolerance


def _too_far(entry: Entry, graph: GraphSpec) -> bool:
    return entry.cosine is not None and entry.cosine < _tolerance(graph, entry.key.precision)


def _refuse_if_too_far(entry: Entry, graph: GraphSpec) -> None:
    if _too_far(entry, graph):
        raise InexactError(
            f"The {entry.key.library} engine of '{graph.name}' in {entry.key.precision} gives "
            f"other numbers than the graph (cosine {entry.cosine:.5f}, and "
            f"{_tolerance(graph, entry.key.precision)} is the least); use another precision, or "
            "vljepa engines clean --all to build it again."
        )


def _build(graph: GraphSpec, key: Key, report: Report, workspace_mib: int) -> Entry:
    """Build an engine into the cache, unless another process just did."""
    with cache.lock(key, lambda: report("waiting for another process that builds it", 0.0)):
        entry = cache.find(key)
        if entry is not None:
            return entry
        plan = cache.temporary_file()
        try:
            started = time.monotonic()
            log.info("Building '%s' in %s with %s.", graph.name, key.precision, key.library)
            build_in_child(_request(graph, key, plan, workspace_mib), report)
            version = str(libraries.load(key.library).__version__)
            return cache.put(key, plan, version, time.monotonic() - started, workspace_mib)
        finally:
            plan.unlink(missing_ok=True)


def _request(graph: GraphSpec, key: Key, plan: Path, workspace_mib: int) -> Request:
    machine = "-".join((key.library, key.version, key.gpu)).replace("/", "-").replace(" ", "_")
    return Request(
        graph.name, str(_source(graph, key.precision).path), key.library, key.precision,
        profile_shapes(graph), key.options, ANY_GPU not in key.options, workspace_mib,
        str(cache.folder() / f"{machine}{cache.TIMINGS}"), str(plan),
    )  # fmt: skip

