"""Both TensorRT libraries on the made-up GPU: the runtime's side."""

from __future__ import annotations

import enum
import json
from typing import Any

import fakegpu
import numpy as np
from fakegpu import Queue, Violation, fault, memory

# By the numbers of faketrt.DataType.
DTYPES = {0: np.float32, 1: np.float16, 2: np.int8, 3: np.int32, 4: np.bool_, 5: np.uint8,
          8: np.int64}  # fmt: skip


class TensorIOMode(enum.IntEnum):
    NONE, INPUT, OUTPUT = range(3)


class TensorLocation(enum.IntEnum):
    DEVICE, HOST = range(2)


class LayerInformationFormat(enum.IntEnum):
    ONELINE, JSON = range(2)


def needs_context() -> None:
    """The CUDA context must be current in the thread; building needs none, nor PyCUDA."""
    from pycuda.driver import current

    current()


def nptype(dtype: int) -> Any:
    try:
        return DTYPES[int(dtype)]
    except KeyError:
        raise TypeError("Could not resolve TensorRT datatype") from None


def runtime(name: str, version: str) -> dict[str, Any]:
    """The names of a library's runtime."""
    from faketrt import DataType, HostMemory, ILogger, Severity

    class Runtime:
        def __init__(self, logger: ILogger) -> None:
            assert logger.ready
            self._logger = logger
            self.engine_host_code_allowed = False

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            needs_context()
            try:
                head, _, model = bytes(plan).partition(b"\n")
                facts = json.loads(head)
            except ValueError:
                facts = None
            problem = self._problem(facts)
            if problem:
                self._logger.log(Severity.ERROR, problem)
                return None
            return Engine(self._logger, facts, model)

        def _problem(self, facts: Any) -> str:
            if fault("deserialize") or facts is None:
                return "Error Code 1: Serialization (Serialization assertion failed)"
            if fault("memory"):
                return "Error Code 2: OutOfMemory (Requested size was 1024 bytes.)"
            if facts["library"] != name or facts["gpu"] not in (None, fakegpu.name()):
                return "Error Code 6: API Usage Error (Engine is of another device)"
            if facts["host_code"]:
                newer = version.split(".") < facts["version"].split(".")
                same = version.split(".")[0] == facts["version"].split(".")[0] and not newer
                return "" if same and self.engine_host_code_allowed else "Host code is not allowed"
            return "" if facts["version"] == version else "Error Code 6: Version tag does not match"

    class RuntimeCache:
        def __init__(self) -> None:
            self.kernels: set[str] = set()

        def deserialize(self, content: bytes) -> bool:
            needs_context()
            gpu, *kernels = bytes(content).decode(errors="replace").split("\n")
            if gpu != fakegpu.name():
                return False
            self.kernels |= set(kernels)
            return True

        def serialize(self) -> HostMemory:
            return HostMemory("\n".join([fakegpu.name(), *sorted(self.kernels)]).encode())

    class RuntimeConfig:
        def __init__(self) -> None:
            self.cache: RuntimeCache | None = None

        def create_runtime_cache(self) -> RuntimeCache:
            return RuntimeCache()

        def set_runtime_cache(self, cache: RuntimeCache) -> bool:
            self.cache = cache
            return True

    class Engine:
        def __init__(self, logger: ILogger, facts: dict[str, Any], model: bytes) -> None:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            options.log_severity_level = 3
            self.logger, self.facts = logger, facts
            self.session = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
            self.tensors = {**facts["inputs"], **facts["outputs"]}
            if name == "tensorrt_rtx":
                self.create_runtime_config = RuntimeConfig

        @property
        def num_io_tensors(self) -> int:
            return len(self.tensors)

        def get_tensor_name(self, index: int) -> str:
            return list(self.tensors)[index]

        def get_tensor_mode(self, tensor: str) -> TensorIOMode:
            return TensorIOMode.INPUT if tensor in self.facts["inputs"] else TensorIOMode.OUTPUT

        def get_tensor_dtype(self, tensor: str) -> DataType:
            return DataType(self.tensors[tensor][0])

        def get_tensor_shape(self, tensor: str) -> tuple[int, ...]:
            return tuple(self.tensors[tensor][1])

        def get_tensor_location(self, tensor: str) -> TensorLocation:
            return TensorLocation.DEVICE

        def get_tensor_profile_shape(self, tensor: str, profile: int) -> list[tuple[int, ...]]:
            assert profile == 0
            return [tuple(shape) for shape in self.facts["profile"][tensor]]

        def create_execution_context(self, config: RuntimeConfig | None = None) -> Context | None:
            needs_context()
            if fault("context"):
                self.logger.log(Severity.ERROR, "Error Code 2: OutOfMemory (no details)")
                return None
            return Context(self, config)

        def create_engine_inspector(self) -> Inspector:
            return Inspector(self)

    class Inspector:
        def __init__(self, engine: Engine) -> None:
            self._engine, self.execution_context = engine, None

        def get_engine_information(self, form: LayerInformationFormat) -> str:
            assert form == LayerInformationFormat.JSON
            return json.dumps({"Layers": ["matmul"], "Bindings": list(self._engine.tensors)})

    class Context:
        def __init__(self, engine: Engine, config: RuntimeConfig | None) -> None:
            self.engine, self._config = engine, config
            self.nvtx_verbosity = None
            self._shapes: dict[str, tuple[int, ...]] = {}
            self._addresses: dict[str, int] = {}
            self._known: dict[Any, dict[str, tuple[int, ...]]] = {}

        def set_input_shape(self, tensor: str, shape: tuple[int, ...]) -> bool:
            least, _, most = self.engine.facts["profile"][tensor]
            fits = len(shape) == len(least) and all(
                a <= b <= c for a, b, c in zip(least, shape, most, strict=True)
            )
            if fits:
                self._shapes[tensor] = tuple(shape)
            else:
                self.engine.logger.log(Severity.ERROR, f"{shape} is not in the profile")
            return fits

        def get_tensor_shape(self, tensor: str) -> tuple[int, ...]:
            if tensor in self.engine.facts["inputs"]:
                return self._shapes[tensor]
            key = tuple(sorted(self._shapes.items()))
            if key not in self._known:  # as the graph itself says, asked with zeros
                zeros = {
                    n: np.zeros(s, nptype(self.engine.tensors[n][0]))
                    for n, s in self._shapes.items()
                }
                outputs = self.engine.session.run(None, zeros)
                names = [o.name for o in self.engine.session.get_outputs()]
                self._known[key] = {n: o.shape for n, o in zip(names, outputs, strict=True)}
            return self._known[key][tensor]

        def set_tensor_address(self, tensor: str, address: int) -> bool:
            assert type(address) is int and address and tensor in self.engine.tensors
            if address % 256:
                raise Violation(f"the address {address:#x} of {tensor} is not aligned")
            self._addresses[tensor] = address
            return True

        def execute_async_v3(self, handle: int) -> bool:
            needs_context()
            if fault("execute"):
                self.engine.logger.log(Severity.ERROR, "Error Code 1: Cuda Driver (out of memory)")
                return False
            if self._addresses.keys() != self.engine.tensors.keys():
                raise Violation("not every tensor has an address")
            if self._shapes.keys() != self.engine.facts["inputs"].keys():
                raise Violation("not every input has a shape")
            shapes = {n: self.get_tensor_shape(n) for n in self.engine.tensors}
            addresses = dict(self._addresses)
            Queue.known[handle].put("execute", lambda: self._compute(shapes, addresses))
            if self._config is not None and self._config.cache is not None:
                self._config.cache.kernels.add(str(sorted(self._shapes.items())))
            return True

        def _compute(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
            arrays = {}
            for tensor, shape in shapes.items():
                dtype = np.dtype(nptype(self.engine.tensors[tensor][0]))
                nbytes = int(np.prod(shape)) * dtype.itemsize
                flat = memory.view(addresses[tensor], nbytes)
                arrays[tensor] = flat.view(dtype).reshape(shape)
            inputs = {n: arrays[n].copy() for n in self.engine.facts["inputs"]}
            names = [o.name for o in self.engine.session.get_outputs()]
            for tensor, value in zip(names, self.engine.session.run(names, inputs), strict=True):
                if fault("wrong"):
                    value = np.flip(value, -1)
                arrays[tensor][...] = value

    return {key: value for key, value in {**globals(), **locals()}.items() if key[0].isupper()} | {
        "nptype": nptype
    }
