"""Both TensorRT libraries on the made-up GPU: the builder's side; the runtime's is in fakeruntime.

A plan is a line of JSON that says what it was built for, and the ONNX graph.
"""

from __future__ import annotations

import enum
import json
import os
import signal
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fakegpu
import onnx
from fakegpu import fault
from fakeruntime import runtime
from onnx.external_data_helper import load_external_data_for_model


class Severity(enum.IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    Severity = Severity

    def __init__(self) -> None:
        self.ready = True  # a subclass has to call this, or pybind11 refuses the object


class IProgressMonitor:
    def __init__(self) -> None:
        self.ready = True


class HostMemory(bytes):
    @property
    def nbytes(self) -> int:
        return len(self)


class DataType(enum.IntEnum):
    FLOAT, HALF, INT8, INT32, BOOL, UINT8, FP8, BF16, INT64 = range(9)


class NetworkDefinitionCreationFlag(enum.IntEnum):
    EXPLICIT_BATCH, STRONGLY_TYPED = range(2)


class BuilderFlag(enum.IntEnum):
    TF32, VERSION_COMPATIBLE = range(2)


class HardwareCompatibilityLevel(enum.IntEnum):
    NONE, AMPERE_PLUS = range(2)


class ComputeCapability(enum.IntEnum):
    NONE, CURRENT, SM86 = range(3)


class MemoryPoolType(enum.IntEnum):
    WORKSPACE = 0


class ProfilingVerbosity(enum.IntEnum):
    LAYER_NAMES_ONLY, NONE, DETAILED = range(3)


def library(name: str, version: str) -> dict[str, Any]:
    """The names of a library's module."""
    types = onnx.TensorProto
    of_onnx = {
        types.FLOAT: DataType.FLOAT, types.FLOAT16: DataType.HALF, types.INT64: DataType.INT64,
        types.UINT8: DataType.UINT8, types.INT32: DataType.INT32,
    }  # fmt: skip

    class Network:
        def __init__(self) -> None:
            self.model: Any = None

        def tensors(self, side: Any) -> dict[str, tuple[int, list[int]]]:
            return {
                t.name: (
                    int(of_onnx[t.type.tensor_type.elem_type]),
                    [d.dim_value or -1 for d in t.type.tensor_type.shape.dim],
                )
                for t in side
            }

    class OnnxParser:
        def __init__(self, network: Network, logger: ILogger) -> None:
            assert logger.ready
            self._network, self._errors = network, []

        @property
        def num_errors(self) -> int:
            return len(self._errors)

        def get_error(self, index: int) -> Any:
            return self._errors[index]

        def parse(self, model: bytes, path: str | None = None) -> bool:
            if fault("parse"):
                for number in (3, 7):
                    said = SimpleNamespace(
                        node=lambda n=number: n, node_name=lambda n=number: f"layers.{n}.loop",
                        node_operator=lambda: "Loop", desc=lambda: "Unsupported\n operator: Loop",
                    )  # fmt: skip
                    self._errors.append(said)
                return False
            proto = onnx.load_model_from_string(model)
            load_external_data_for_model(proto, str(Path(path or "").parent))
            self._network.model = proto
            return True

    class Profile:
        def __init__(self) -> None:
            self.shapes: dict[str, list[tuple[int, ...]]] = {}

        def set_shape(self, name: str, least: Any, usual: Any, most: Any) -> None:
            assert all(a <= b <= c for a, b, c in zip(least, usual, most, strict=True))
            self.shapes[name] = [tuple(least), tuple(usual), tuple(most)]

    class TimingCache:
        def __init__(self, content: bytes) -> None:
            self.content = content

        def serialize(self) -> HostMemory:
            return HostMemory(self.content)

    class Config:
        def __init__(self) -> None:
            self.profiles: list[Profile] = []
            self.flags = {BuilderFlag.TF32}
            self.pools: dict[Any, int] = {}
            self.progress_monitor: Any = None
            self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
            self.max_aux_streams = 4
            self.capability = ComputeCapability.NONE
            self._level, self._timings = HardwareCompatibilityLevel.NONE, None
            if name == "tensorrt_rtx":
                self.num_compute_capabilities = 0

        def add_optimization_profile(self, profile: Profile) -> int:
            self.profiles.append(profile)
            return len(self.profiles) - 1

        def set_memory_pool_limit(self, pool: Any, size: int) -> None:
            self.pools[pool] = size

        def set_flag(self, flag: BuilderFlag) -> None:
            assert isinstance(flag, BuilderFlag)
            self.flags.add(flag)

        def clear_flag(self, flag: BuilderFlag) -> None:
            self.flags.discard(flag)

        @property
        def hardware_compatibility_level(self) -> HardwareCompatibilityLevel:
            return self._level

        @hardware_compatibility_level.setter
        def hardware_compatibility_level(self, level: HardwareCompatibilityLevel) -> None:
            assert name == "tensorrt", "not supported by TensorRT for RTX"
            self._level = level

        def set_compute_capability(self, capability: Any, index: int) -> bool:
            assert name == "tensorrt_rtx" and index < self.num_compute_capabilities
            self.capability = capability
            return True

        def create_timing_cache(self, content: bytes) -> TimingCache | None:
            if name == "tensorrt_rtx":
                warnings.warn("a no-op in TensorRT for RTX", DeprecationWarning, stacklevel=2)
            if content and not content.startswith(b"timings"):
                return None
            return TimingCache(content or b"timings " + fakegpu.name().encode())

        def set_timing_cache(self, timings: TimingCache, ignore_mismatch: bool) -> bool:
            fits = timings.content.split(b"\n")[0] == b"timings " + fakegpu.name().encode()
            if fits:
                self._timings = timings
            return fits

        def get_timing_cache(self) -> TimingCache | None:
            return self._timings

    class Builder:
        def __init__(self, logger: ILogger) -> None:
            assert logger.ready
            if name == "tensorrt" and fakegpu.count() == 0:
                raise TypeError("pybind11::init(): factory function returned nullptr")
            self._logger = logger

        def create_network(self, flags: int = 0) -> Network:
            assert flags & 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
            return Network()

        def create_builder_config(self) -> Config:
            return Config()

        def create_optimization_profile(self) -> Profile:
            return Profile()

        def build_serialized_network(self, network: Network, config: Config) -> HostMemory | None:
            while fault("hold"):
                if config.progress_monitor is not None:
                    config.progress_monitor.phase_start("Holding", None, 100)
                time.sleep(0.01)
            if fault("crash"):
                os.kill(os.getpid(), signal.SIGSEGV)
            if fault("build") or not self._go_through(config.progress_monitor):
                self._logger.log(Severity.ERROR, "Error Code 10: no implementation for node 4")
                return None
            if config.capability == ComputeCapability.CURRENT and fakegpu.count() == 0:
                self._logger.log(Severity.ERROR, "Error Code 1: Cuda Runtime (no device)")
                return None
            graph = network.model.graph
            inputs, outputs = network.tensors(graph.input), network.tensors(graph.output)
            (profile,) = config.profiles
            assert all(profile.shapes[n] for n, (_, shape) in inputs.items() if -1 in shape)
            if config._timings is not None:
                config._timings.content += b"\n" + graph.name.encode()
            any_gpu = config.hardware_compatibility_level or (
                name == "tensorrt_rtx" and config.num_compute_capabilities == 0
            )
            head = {
                "library": name, "version": version,
                "gpu": None if any_gpu else fakegpu.name(),
                "host_code": BuilderFlag.VERSION_COMPATIBLE in config.flags,
                "inputs": inputs, "outputs": outputs, "profile": profile.shapes,
                "tf32": BuilderFlag.TF32 in config.flags,
                "workspace": config.pools[MemoryPoolType.WORKSPACE],
                "aux": config.max_aux_streams, "verbosity": int(config.profiling_verbosity),
            }  # fmt: skip
            return HostMemory(json.dumps(head).encode() + b"\n" + network.model.SerializeToString())

        def _go_through(self, monitor: Any) -> bool:
            if monitor is None:
                return True
            assert monitor.ready
            going = True
            monitor.phase_start("Building engine", None, 4)
            for step in range(4):
                monitor.phase_start("Timing tactics", "Building engine", 5)
                for inner in range(5):
                    going = going and monitor.step_complete("Timing tactics", inner)
                monitor.phase_finish("Timing tactics")
                going = going and monitor.step_complete("Building engine", step)
            monitor.phase_finish("Building engine")
            return going

    return {
        key: value
        for key, value in {**globals(), **locals(), **runtime(name, version)}.items()
        if key[0].isupper() or key == "nptype"
    }
