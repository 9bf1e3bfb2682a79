"""The TensorRT backend: `tensorrt` and `tensorrt_rtx`, the same code over two libraries.

Invariant: importing this package imports neither library, nor PyCUDA, nor ONNX.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..engine import Engine
    from ..graphs import GraphSpec


def missing(library: str) -> tuple[str, str] | None:
    """Why engines of `tensorrt` or `tensorrt_rtx` cannot run here, and the fix; None if they can.

    It looks for the library and its version, for PyCUDA, and for a GPU.
    """
    from .library import missing

    return missing(library)


def to_build(graph: GraphSpec, library: str, precision: str) -> bool:
    """Whether `open_trt` would build an engine first, since the cache has none that is valid."""
    from .opening import to_build

    return to_build(graph, library, precision)


def open_trt(
    graph: GraphSpec, library: str, precision: str, report: Callable[[str, float], None] | None
) -> Engine:
    """Open a graph's engine; where the cache has none that is valid, build it in a child process.

    `precision`: one of `engine.PRECISIONS`; auto is fp16, and fp32 where fp16 is not exact enough.
    `report` is told phases and progress, 0..1, at least twice a second while it builds; what it
    raises gives the build up and is raised here. Raises PrecisionError where the bundle or the GPU
    does not have the precision, BuildError where the engine cannot be built or is not exact enough,
    DeviceError where the GPU fails, EngineError where the graph is not what the manifest declares.
    """
    from .opening import open_trt

    return open_trt(graph, library, precision, report)
