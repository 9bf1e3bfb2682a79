"""The OpenVINO backend, for CPUs, where it is asked for by name: faster than ONNX Runtime.

Invariant: the model's own inputs and outputs are those that the manifest declares.

OpenVINO is faster where it knows the sizes of the inputs (docs/performance.md), and no faster where
it does not, so sizes that come again get a compiled model of their own.
"""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from typing import Any

import numpy as np

from vljepa_ros.bundle.graphs import GraphSpec, TensorSpec
from vljepa_ros.errors import EngineError, PrecisionError

from .cpu import int8_products
from .tensors import Input, Tensor, check_declared, check_inputs, stacked

OFTEN = 3  # times that sizes must come to be compiled for, which takes a fifth of a second
KEPT = 4  # sizes that get it, the first ones that come often
Shapes = tuple[tuple[int, ...], ...]


def missing() -> tuple[str, str] | None:
    """Why the backend cannot run, and the fix; None where it can."""
    if importlib.util.find_spec("openvino") is None:  # which does not import it
        return "openvino is not installed", "pip install openvino"
    return None


def _openvino() -> Any:
    """The module, without `openvino_telemetry`, which it imports where it can.

    That forks the process, with all its threads, writes to ~/intel and calls its makers. Where it
    does not import, OpenVINO has a stand-in that does nothing.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise EngineError(f"openvino does not import ({error}); install it again.") from error
    return openvino


class OpenVinoEngine:
    """A graph, compiled by OpenVINO for the CPU.

    `precision`: fp32, bf16 where the CPU computes in it, int8 where the bundle has it, or auto:
    int8 where the CPU is made for it, else fp32. Raises PrecisionError and EngineError.
    """

    def __init__(self, graph: GraphSpec, threads: int = 0, precision: str = "auto") -> None:
        self._core = _openvino().Core()
        if precision == "auto":
            precision = "int8" if "int8" in graph.variants and int8_products() else "fp32"
        if precision == "int8" and precision in graph.variants:
            graph = graph.at(precision)
        elif precision not in ("fp32", "bf16") or (precision == "bf16" and not self._has_bf16()):
            raise PrecisionError(
                f"OpenVINO has no '{graph.name}' in {precision} here; use precision auto."
            )
        self.name, self.precision = graph.name, precision
        self.backend, self.device = "openvino", "cpu"
        self.inputs, self.outputs = graph.inputs, graph.outputs
        self.most: dict[str, int] = {}
        # OpenVINO reads no weights through a link that leaves the folder, as those of colcon do.
        real = graph.path.resolve()
        self._path = real if real.with_suffix(".data").is_file() else graph.path
        self._properties = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,  # 0: its own choice
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        }
        # A decoder's cache grows with every token: no size comes twice in a row.
        self._grows = "S" in graph.profile
        self._came: Counter[Shapes] = Counter()
        self._fixed: dict[Shapes, Any] = {}  # requests
        self._open: Any = self._compile(None)

    def run(self, **inputs: Input) -> dict[str, np.ndarray]:
        """Outputs by name. EngineError where an input does not match, or the run fails."""
        if self._open is None:
            raise EngineError(f"The engine of '{self.name}' is closed.")
        check_inputs(self.name, self.inputs, inputs)
        arrays = {name: np.ascontiguousarray(stacked(inputs[name])) for name in self.inputs}
        request = self._request(tuple(array.shape for array in arrays.values()))
        try:
            request.infer(arrays, share_inputs=True)
            return {name: np.array(request.get_tensor(name).data) for name in self.outputs}
        except RuntimeError as error:
            raise EngineError(f"'{self.name}' failed on openvino: {_line(error)}.") from error

    def run_keeping(self, **inputs: Input) -> dict[str, Tensor]:
        """The same: outputs are arrays."""
        return dict(self.run(**inputs))

    def close(self) -> None:
        """Release the compiled models."""
        self._open = None
        self._fixed.clear()

    def _has_bf16(self) -> bool:
        return "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")

    def _request(self, shapes: Shapes) -> Any:
        """The request that runs inputs of these shapes fastest."""
        if shapes in self._fixed:
            return self._fixed[shapes]
        if not self._grows and len(self._fixed) < KEPT:
            self._came[shapes] += 1
            if self._came[shapes] == OFTEN:
                self._fixed[shapes] = self._compile(shapes)
        return self._fixed.get(shapes, self._open)

    def _compile(self, shapes: Shapes | None) -> Any:
        """A request for inputs of these shapes; None: of any that the graph takes."""
        try:
            model = self._core.read_model(self._path)
            check_declared(self.name, str(self._path), "inputs", self.inputs, _specs(model.inputs))
            check_declared(
                self.name, str(self._path), "outputs", self.outputs, _specs(model.outputs)
            )
            if shapes is not None:
                model.reshape(dict(zip(self.inputs, map(list, shapes), strict=True)))
            return self._core.compile_model(model, "CPU", self._properties).create_infer_request()
        except RuntimeError as error:
            raise EngineError(
                f"{self._path} does not load in OpenVINO ({_line(error)}); use another backend, "
                "e.g. onnxruntime-cpu."
            ) from error


def _specs(ports: list[Any]) -> dict[str, TensorSpec]:
    """Specs of a model's tensors; an open size is called '?'."""
    return {
        port.get_any_name(): TensorSpec(
            port.get_element_type().to_dtype().name,
            tuple("?" if d.is_dynamic else d.get_length() for d in port.get_partial_shape()),
        )
        for port in ports
    }


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
