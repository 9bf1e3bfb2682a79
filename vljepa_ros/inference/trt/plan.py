"""A TensorRT engine on the GPU: preallocated buffers, shapes set per run, nothing copied twice.

Invariant: after the sizes that are in use have come once, a run allocates nothing on the GPU, each
frame of a clip crosses to it once, and tensors that are there already stay where they are. `run`
returns when its outputs are there, so memory that was an input may be used again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vljepa_ros.bundle.graphs import GraphSpec, TensorSpec
from vljepa_ros.errors import DeviceError, EngineError

from ..tensors import Input, Tensor, check_declared, check_inputs, parts_of, shape_of
from . import library as libraries
from .cuda import ALIGNMENT, Buffer, Stream, device
from .jit import CompiledKernels
from .memory import FrameRing, Pool, TrtResident, on_gpu

log = logging.getLogger(__name__)

FRAMES = "frames"  # the input whose parts come again from run to run
HASTY = ("x_encoder", "predictor")  # graphs whose work goes before that of the others

T = TypeVar("T")
Kept = TypeVar("Kept", bound="Stream | Buffer | Pool | FrameRing")


class StalePlanError(EngineError):
    """A plan that the library does not load, or that is not what the graph asks for."""


class TrtEngine:
    """A graph as a TensorRT engine, on the GPU of this process.

    `plan`: the serialised engine; `jit`: where TensorRT for RTX keeps what it compiles for it;
    `host_code`: whether the plan brings its own runtime, as version-compatible ones do. Raises
    StalePlanError where the plan does not load or does not belong to the graph, EngineError where
    the graph is not what the manifest declares, DeviceError where the GPU fails.
    """

    def __init__(
        self, graph: GraphSpec, library: str, precision: str, plan: bytes,
        jit: Path | None = None, host_code: bool = False,
    ) -> None:  # fmt: skip
        self.name, self.backend, self.precision = graph.name, library, precision
        self.inputs, self.outputs = graph.inputs, graph.outputs
        self.most = {size: bounds[2] for size, bounds in graph.profile.items()}
        self._least = {size: bounds[0] for size, bounds in graph.profile.items()}
        self._gpu = device()
        self.device = f"{self._gpu.name} ({'.'.join(map(str, self._gpu.capability))})"
        self._trt, self._logger = libraries.load(library), libraries.logger(library)
        self._kernels: CompiledKernels | None = None
        self._context: Any = None
        self._buffers: dict[str, Buffer] = {}
        self._pools: dict[str, Pool] = {}
        self._ring: FrameRing | None = None
        self._stream: Stream
        self._kept: list[Stream | Buffer | Pool | FrameRing] = []  # all that is to be freed
        try:
            with self._gpu.current():
                self._load(plan, jit, host_code)
                self._check(graph)
                self._allocate(graph)
        except BaseException:
            self.close()
            raise

    def _load(self, plan: bytes, jit: Path | None, host_code: bool) -> None:
        self._logger.last = ""
        self._runtime = self._trt.Runtime(self._logger)
        if host_code:
            self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            self._refuse(StalePlanError, "does not load")
        if jit is not None:
            self._kernels = CompiledKernels(self._engine, jit)
            self._context = self._engine.create_execution_context(self._kernels.config)
        else:
            self._context = self._engine.create_execution_context()
        if self._context is None:
            self._refuse(DeviceError, "gets no memory to run in")
        # Verbose plans, for the inspector, must not cost time in every run.
        self._context.nvtx_verbosity = self._trt.ProfilingVerbosity.NONE

    def _refuse(self, kind: type[EngineError], what: str) -> None:
        """Raise what the library said; what it says of memory is the device's fault."""
        said = self._logger.last
        if "memory" in said.lower():
            kind = DeviceError
        raise kind(f"The {self.backend} engine of '{self.name}' {what} ({said or 'no reason'}).")

    def _check(self, graph: GraphSpec) -> None:
        """That the engine is the graph's, in its tensors and its profile."""
        trt, engine = self._trt, self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        for side, mode, declared in (
            ("inputs", trt.TensorIOMode.INPUT, graph.inputs),
            ("outputs", trt.TensorIOMode.OUTPUT, graph.outputs),
        ):
            own = {n: self._spec(n) for n in names if engine.get_tensor_mode(n) == mode}
            check_declared(graph.name, str(graph.path), side, declared, own)
        for name in names:
            if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                raise EngineError(f"{graph.path}: '{name}' would have to be on the host.")
        for name, wanted in profile_shapes(graph).items():
            found = tuple(tuple(shape) for shape in engine.get_tensor_profile_shape(name, 0))
            if found != wanted:
                raise StalePlanError(
                    f"The {self.backend} engine of '{self.name}' takes '{name}' in the shapes "
                    f"{found}, and the bundle asks for {wanted}."
                )

    def _spec(self, name: str) -> TensorSpec:
        try:
            dtype = np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name))).name
        except TypeError:  # NumPy has no such type
            dtype = str(self._engine.get_tensor_dtype(name))
        shape = self._engine.get_tensor_shape(name)
        return TensorSpec(dtype, tuple("?" if size < 0 else size for size in shape))

    def _allocate(self, graph: GraphSpec) -> None:
        """Memory for the largest inputs that the engine takes; for outputs when one is wanted."""
        self._stream = self._keep(Stream(self._gpu, hasty=graph.name in HASTY))
        shapes = profile_shapes(graph)
        self._usual, self._largest = (
            self._nbytes({name: three[pick] for name, three in shapes.items()}) for pick in (1, 2)
        )
        for name in graph.inputs:
            self._buffers[name] = self._keep(Buffer(self._gpu, self._largest[name]))
        if FRAMES in graph.inputs:
            clips, frames, *picture = shapes[FRAMES][2]
            ring = FrameRing(self._gpu, int(np.prod(picture)), clips * frames)
            self._ring = self._keep(ring)

    def _keep(self, one: Kept) -> Kept:
        self._kept.append(one)
        return one

    def _nbytes(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
        """The sizes of all tensors, in bytes, where the inputs have these shapes."""
        for name, shape in shapes.items():
            self._set_shape(name, shape)
        specs = {**self.inputs, **self.outputs}
        return {n: nbytes(self._context.get_tensor_shape(n), s.dtype) for n, s in specs.items()}

    def _set_shape(self, name: str, shape: Sequence[int]) -> None:
        if not self._context.set_input_shape(name, tuple(shape)):
            raise EngineError(
                f"'{name}' of '{self.name}' cannot have the shape {list(shape)} on {self.backend} "
                f"({self._logger.last})."
            )

    def run(self, **inputs: Input) -> dict[str, np.ndarray]:
        """Outputs by name, fresh arrays.

        EngineError where an input does not match its spec or is out of the profile, DeviceError
        where the GPU fails, TensorsLostError where an input went with another engine.
        """
        return self._run(inputs, self._to_buffer, self._from_buffer)

    def run_keeping(self, **inputs: Input) -> dict[str, Tensor]:
        """The same, with the outputs left on the GPU."""
        return self._run(inputs, self._to_slot, lambda kept: kept)

    def _run(
        self, inputs: dict[str, Input], place: Callable[[str, tuple[int, ...]], tuple[int, Any]],
        finish: Callable[[Any], T],
    ) -> dict[str, T]:  # fmt: skip
        """One run. `place` says where an output goes, `finish` makes of it what is returned."""
        if self._context is None:
            raise EngineError(f"The engine of '{self.name}' is closed.")
        check_inputs(self.name, self.inputs, inputs)
        self._check_sizes(inputs)
        self._logger.last = ""
        with self._gpu.current():
            for name, value in inputs.items():
                self._set_shape(name, shape_of(value))
                self._context.set_tensor_address(name, self._bring(name, value))
            placed = {}
            for name in self.outputs:
                shape = tuple(self._context.get_tensor_shape(name))
                address, placed[name] = place(name, shape)
                self._context.set_tensor_address(name, address)
            if not self._stream.launch(self._context.execute_async_v3):
                raise DeviceError(
                    f"'{self.name}' failed on {self.device} ({self._logger.last or 'no reason'})."
                )
            for target in placed.values():
                if isinstance(target, _Pulled):
                    target.buffer.pull(self._stream, target.nbytes)
            self._stream.wait()
            return {name: finish(target) for name, target in placed.items()}

    def _check_sizes(self, inputs: dict[str, Input]) -> None:
        for name, spec in self.inputs.items():
            for size, wanted in zip(shape_of(inputs[name]), spec.shape, strict=True):
                if isinstance(wanted, str) and not self._least[wanted] <= size <= self.most[wanted]:
                    raise EngineError(
                        f"'{name}' of '{self.name}' has {wanted} = {size}, and its engine was built"
                        f" for {self._least[wanted]} to {self.most[wanted]}; run it in pieces, or "
                        "give the bundle a larger profile."
                    )

    def _bring(self, name: str, value: Input) -> int:
        """Where an input is on the GPU, after it was brought there if it had to be."""
        buffer, parts = self._buffers[name], parts_of(value)
        clips = isinstance(value, (list, tuple)) and isinstance(value[0], (list, tuple))
        if clips and self._ring is not None:
            return self._gather(parts, self._ring, buffer)
        start = self._in_place(parts)
        if start is not None:
            return start
        offset = 0
        for part in parts:
            self._copy_in(buffer, offset, part)
            offset += part.nbytes
        return buffer.address

    def _gather(self, frames: list[np.ndarray], ring: FrameRing, buffer: Buffer) -> int:
        """Put frames one after another; only those that are new cross to the GPU."""
        step = frames[0].nbytes
        for number, address in enumerate(ring.place(frames, self._stream)):
            self._stream.copy(buffer.address + number * step, address, step)
        return buffer.address

    @staticmethod
    def _in_place(parts: list[Any]) -> int | None:
        """Where parts begin that lie one after another on the GPU, ready to be read there."""
        if {on_gpu(part) for part in parts} != {True}:
            return None
        start = end = parts[0].address
        for part in parts:
            if part.address != end:
                return None
            end += part.nbytes
        return start if start % ALIGNMENT == 0 else None

    def _copy_in(self, buffer: Buffer, offset: int, part: Any) -> None:
        if part.nbytes == 0:
            return
        if isinstance(part, TrtResident):
            self._stream.copy(buffer.address + offset, part.address, part.nbytes)
            return
        target = buffer.host[offset : offset + part.nbytes].view(part.dtype).reshape(part.shape)
        np.copyto(target, part)
        buffer.push(self._stream, part.nbytes, offset)

    def _to_buffer(self, name: str, shape: tuple[int, ...]) -> tuple[int, _Pulled]:
        if name not in self._buffers:
            self._buffers[name] = self._keep(Buffer(self._gpu, self._largest[name]))
        buffer = self._buffers[name]
        return buffer.address, _Pulled(buffer, shape, np.dtype(self.outputs[name].dtype))

    @staticmethod
    def _from_buffer(pulled: _Pulled) -> np.ndarray:
        flat = pulled.buffer.host[: pulled.nbytes].view(pulled.dtype)
        return np.array(flat.reshape(pulled.shape))

    def _to_slot(self, name: str, shape: tuple[int, ...]) -> tuple[int, TrtResident]:
        if name not in self._pools:
            pool = Pool(self._gpu, self._usual[name], self._largest[name])
            self._pools[name] = self._keep(pool)
        dtype = np.dtype(self.outputs[name].dtype)
        slot = self._pools[name].take(nbytes(shape, dtype.name))
        return slot.address, TrtResident(slot, shape, dtype)

    def inspect(self) -> str:
        """What the library made of the graph, layer by layer, as JSON."""
        if self._context is None:
            raise EngineError(f"The engine of '{self.name}' is closed.")
        with self._gpu.current():
            inspector = self._engine.create_engine_inspector()
            inspector.execution_context = self._context
            return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def save_compiled(self) -> None:
        """Keep what TensorRT for RTX has compiled so far, so that it need not the next time."""
        if self._kernels is not None:
            try:
                with self._gpu.current():
                    self._kernels.save()
            except (EngineError, OSError) as error:
                log.warning("'%s' will be compiled again next time: %s", self.name, error)

    def close(self) -> None:
        """Release the GPU's memory. What `run_keeping` gave is lost."""
        self.save_compiled()
        kept, self._kept = self._kept, []
        try:
            with self._gpu.current():
                self._context = self._kernels = self._engine = self._runtime = None
                for one in kept:
                    one.free()
        except DeviceError as error:  # of a GPU that is lost there is nothing to release
            self._context = self._kernels = self._engine = self._runtime = None
            log.warning("The engine of '%s' was not released: %s", self.name, error)
        for pool in self._pools.values():
            pool.closed = True


class _Pulled:
    """An output that is brought to the host."""

    def __init__(self, buffer: Buffer, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.buffer, self.shape, self.dtype = buffer, shape, dtype
        self.nbytes = nbytes(shape, dtype.name)


def nbytes(shape: Sequence[int], dtype: str) -> int:
    """The size of a tensor, in bytes."""
    return int(np.prod(tuple(shape), dtype=np.int64)) * np.dtype(dtype).itemsize


Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def profile_shapes(graph: GraphSpec) -> dict[str, Shapes]:
    """The least, usual and largest shape of each input, by the graph's profile."""

    def shape(spec: TensorSpec, pick: int) -> tuple[int, ...]:
        return tuple(graph.profile[d][pick] if isinstance(d, str) else d for d in spec.shape)

    return {n: (shape(s, 0), shape(s, 1), shape(s, 2)) for n, s in graph.inputs.items()}
