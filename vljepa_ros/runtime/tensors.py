"""Checks of tensors against their specs, shared by every backend."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .bundle import TensorSpec
from .errors import EngineError


def check_inputs(
    graph: str, specs: Mapping[str, TensorSpec], inputs: Mapping[str, np.ndarray]
) -> None:
    """EngineError unless `inputs` has the names, dtypes and shapes of `specs`.

    A name in a spec's shape stands for one size within a call: `B` is the same everywhere.
    """
    if inputs.keys() != specs.keys():
        raise EngineError(f"'{graph}' takes {sorted(specs)}, and was given {sorted(inputs)}.")
    sizes: dict[str, int] = {}
    for name, spec in specs.items():
        array = inputs[name]
        if array.dtype != spec.dtype:
            raise EngineError(
                f"'{name}' of '{graph}' must be {spec.dtype}, and was given {array.dtype}."
            )
        fits = len(array.shape) == len(spec.shape) and all(
            size == (sizes.setdefault(wanted, size) if isinstance(wanted, str) else wanted)
            for size, wanted in zip(array.shape, spec.shape, strict=True)
        )
        if not fits:
            raise EngineError(
                f"'{name}' of '{graph}' must have shape {_text(spec.shape)}, "
                f"and was given {_text(array.shape)}."
            )


def check_declared(
    graph: str, file: str, side: str, declared: Mapping[str, TensorSpec],
    actual: Mapping[str, TensorSpec],
) -> None:  # fmt: skip
    """EngineError unless the graph's own tensors are those that the manifest declares.

    The manifest may fix a size that the graph leaves open, not the other way round.
    """
    if declared.keys() != actual.keys():
        raise EngineError(
            f"{file}: the manifest gives '{graph}' the {side} {sorted(declared)}, and the graph "
            f"has {sorted(actual)}; export the bundle again."
        )
    for name, spec in declared.items():
        own = actual[name]
        fits = (
            spec.dtype == own.dtype
            and len(spec.shape) == len(own.shape)
            and all(
                isinstance(size, str) or size == wanted
                for wanted, size in zip(spec.shape, own.shape, strict=True)
            )
        )
        if not fits:
            raise EngineError(
                f"{file}: the manifest says that '{name}' is {spec.dtype} {_text(spec.shape)}, "
                f"and the graph has {own.dtype} {_text(own.shape)}; export the bundle again."
            )


def _text(shape: tuple[int | str, ...]) -> str:
    return "[" + ", ".join(str(size) for size in shape) + "]"
