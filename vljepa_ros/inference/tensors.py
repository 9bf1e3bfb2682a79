"""Tensors as engines take them, and their checks, shared by every backend.

Invariant: what passed `check_inputs` has the names, dtypes and shapes that the graph declares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from vljepa_ros.bundle.graphs import TensorSpec
from vljepa_ros.errors import EngineError


class Resident(Protocol):
    """A tensor that a backend keeps on its device. NumPy gets a copy of it: `np.asarray(it)`."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __len__(self) -> int:
        """The size of the first axis."""
        ...

    def __getitem__(self, row: int, /) -> Tensor:
        """One row, without the first axis."""
        ...

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        """A copy on the host."""
        ...


Tensor: TypeAlias = np.ndarray | Resident
# What an engine takes for one input; a sequence is stacked along a new first axis.
Input: TypeAlias = Tensor | Sequence[Tensor] | Sequence[Sequence[np.ndarray]]


class Joined:
    """Tensors `[n, ...]` that follow one another along their first axis, each where it is.

    Engines take it for the one tensor that they are together.
    """

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = tuple(parts)
        self.shape: tuple[int, ...] = (sum(map(len, parts)), *parts[0].shape[1:])
        self.dtype: np.dtype = parts[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, row: int) -> Tensor:
        row = range(len(self))[row]
        for part in self.parts:
            if row < len(part):
                return part[row]
            row -= len(part)
        raise IndexError(row)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        """A copy on the host."""
        if copy is False:
            raise ValueError("tensors that lie apart cannot be had as one without a copy")
        joined = np.concatenate([np.asarray(part) for part in self.parts])
        return joined if dtype is None else joined.astype(dtype, copy=False)


def parts_of(value: Input) -> list[Any]:
    """The tensors that lie one after another in an input, sequences and joined ones undone."""
    if isinstance(value, Joined):
        value = value.parts
    if not isinstance(value, (list, tuple)):
        return [value]
    return [part for row in value for part in parts_of(row)]


def shape_of(value: Input) -> tuple[int, ...]:
    """The shape of an input, of a sequence when it is stacked; ValueError where it cannot be."""
    if not isinstance(value, (list, tuple)):
        return tuple(value.shape)  # type: ignore[union-attr]
    shapes = {shape_of(row) for row in value}
    if len(shapes) != 1:
        raise ValueError(f"rows of the shapes {sorted(shapes)} cannot be stacked")
    return (len(value), *shapes.pop())


def dtype_of(value: Input) -> np.dtype:
    """The dtype of an input, of a sequence that of its first row."""
    while isinstance(value, (list, tuple)):
        value = value[0]
    return value.dtype  # type: ignore[union-attr]


def stacked(value: Input) -> np.ndarray:
    """An input as one array on the host."""
    if isinstance(value, (list, tuple)):
        return np.stack([stacked(row) for row in value])
    return np.asarray(value)


def check_inputs(graph: str, specs: Mapping[str, TensorSpec], inputs: Mapping[str, Input]) -> None:
    """EngineError unless `inputs` has the names, dtypes and shapes of `specs`.

    A name in a spec's shape stands for one size within a call: `B` is the same everywhere.
    """
    if inputs.keys() != specs.keys():
        raise EngineError(f"'{graph}' takes {sorted(specs)}, and was given {sorted(inputs)}.")
    sizes: dict[str, int] = {}
    for name, spec in specs.items():
        try:
            shape = shape_of(inputs[name])
        except ValueError as error:
            raise EngineError(f"'{name}' of '{graph}': {error}.") from None
        dtype = dtype_of(inputs[name])
        if dtype != spec.dtype:
            raise EngineError(f"'{name}' of '{graph}' must be {spec.dtype}, and was given {dtype}.")
        fits = len(shape) == len(spec.shape) and all(
            size == (sizes.setdefault(wanted, size) if isinstance(wanted, str) else wanted)
            for size, wanted in zip(shape, spec.shape, strict=True)
        )
        if not fits:
            raise EngineError(
                f"'{name}' of '{graph}' must have shape {_text(spec.shape)}, "
                f"and was given {_text(shape)}."
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
