"""The ONNX Runtime backend: the embedded default, on CPU, and on CUDA where its package has it.

Invariant: the session's own inputs and outputs are those that the manifest declares.

Measured with the shipped bundle in int8 on two cores: threads that spin for as long as ONNX Runtime
likes take 2 to 4 times the CPU time for a longer latency where others work beside; threads that
spin for 50 µs between two operations save a fifth of the latency for 7 % more CPU time, and on a
machine that is overloaded cost a third more. I/O binding with preallocated buffers gains nothing,
so it is not used.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vljepa_ros.bundle.graphs import GraphSpec, TensorSpec
from vljepa_ros.errors import DeviceError, EngineError, PrecisionError

from .cpu import int8_products
from .tensors import Input, Tensor, check_declared, check_inputs, stacked

SPIN_US = 50  # microseconds that a thread waits awake for the next operation
SPIN_IS_BOUNDED = (1, 27)  # the version of ONNX Runtime from which that can be said
_DTYPES = {
    "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64",
    "tensor(int32)": "int32", "tensor(uint8)": "uint8", "tensor(int8)": "int8",
    "tensor(bool)": "bool",
}  # fmt: skip


def cpu_missing() -> tuple[str, str] | None:
    """Why the CPU backend cannot run, and the fix; None where it can."""
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        return f"onnxruntime does not import ({error})", "pip install onnxruntime"
    return None


def cuda_missing() -> tuple[str, str] | None:
    """Why the CUDA backend cannot run, and the fix; None where it can."""
    missing = cpu_missing()
    if missing is not None:
        return missing
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return (
            "this onnxruntime is built without CUDA",
            "on a machine with an NVIDIA GPU: pip install onnxruntime-gpu",
        )
    return None


class OrtEngine:
    """An ONNX Runtime session for one graph.

    `precision`: fp32, int8 where the bundle has it, or auto: int8 where the CPU is made for it.
    """

    def __init__(
        self, graph: GraphSpec, threads: int = 0, precision: str = "auto", *, cuda: bool = False
    ) -> None:
        if precision == "auto":
            fast = not cuda and "int8" in graph.variants and int8_products()
            precision = "int8" if fast else "fp32"
        graph = _in_precision(graph, precision)
        self.name = graph.name
        self.most: dict[str, int] = {}
        self.backend = "onnxruntime-cuda" if cuda else "onnxruntime-cpu"
        self.device = "cuda" if cuda else "cpu"
        self.inputs, self.outputs = graph.inputs, graph.outputs
        self._session: Any = _open_session(graph, threads, cuda, precision == "int8")
        for side, declared, nodes in (
            ("inputs", graph.inputs, self._session.get_inputs()),
            ("outputs", graph.outputs, self._session.get_outputs()),
        ):
            check_declared(graph.name, str(graph.path), side, declared, _specs(nodes))
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.precision = metadata.get("precision", "fp32")
        self._output_names = list(graph.outputs)

    def run(self, **inputs: Input) -> dict[str, np.ndarray]:
        """Outputs by name.

        EngineError where an input does not match, or the run fails; DeviceError where CUDA does;
        TensorsLostError where an input went with the device that had it.
        """
        if self._session is None:
            raise EngineError(f"The engine of '{self.name}' is closed.")
        check_inputs(self.name, self.inputs, inputs)
        arrays = {name: stacked(value) for name, value in inputs.items()}
        try:
            outputs = self._session.run(self._output_names, arrays)
        except Exception as error:  # ONNX Runtime's exceptions have no public base class
            kind = EngineError if self.device == "cpu" else DeviceError
            raise kind(f"'{self.name}' failed on {self.backend}: {_line(error)}.") from error
        return dict(zip(self._output_names, outputs, strict=True))

    def run_keeping(self, **inputs: Input) -> dict[str, Tensor]:
        """The same: the session's outputs are arrays."""
        return dict(self.run(**inputs))

    def close(self) -> None:
        """Release the session."""
        self._session = None


def _in_precision(graph: GraphSpec, precision: str) -> GraphSpec:
    if precision == "fp32":
        return graph
    if precision != "int8" or precision not in graph.variants:
        raise PrecisionError(
            f"The bundle has no '{graph.name}' in {precision} for ONNX Runtime; use precision auto."
        )
    return graph.at(precision)


def _open_session(graph: GraphSpec, threads: int, cuda: bool, quantised: bool) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors; they also come back as exceptions
    # Threads that go on spinning would burn a robot's cores between two steps.
    if _version(onnxruntime.__version__) >= SPIN_IS_BOUNDED:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_US))
    else:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if quantised:  # without VNNI sums of products of bytes would saturate: weights become uint8
        options.add_session_config_entry("session.x64quantprecision", "1")
    else:  # fold weights that are stored as int8 (DequantizeLinear) into float once, at load
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    providers = ["CUDAExecutionProvider"] if cuda else []
    try:
        session = onnxruntime.InferenceSession(
            str(graph.path), options, providers=[*providers, "CPUExecutionProvider"]
        )
    except Exception as error:  # as above
        kind = DeviceError if cuda else EngineError
        raise kind(f"{graph.path} does not load in ONNX Runtime: {_line(error)}.") from error
    if cuda and "CUDAExecutionProvider" not in session.get_providers():
        raise DeviceError("CUDA does not start here; look at nvidia-smi and the CUDA libraries.")
    return session


def _specs(nodes: list[Any]) -> dict[str, TensorSpec]:
    """Specs of a session's tensors; an unnamed open size is called '?'."""
    return {
        node.name: TensorSpec(
            _DTYPES.get(node.type, node.type),
            tuple(d if isinstance(d, int) else str(d or "?") for d in node.shape),
        )
        for node in nodes
    }


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
