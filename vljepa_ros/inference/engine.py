"""What an engine is: one graph, ready to run.

Invariant: an engine runs only inputs that match its declared names, dtypes and shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from vljepa_ros.bundle.graphs import TensorSpec

from .tensors import Input, Tensor

PRECISIONS = ("auto", "fp32", "fp16", "bf16", "fp8", "int8")

Report = Callable[[str, float], None]
"""Is told the phase of a build, in words, and how much of it is done, 0..1."""


class Engine(Protocol):
    """A graph that is ready to run. `run` is not re-entrant: one thread owns an engine.

    `most`: the largest value of each open size that `run` takes; where none is given, any.
    """

    name: str  # the graph's name
    backend: str
    precision: str
    device: str
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    most: dict[str, int]

    def run(self, **inputs: Input) -> dict[str, np.ndarray]:
        """Outputs by name, fresh arrays.

        EngineError where an input does not match its spec; DeviceError where the device no longer
        works.
        """
        ...

    def run_keeping(self, **inputs: Input) -> dict[str, Tensor]:
        """The same, with the outputs left where the backend has them."""
        ...

    def close(self) -> None:
        """Release the engine's memory; it cannot run afterwards."""
        ...
