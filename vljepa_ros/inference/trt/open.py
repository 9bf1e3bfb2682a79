"""From a graph to an open engine: out of the cache, or built first, and compared with the CPU.

Invariant: an engine that was opened gives the numbers of its base graph within the graph's
tolerance; one that does not is kept with its figure and refused, not built again and again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from vljepa_ros.bundle.graphs import GraphSpec
from vljepa_ros.errors import BuildError, DeviceError, EngineError, PrecisionError

from ..engine import Report
from . import cache, cuda
from . import library as libraries
from .build import ANY_GPU, ANY_VERSION, OWN_PROFILE, Request
from .build_process import build_in_child
from .cache import Entry, Key
from .cuda import Device
from .numerics import least_cosine
from .plan import StalePlanError, TrtEngine, profile_shapes

log = logging.getLogger(__name__)

Profile = dict[str, tuple[int, int, int]]  # least, usual and largest of a size
T = TypeVar("T")

AUTO = ("fp16", "fp32")  # in order of preference
NEEDS = {"bf16": (8, 0), "fp8": (8, 9)}  # the least compute capability
VARIANT_TOLERANCE = 0.995  # least cosine of int8 and fp8 engines
WORKSPACE_MIB = 1024
ANY = "any"
BATCHES = ("B", "Q")  # sizes that may be bounded otherwise than the bundle has them


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
    """Open a graph's engine; where the cache has none that is valid, build it in a child process.

    `precision`: one of `engine.PRECISIONS`; auto is fp16, and fp32 where fp16 is not exact enough.
    `report` is told phases and progress, 0..1, at least twice a second while it builds; what it
    raises gives the build up and is raised here. Raises PrecisionError where the bundle or the GPU
    does not have the precision, BuildError where the engine cannot be built or is not exact enough,
    DeviceError where the GPU fails, EngineError where the graph is not what the manifest declares.
    """
    gpu = cuda.device()

    def attempt(one: str) -> TrtEngine:
        key = _key(graph, library, one, gpu, ())
        return _open(graph, _cached(graph, library, one, gpu), key, report or _silent)[1]

    return _in_turn(_precisions(graph, precision, gpu), attempt)


class InexactError(BuildError):
    """An engine whose numbers are too far from its graph's."""


def prepare(
    graph: GraphSpec, library: str, precision: str, report: Report,
    options: tuple[str, ...] = (), workspace_mib: int = WORKSPACE_MIB,
    profile: Profile | None = None,
) -> tuple[Entry, TrtEngine | None]:  # fmt: skip
    """An engine of the cache, built if it is not there, and open where there is a GPU.

    `options`: of ANY_GPU and ANY_VERSION; TensorRT for RTX needs ANY_GPU where there is no GPU.
    `profile`: other bounds for some of the graph's batch sizes; `open_trt` then prefers this
    engine to one with the bundle's own profile. Raises what `open_trt` does.
    """
    if profile:
        graph, options = _with_profile(graph, profile), (*options, OWN_PROFILE)
    gpu = cuda.device() if cuda.missing() is None else None

    def attempt(one: str) -> tuple[Entry, TrtEngine | None]:
        key = _key(graph, library, one, gpu, options)
        entry = cache.find(key)
        if gpu is not None:
            return _open(graph, entry, key, report, workspace_mib)
        return entry or _build(graph, key, report, workspace_mib), None

    return _in_turn(_precisions(graph, precision, gpu), attempt)


def _in_turn(precisions: tuple[str, ...], attempt: Callable[[str], T]) -> T:
    """What `attempt` makes of the first precision that is exact enough."""
    *preferred, last = precisions
    for one in preferred:
        try:
            return attempt(one)
        except InexactError as error:
            log.warning("%s It is tried in the next precision.", error)
    return attempt(last)


def _with_profile(graph: GraphSpec, profile: Profile) -> GraphSpec:
    """The graph with other bounds for its batches, which callers run in pieces of any size."""
    for size, bounds in profile.items():
        if size not in BATCHES or size not in graph.profile:
            batches = [name for name in graph.profile if name in BATCHES]
            raise EngineError(
                f"The profile of '{graph.name}' can have other bounds for {' and '.join(batches)}, "
                f"not for '{size}'."
            )
        if not 1 <= bounds[0] <= bounds[1] <= bounds[2]:
            raise EngineError(
                f"The profile's {size} must be the least, usual and largest size, each at least as "
                f"large as the one before and 1, not {':'.join(map(str, bounds))}."
            )
    return replace(graph, profile={**graph.profile, **profile})


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
    source = _source(graph, precision)
    return Key(
        graph.name, source.sha256, _weights(source.path), library, version, name, capability,
        precision, dict(graph.profile), tuple(sorted(options)),
    )  # fmt: skip


def _weights(path: Path) -> str:
    """The sha256 of the weights that an ONNX file leaves to a file beside it; empty if none."""
    for file in (path.with_suffix(".data"), path.with_name(f"{path.name}.data")):
        if file.is_file():
            return cache.hashed(file)
    return ""


def _keys(graph: GraphSpec, library: str, precision: str, gpu: Device) -> Iterator[Key]:
    """The keys of engines that this machine can load, the fastest first."""
    versions: tuple[tuple[str, ...], ...] = ((), (ANY_VERSION,))
    for at_any_version in versions if library == "tensorrt" else ((),):
        yield _key(graph, library, precision, gpu, at_any_version)
        if gpu.capability >= (8, 0):
            yield _key(graph, library, precision, gpu, (ANY_GPU, *at_any_version))


def _cached(graph: GraphSpec, library: str, precision: str, gpu: Device) -> Entry | None:
    keys = list(_keys(graph, library, precision, gpu))
    wished = (cache.find_similar(key, OWN_PROFILE) for key in keys)
    ordinary = (cache.find(key) for key in keys)
    return next((entry for entry in (*wished, *ordinary) if entry is not None), None)


def _open(
    graph: GraphSpec, entry: Entry | None, key: Key, report: Report,
    workspace_mib: int = WORKSPACE_MIB,
) -> tuple[Entry, TrtEngine]:  # fmt: skip
    """Open a cached engine; one of `key` is built where there is none, or none that loads."""
    if entry is not None:
        try:
            return _loaded(graph, entry, report)
        except StalePlanError as error:
            log.warning("%s is built again: %s", entry.plan, error)
            cache.discard(entry)
    entry = _build(graph, key, report, workspace_mib)
    try:
        return _loaded(graph, entry, report)
    except StalePlanError as error:  # though it was built just now
        raise DeviceError(str(error)) from error


def _loaded(graph: GraphSpec, entry: Entry, report: Report) -> tuple[Entry, TrtEngine]:
    """The engine of a cache entry, compared with its graph if it was not yet."""
    _refuse_if_too_far(entry, graph)
    key = entry.key
    graph = replace(graph, profile=key.profile)
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
    return entry, engine


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
