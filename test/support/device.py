"""A backend with a device of its own, in the table of backends, that fails when it is told to.

It runs graphs with ONNX Runtime, keeps what it is asked to keep as `OnDevice`, and takes at most
`most` of each open size: what VLJepa and the perceiver must cope with on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from vljepa_ros.bundle.graphs import GraphSpec
from vljepa_ros.errors import BuildError, DeviceError, TensorsLostError
from vljepa_ros.inference import backends as backends_module
from vljepa_ros.inference.backends import _Backend
from vljepa_ros.inference.engine import Report
from vljepa_ros.inference.ort import OrtEngine
from vljepa_ros.inference.tensors import Input, Tensor, shape_of, stacked


class OnDevice:
    """A tensor of a device; it cannot be read once the device is lost."""

    def __init__(self, device: Device, array: np.ndarray) -> None:
        self.device, self.array = device, array
        self.shape, self.dtype = array.shape, array.dtype

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, row: int, /) -> OnDevice:
        return OnDevice(self.device, self.array[row])

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        if self.device.lost:
            raise TensorsLostError(f"A tensor went with the {self.device.name}.")
        return np.array(self.array)


class Device:
    """What the engines of the backend share. `built`: graphs that have an engine."""

    def __init__(self, name: str = "device", **most: int) -> None:
        self.name, self.most = name, most
        self.lost = False
        self.runs: list[tuple[str, dict[str, tuple[int, ...]]]] = []
        self.built: set[str] | None = None  # None: there is nothing to build
        self.unbuildable = False
        self.release = lambda: None  # called in the middle of a build

    def check(self) -> None:
        """DeviceError where the device is lost."""
        if self.lost:
            raise DeviceError(f"The {self.name} is lost.")

    def open(
        self, graph: GraphSpec, threads: int, precision: str, report: Report | None
    ) -> DeviceEngine:
        """Open an engine; build it first where it is not built."""
        self.check()
        if self.must_build(graph, precision):
            assert self.built is not None
            for done in (0.0, 0.5, 1.0):
                if report is not None:
                    report("building", done)
                self.release()
            if self.unbuildable:
                raise BuildError(f"'{graph.name}' cannot be built on purpose.")
            self.built.add(graph.name)
        return DeviceEngine(self, graph)

    def must_build(self, graph: GraphSpec, precision: str) -> bool:
        """Whether the graph has no engine yet."""
        return self.built is not None and graph.name not in self.built


class DeviceEngine(OrtEngine):
    """ONNX Runtime in the guise of a device's engine."""

    def __init__(self, device: Device, graph: GraphSpec) -> None:
        super().__init__(graph, threads=1, precision="fp32")
        self.owner = device
        self.backend = self.device = device.name
        self.most = device.most

    def run(self, **inputs: Input) -> dict[str, np.ndarray]:
        """Run, unless the device is lost."""
        self.owner.check()
        self.owner.runs.append((self.name, {n: shape_of(v) for n, v in inputs.items()}))
        for name, spec in self.inputs.items():
            for size, wanted in zip(shape_of(inputs[name]), spec.shape, strict=True):
                assert isinstance(wanted, int) or size <= self.most.get(wanted, size)
        return super().run(**{name: stacked(value) for name, value in inputs.items()})

    def run_keeping(self, **inputs: Input) -> dict[str, Tensor]:
        """Run; the outputs stay on the device."""
        return {n: OnDevice(self.owner, v) for n, v in self.run(**inputs).items()}


@contextmanager
def installed(*devices: Device) -> Iterator[None]:
    """The devices before all other backends, the first one first."""
    rows = tuple(_Backend(d.name, lambda: None, d.open, d.must_build) for d in devices)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends_module, "_BACKENDS", (*rows, *backends_module._BACKENDS))
        names = (*(d.name for d in devices), *backends_module.BACKENDS)
        patch.setattr(backends_module, "BACKENDS", names)
        patch.setattr(backends_module, "_reported", set())
        yield
