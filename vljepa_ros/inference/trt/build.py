"""Builds one engine in this process, from ONNX to a serialised plan (build_process: in a child).

Invariant: networks are strongly typed, so an engine computes in the types that its graph has, and
takes every shape of the request's profile and no other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vljepa_ros.errors import BuildError

from . import cache, library

log = logging.getLogger(__name__)

ANY_GPU, ANY_VERSION, OWN_PROFILE = "any-gpu", "any-version", "own-profile"
VARIANT_BASE = "fp16"  # what is not quantised in an int8 or fp8 variant


@dataclass(frozen=True)
class Request:
    """What to build. `source`: the ONNX file; `shapes`: least, usual and largest of each input.

    `current`: for the GPU that is here; without, for every GPU that TensorRT for RTX knows.
    `options`: of ANY_GPU and ANY_VERSION; `timings`: the file of the builder's timing cache.
    """

    graph: str
    source: str
    library: str
    precision: str
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
    options: tuple[str, ...]
    current: bool
    workspace_mib: int
    timings: str
    target: str  # the file that gets the plan

    def as_json(self) -> dict[str, Any]:
        """For the child process."""
        return asdict(self)


def build(request: Request, report: Callable[[str, float], None]) -> None:
    """Build the plan and write it to the request's target. BuildError where that fails."""
    trt, logger = library.load(request.library), library.logger(request.library)
    report("reading the graph", 0.0)
    try:
        builder = trt.Builder(logger)
    except Exception as error:  # pybind11's, where the library gives none
        raise BuildError(
            f"The builder of {request.library} does not start ({logger.last or error}); look at "
            "what nvidia-smi says."
        ) from error
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    _parse(request, parser)
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for name, (least, usual, most) in request.shapes.items():
        profile.set_shape(name, least, usual, most)
    if config.add_optimization_profile(profile) < 0:
        raise _failed(request, logger, "its profile is refused")
    _configure(request, trt, config)
    timings = _timings(request, config)
    config.progress_monitor = monitor = _monitor(trt, report)
    started = time.monotonic()
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _failed(request, logger, "the builder gives no engine")
    log.info("%s built in %.1f s, %d steps", request.graph, time.monotonic() - started,
             monitor.steps)  # fmt: skip
    Path(request.target).write_bytes(plan)
    if timings is not None:
        cache.write(Path(request.timings), bytes(config.get_timing_cache().serialize()))
    report("built", 1.0)


def _parse(request: Request, parser: Any) -> None:
    """Fill the network from the graph, typed for the precision; every error in one sentence."""
    from .typed import typed_graph

    source = Path(request.source)
    precision = VARIANT_BASE if request.precision in ("int8", "fp8") else request.precision
    # Beside the source lie the weights that the typed graph leaves outside.
    parsed = parser.parse(typed_graph(source, precision), str(source))
    if parsed:
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    said = "; ".join(
        f"node {e.node_name() or e.node()} ({e.node_operator()}): {' '.join(e.desc().split())}"
        for e in errors
    )
    raise BuildError(
        f"{request.library} does not take '{request.graph}' from {source}: "
        f"{said or 'it does not say why'}; export the bundle with a newer vljepa_ros."
    )


def _configure(request: Request, trt: Any, config: Any) -> None:
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_mib << 20)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the engine inspector
    # On further streams of the library's own the priority of ours would not hold.
    config.max_aux_streams = 0
    if request.precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)  # which rounds to 10 bits before multiplying
    if ANY_VERSION in request.options:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if request.library == "tensorrt":
        if ANY_GPU in request.options:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    elif request.current:
        # Without this TensorRT for RTX builds for every GPU from Ampere on, and needs none here.
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.CURRENT, 0)


def _timings(request: Request, config: Any) -> Any:
    """The timing cache, so that a second build is quick; None for RTX, where it does nothing."""
    if request.library != "tensorrt":
        return None
    file = Path(request.timings)
    known = file.read_bytes() if file.is_file() else b""
    timings = config.create_timing_cache(known)
    if timings is None or not config.set_timing_cache(timings, False):
        log.info("%s is of another GPU or version and is begun anew.", file)
        timings = config.create_timing_cache(b"")
        config.set_timing_cache(timings, False)
    return timings  # which must live until the engine is built


def _failed(request: Request, logger: Any, what: str) -> BuildError:
    said = f" ({logger.last})" if logger.last else ""
    return BuildError(
        f"{request.library} cannot build '{request.graph}' in {request.precision}: {what}{said}; "
        "try another precision, or a larger workspace."
    )


def _monitor(trt: Any, report: Callable[[str, float], None]) -> Any:
    """A progress monitor that makes one fraction of the builder's nested phases."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps = 0
            self._phases: dict[str, tuple[float, float, int]] = {}  # start, width, steps

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            start, width = 0.0, 1.0
            if parent_phase in self._phases:
                start, whole, count = self._phases[parent_phase]
                width = whole / max(count, 1)
            self._phases[phase_name] = start, width, num_steps
            report(phase_name, start)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.steps += 1
            if phase_name in self._phases:
                start, width, count = self._phases[phase_name]
                start = start + width / max(count, 1)
                self._phases[phase_name] = start, width * (count - 1) / max(count, 1), count - 1
                report(phase_name, start)
            return True

        def phase_finish(self, phase_name: str) -> None:
            self._phases.pop(phase_name, None)

    return Monitor()
