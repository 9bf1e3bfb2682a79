"""The TensorRT backend: being written."""

from __future__ import annotations

from typing import Any


def missing(library: str) -> tuple[str, str] | None:
    """Why the library cannot run here, and the fix."""
    return "the TensorRT backend is being written", "wait"


def to_build(graph: Any, library: str, precision: str) -> bool:
    """Whether an engine is to be built."""
    return False


def open_trt(graph: Any, library: str, precision: str, report: Any) -> Any:
    """Open an engine."""
    raise NotImplementedError
