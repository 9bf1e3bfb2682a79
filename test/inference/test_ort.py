"""ONNX Runtime: which precision runs where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from vljepa_ros.bundle.graphs import GraphSpec, TensorSpec, Variant
from vljepa_ros.errors import PrecisionError
from vljepa_ros.inference import cpu, ort

SIDES = {"x": TensorSpec("float32", ("B", 4))}, {"y": TensorSpec("float32", ("B", 4))}
PROCESSORS = {
    "AMD EPYC 9004": ("flags\t\t: fpu avx2 avx512f avx512_vnni avx512_bf16 fsrm\n", True),
    "Intel Core Ultra": ("flags\t\t: fpu avx2 avx_vnni gfni\n", True),
    "Jetson Orin": ("Features\t: fp asimd crc32 atomics fphp asimdhp asimdrdm asimddp\n", True),
    "Intel Core of 2015": ("flags\t\t: fpu sse4_2 avx2 fma\nbugs\t\t: no_vnni\n", False),
    "Raspberry Pi 4": ("Features\t: fp asimd evtstrm crc32 cpuid\n", False),
}


@pytest.fixture
def graph(tmp_path: Path) -> GraphSpec:
    """A graph that doubles, with a variant that triples, so that they can be told apart."""
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["B", 4]) for n in "xy")
    for name, factor in (("fp32", 2.0), ("int8", 3.0)):
        by = numpy_helper.from_array(np.float32(factor), "by")
        nodes = [helper.make_node("Mul", ["x", "by"], ["y"])]
        model = helper.make_model(
            helper.make_graph(nodes, "g", [x], [y], [by]),
            opset_imports=[helper.make_opsetid("", 18)], ir_version=10,
        )  # fmt: skip
        helper.set_model_props(model, {"precision": name})
        onnx.save(model, tmp_path / f"{name}.onnx")
    variant = Variant(tmp_path / "int8.onnx", "", 1.0)
    return GraphSpec("g", tmp_path / "fp32.onnx", "", *SIDES, variants={"int8": variant})


@pytest.fixture(params=PROCESSORS.values(), ids=PROCESSORS)
def made_for_int8(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[bool]:
    described, able = request.param
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{described}")
    monkeypatch.setattr(cpu, "CPU", tmp_path / "cpuinfo")
    cpu.int8_products.cache_clear()
    yield able
    cpu.int8_products.cache_clear()


def factor(graph: GraphSpec, precision: str) -> tuple[str, float]:
    engine = ort.OrtEngine(graph, 1, precision)
    return engine.precision, float(engine.run(x=np.ones((1, 4), np.float32))["y"][0, 0])


def test_auto_takes_int8_where_the_processor_is_made_for_it(graph: GraphSpec, made_for_int8: bool):
    assert cpu.int8_products() is made_for_int8
    assert factor(graph, "auto") == (("int8", 3.0) if made_for_int8 else ("fp32", 2.0))
    assert factor(replace(graph, variants={}), "auto") == ("fp32", 2.0)


def test_the_precision_asked_for_is_taken_wherever_it_runs(graph: GraphSpec, made_for_int8: bool):
    assert factor(graph, "fp32") == ("fp32", 2.0)
    assert factor(graph, "int8") == ("int8", 3.0)


def test_an_unreadable_processor_is_not_made_for_int8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cpu, "CPU", tmp_path / "none")
    cpu.int8_products.cache_clear()
    assert not cpu.int8_products()
    cpu.int8_products.cache_clear()


@pytest.mark.parametrize("precision", ["int8", "fp8", "fp16", "bf16"])
def test_a_precision_that_is_not_there_is_refused(graph: GraphSpec, precision: str):
    variants = {} if precision == "int8" else {"fp8": graph.variants["int8"]}
    with pytest.raises(PrecisionError, match=f"has no 'g' in {precision} for ONNX Runtime"):
        ort.OrtEngine(replace(graph, variants=variants), 1, precision)


@pytest.mark.parametrize("version", ["1.18.0", "1.26.1", "1.27.0", "1.32.0", "2.0.0.dev1"])
def test_threads_spin_briefly_or_not_at_all(
    graph: GraphSpec, version: str, monkeypatch: pytest.MonkeyPatch
):
    said: dict[str, str] = {}

    class Options(onnxruntime.SessionOptions):
        def add_session_config_entry(self, key: str, value: str) -> None:
            said[key] = value
            super().add_session_config_entry(key, value)

    monkeypatch.setattr(onnxruntime, "__version__", version)
    monkeypatch.setattr(onnxruntime, "SessionOptions", Options)
    ort.OrtEngine(graph, 1, "fp32")
    intra = {key: value for key, value in said.items() if key.startswith("session.intra_op")}
    old = version in ("1.18.0", "1.26.1")
    assert intra == (
        {"session.intra_op.allow_spinning": "0"} if old
        else {"session.intra_op.spin_duration_us": "50"}
    )  # fmt: skip
