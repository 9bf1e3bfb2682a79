"""From graph to engine: which precision, how exact, on which machine, and what is tried next."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from gpu import FakeGpu, fake_gpu, quick_builds  # noqa: F401, as fixtures

from vljepa_ros.bundle.graphs import GraphSpec, Variant
from vljepa_ros.bundle.manifest import sha256_of
from vljepa_ros.bundle.spec import Bundle, load_bundle
from vljepa_ros.errors import BuildError, DeviceError, EngineError, PrecisionError
from vljepa_ros.inference import backends as backends_module
from vljepa_ros.inference.backends import open_engine
from vljepa_ros.inference.ort import OrtEngine
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.inference.trt import cache, numerics
from vljepa_ros.inference.trt import open as opening
from vljepa_ros.inference.trt.open import open_trt, to_build


@pytest.fixture
def gpu(quick_builds: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> FakeGpu:  # noqa: F811
    monkeypatch.setattr(backends_module, "_reported", set())
    return quick_builds


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle, verify=False)


@pytest.fixture
def graph(bundle: Bundle) -> GraphSpec:
    return bundle.graphs["predictor"]


def opened(graph: GraphSpec, precision: str = "auto", library: str = "tensorrt") -> Any:
    return open_trt(graph, library, precision, None)


def sidecars() -> dict[str, cache.Entry]:
    return {one.entry.key.precision: one.entry for one in cache.listed() if one.entry}


def less_exact(monkeypatch: pytest.MonkeyPatch, **cosines: float) -> None:
    """Engines of these precisions are found to be so far from the CPU."""
    monkeypatch.setattr(
        opening, "least_cosine", lambda engine, graph, report: cosines.get(engine.precision, 1.0)
    )


def test_auto_is_fp16_and_fp32_where_that_is_not_exact_enough(
    gpu: FakeGpu, graph: GraphSpec, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    assert opened(graph).precision == "fp16"
    cache.clean(lambda one: True)
    less_exact(monkeypatch, fp16=0.9)
    with caplog.at_level(logging.WARNING):
        assert opened(graph).precision == "fp32"
    assert "cosine 0.90000, and 0.999 is the least" in caplog.text
    assert sidecars()["fp16"].cosine == 0.9  # and it is not built again
    assert not to_build(graph, "tensorrt", "auto")


def test_an_engine_that_is_not_exact_is_refused_each_time_and_built_once(
    gpu: FakeGpu, graph: GraphSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu.faults("wrong")
    said = "'predictor' in fp32 gives other numbers than the graph.*clean --all"
    with pytest.raises(BuildError, match=said):
        opened(graph, "fp32")
    assert (sidecars()["fp32"].cosine or 1.0) < 0.9
    gpu.faults()
    monkeypatch.setattr(opening, "build_in_child", lambda *_: pytest.fail("it was built again"))
    with pytest.raises(BuildError, match=said):
        opened(graph, "fp32")
    assert not to_build(graph, "tensorrt", "fp32")
    assert not gpu.fakegpu.memory.pieces


@pytest.mark.parametrize(
    ("precision", "capability", "words"),
    [("bf16", "7.2", r"no bf16, which needs compute capability 8\.0 and not 7\.2"),
     ("int8", "8.7", "The bundle has no 'predictor' in int8"),
     ("fp8", "8.9", "The bundle has no 'predictor' in fp8")],
)  # fmt: skip
def test_a_precision_that_is_not_to_be_had_is_refused(
    gpu: FakeGpu, graph: GraphSpec, precision: str, capability: str, words: str
) -> None:
    gpu.again(FAKE_GPU_CAPABILITY=capability)
    with pytest.raises(PrecisionError, match=words):
        opened(graph, precision)
    assert not to_build(graph, "tensorrt", precision)


def variant(graph: GraphSpec, folder: Path, change: float) -> GraphSpec:
    """The graph with an int8 and an fp8 variant: weights that are a little off."""
    model = onnx.load(graph.path)
    for weights in model.graph.initializer:
        if weights.data_type == onnx.TensorProto.FLOAT and len(weights.dims) > 1:
            array = onnx.numpy_helper.to_array(weights)
            noise = np.random.default_rng(0).normal(size=array.shape) * array.std() * change
            copy = onnx.numpy_helper.from_array((array + noise).astype(np.float32), weights.name)
            weights.CopyFrom(copy)
    path = folder / f"predictor.{change}.onnx"
    onnx.save(model, path)
    made = Variant(path, sha256_of(path), 0.99)
    return dataclasses.replace(graph, variants={"int8": made, "fp8": made})


def test_a_variant_is_built_from_its_file_and_held_to_its_own_tolerance(
    gpu: FakeGpu, graph: GraphSpec, tmp_path: Path
) -> None:
    quantised = variant(graph, tmp_path, 0.05)
    engine = opened(quantised, "int8")
    assert engine.precision == "int8"
    entry = sidecars()["int8"]
    assert entry.key.sha256 == quantised.variants["int8"].sha256 != graph.sha256
    assert entry.cosine is not None and 0.995 <= entry.cosine < graph.tolerance
    with pytest.raises(BuildError, match=r"and 0\.995 is the least"):
        opened(variant(graph, tmp_path, 0.3), "int8")
    gpu.again(FAKE_GPU_CAPABILITY="8.7")
    with pytest.raises(PrecisionError, match=r"no fp8, which needs compute capability 8\.9"):
        opened(quantised, "fp8")
    gpu.again(FAKE_GPU_CAPABILITY="8.9")
    assert opened(quantised, "fp8").precision == "fp8"


def test_an_engine_built_without_a_gpu_is_compared_when_it_is_first_opened(
    gpu: FakeGpu, graph: GraphSpec, caplog: pytest.LogCaptureFixture
) -> None:
    def quiet(phase: str, done: float) -> None:
        pass

    gpu.again(FAKE_GPU_COUNT="0")
    with pytest.raises(EngineError, match=r"there is none .*any GPU with tensorrt_rtx"):
        opening.prepare(graph, "tensorrt", "fp16", quiet, ("any-gpu",))
    with pytest.raises(EngineError, match="there is none"):
        opening.prepare(graph, "tensorrt_rtx", "fp16", quiet)
    entry, engine = opening.prepare(graph, "tensorrt_rtx", "fp16", quiet, ("any-gpu",))
    assert engine is None and entry.cosine is None
    assert (entry.key.gpu, entry.key.capability) == ("any", "8.0 and newer")
    with pytest.raises(DeviceError, match="no NVIDIA GPU answers"):
        opened(graph, "fp16", "tensorrt_rtx")
    assert not to_build(graph, "tensorrt_rtx", "fp16")
    gpu.again(FAKE_GPU_COUNT="1")
    assert not to_build(graph, "tensorrt_rtx", "fp16")
    with caplog.at_level(logging.INFO):
        opened(graph, "fp16", "tensorrt_rtx")
    assert "Building" not in caplog.text
    compared = sidecars()["fp16"].cosine
    assert compared is not None and compared > 0.999


def test_rtx_has_no_engines_for_any_version(gpu: FakeGpu, graph: GraphSpec) -> None:
    with pytest.raises(EngineError, match="no engines that load in other versions"):
        opening.prepare(graph, "tensorrt_rtx", "fp16", lambda *_: None, ("any-version",))


def test_auto_goes_through_the_backends_and_says_why(
    gpu: FakeGpu, graph: GraphSpec, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert open_engine(graph).backend == "tensorrt"
        gpu.faults("deserialize")
        engine = open_engine(graph)
    assert engine.backend == "onnxruntime-cpu"
    for library in ("tensorrt", "tensorrt_rtx"):
        assert f"{library} failed and is passed over: The {library} engine" in caplog.text
    gpu.faults()
    gpu.again(FAKE_TENSORRT_VERSION="10.2.0")
    assert open_engine(graph).backend == "tensorrt_rtx"
    gpu.again(FAKE_GPU_COUNT="0")
    assert open_engine(graph).backend == "onnxruntime-cpu"


def test_the_inputs_of_the_comparison_look_like_real_ones(bundle: Bundle) -> None:
    for graph in bundle.graphs.values():
        base = OrtEngine(graph)
        cases, again = list(numerics._cases(graph, base)), list(numerics._cases(graph, base))
        assert [rows for rows, _ in cases] == [
            {size: graph.profile[size][pick] for size in graph.profile if size in "BQ"}
            for pick in (0, 2)
        ]
        for (_, inputs), (_, same) in zip(cases, again, strict=True):
            for name, array in inputs.items():
                np.testing.assert_array_equal(array, same[name])
    frames = numerics.moving_discs((2, 8, 64, 64, 3), np.random.default_rng(0))
    beside = np.abs(np.diff(frames.astype(int), axis=3))
    assert np.median(beside) <= 2 and beside.max() > 20  # smooth, with edges
    assert (frames[0, 0] != frames[0, -1]).any() and (frames[0] != frames[1]).any()
    decoder = bundle.graphs["y_decoder"]
    first, last = (inputs for _, inputs in numerics._cases(decoder, OrtEngine(decoder)))
    assert first["past"].shape[3] == 0
    assert last["past"].shape[3] == decoder.profile["S"][1] and (last["past"] != 0).any()


class Altered(OrtEngine):
    """The graph on the CPU, with one row of one output changed."""

    def __init__(self, graph: GraphSpec, output: str, row: int, value: float) -> None:
        super().__init__(graph)
        self._change = output, row, value

    def run(self, **inputs: Any) -> dict[str, np.ndarray]:
        outputs = super().run(**inputs)
        output, row, value = self._change
        if len(outputs[output]) > row:
            outputs[output][row].flat[:4] *= value
        return outputs


@pytest.mark.parametrize("part", ["x_encoder", "predictor", "y_encoder", "y_decoder"])
def test_the_comparison_finds_one_wrong_row_of_the_largest_batch(bundle: Bundle, part: str) -> None:
    graph = bundle.graphs[part]
    output = next(iter(graph.outputs))

    def cosine(row: int, value: float) -> float:
        return numerics.least_cosine(Altered(graph, output, row, value), graph, lambda *_: None)

    assert cosine(0, 1.0) == pytest.approx(1.0, abs=1e-6)
    last = graph.profile["B"][2] - 1
    assert cosine(last, -5.0) < 0.99
    assert cosine(last, float("nan")) == -1.0


def test_an_engine_with_a_profile_of_its_own_is_preferred(
    gpu: FakeGpu, bundle: Bundle, graph: GraphSpec
) -> None:
    opened(graph, "fp32").close()
    _, engine = opening.prepare(
        graph, "tensorrt", "fp32", lambda *_: None, profile={"B": (1, 1, 1), "Q": (1, 2, 2)}
    )
    assert engine is not None
    engine.close()
    engine = opened(graph, "fp32")
    assert engine.most == {"B": 1, "Q": 2}
    model = Runtime(bundle, "tensorrt", precision="fp32")
    cpu = Runtime(bundle, "onnxruntime-cpu", precision="fp32")
    clips = np.random.default_rng(0).integers(0, 256, (3, 4, 32, 32, 3), np.uint8)
    words = ["a red ball", "a cube", "what is happening ?"]
    np.testing.assert_allclose(
        model.predict(model.encode_keeping(clips), words),
        cpu.predict(cpu.encode(clips), words), rtol=1e-4, atol=1e-5,
    )  # fmt: skip
    other = dataclasses.replace(graph, profile={"B": (1, 1, 4), "Q": (1, 1, 16)})
    assert opened(other, "fp32").most == {"B": 1, "Q": 2}  # still what was asked for
    for plan in cache.folder().glob("*.plan"):
        if b'"profile": {"visual_tokens": [[1, 32, 16], [1, 32, 16], [1' in plan.read_bytes():
            plan.unlink()
    assert opened(graph, "fp32").most == {"B": 8, "Q": 16}
