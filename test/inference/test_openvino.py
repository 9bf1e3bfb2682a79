"""OpenVINO: the same numbers as ONNX Runtime, whatever the sizes, and only where it is named."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from bundles import make_bundle

pytest.importorskip("openvino", reason="openvino is not installed: pip install openvino")

from vljepa_ros.bundle.spec import Bundle, load_bundle
from vljepa_ros.errors import EngineError, PrecisionError
from vljepa_ros.inference import openvino
from vljepa_ros.inference.backends import backends, open_engine
from vljepa_ros.inference.openvino import KEPT, OFTEN, OpenVinoEngine
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.inference.tensors import Joined

PARTS = ("x_encoder", "predictor", "y_encoder", "y_decoder")
QUERIES = ["What is happening?", "What colour is the cube?"]


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return load_bundle("tabletop", verify=False)


@pytest.fixture(scope="module")
def clips(shipped: Bundle) -> np.ndarray:
    """Smooth pictures that move, as a camera's do."""
    clip = shipped.clip
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (3, clip.frames, 4, 4, 3))
    fine = np.kron(coarse, np.ones((1, 1, clip.image_size // 4, clip.image_size // 4, 1)))
    return fine.astype(np.uint8)


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    return (one * other).sum(-1) / norms


@pytest.mark.parametrize(
    ("precision", "least"), [("fp32", 0.99999), ("int8", 0.999), ("bf16", 0.999)]
)
def test_the_shipped_bundle_gives_what_onnxruntime_gives(
    shipped: Bundle, clips: np.ndarray, precision: str, least: float
) -> None:
    """In the same precision; of bf16, which ONNX Runtime has not, what it gives in fp32."""
    capable = openvino.OpenVinoEngine(shipped.graphs["predictor"], 1, "fp32")._has_bf16()
    if precision == "bf16" and not capable:
        pytest.skip("this CPU does not compute in bf16")
    ours, theirs = (
        Runtime(shipped, backend, 1, parts=("x_encoder", "predictor"), precision=one)
        for backend, one in (
            ("openvino", precision),
            ("onnxruntime-cpu", precision.replace("bf16", "fp32")),
        )
    )
    assert {(e.backend, e.precision) for e in ours.info} == {("openvino", precision)}
    for count in (1, 1, 1, 3):  # sizes that come often, and sizes that do not
        found = ours.predict(ours.encode(clips[:count]), QUERIES)
        wanted = theirs.predict(theirs.encode(clips[:count]), QUERIES)
        assert found.shape == wanted.shape and cosines(found, wanted).min() > least


def test_weights_behind_links_are_found(shipped: Bundle, tmp_path: Path) -> None:
    """As colcon installs them with --symlink-install."""
    for file in shipped.path.iterdir():
        (tmp_path / file.name).symlink_to(file.resolve())
    linked = load_bundle(tmp_path, verify=False)
    ours = Runtime(linked, "openvino", 1, parts=("y_encoder",)).embed_text(QUERIES)
    theirs = Runtime(shipped, "onnxruntime-cpu", 1, parts=("y_encoder",)).embed_text(QUERIES)
    assert cosines(ours, theirs).min() > 0.9999


def test_texts_and_words_are_the_same(tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle, verify=False)
    ours, theirs = (
        Runtime(bundle, backend, 1, parts=("y_encoder", "y_decoder"))
        for backend in ("openvino", "onnxruntime-cpu")
    )
    texts = ["a red cube falls", "the blue ball rolls", "nothing moves"]
    np.testing.assert_allclose(ours.embed_text(texts), theirs.embed_text(texts), atol=1e-5)
    for embedding in theirs.embed_text(texts):  # the cache is empty at first, and grows
        assert ours.decode(embedding) == theirs.decode(embedding)
    ours.close()
    with pytest.raises(EngineError, match="'y_decoder' is closed"):
        ours.decode(embedding)


def test_sizes_that_come_often_are_compiled_for_and_no_more_than_some(tiny_bundle: Path) -> None:
    graph = load_bundle(tiny_bundle, verify=False).graphs["predictor"]
    engine = OpenVinoEngine(graph, threads=1)
    reference = open_engine(graph, "onnxruntime-cpu", threads=1)
    random = np.random.default_rng(0)
    for clips in range(1, KEPT + 3):
        for _ in range(OFTEN + 1):
            inputs = {
                "visual_tokens": random.normal(size=(clips, 32, 16)).astype(np.float32),
                "query_ids": random.integers(0, 9, (2, 12)),
                "query_mask": np.ones((2, 12), np.int64),
            }
            wanted = reference.run(**inputs)["embedding"]
            np.testing.assert_allclose(engine.run(**inputs)["embedding"], wanted, atol=1e-5)
        assert len(engine._fixed) == min(clips, KEPT)


def test_results_are_not_written_over(tiny_bundle: Path) -> None:
    engine = OpenVinoEngine(load_bundle(tiny_bundle, verify=False).graphs["x_encoder"], 1)
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (2, 1, 4, 32, 32, 3), np.uint8)
    first = engine.run(frames=pictures[0])["visual_tokens"]
    before = first.copy()
    engine.run(frames=pictures[1])
    np.testing.assert_array_equal(first, before)


def test_auto_never_takes_it(tiny_bundle: Path) -> None:
    graph = load_bundle(tiny_bundle, verify=False).graphs["predictor"]
    names = [report.backend for report in backends() if report.available and not report.by_name]
    everything = open_engine(graph, but=names[:-1])
    assert everything.backend == names[-1] != "openvino"
    with pytest.raises(EngineError, match="No backend can run"):
        open_engine(graph, but=names)


def test_what_it_does_not_have_is_said(
    shipped: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = shipped.graphs["y_encoder"]
    with pytest.raises(PrecisionError, match="no 'y_encoder' in int8"):
        open_engine(graph, "openvino", precision="int8")
    with pytest.raises(PrecisionError, match="no 'x_encoder' in fp16"):
        open_engine(shipped.graphs["x_encoder"], "openvino", precision="fp16")
    monkeypatch.setattr(openvino, "int8_products", lambda: False)
    assert open_engine(shipped.graphs["x_encoder"], "openvino").precision == "fp32"
    file = tmp_path / "broken.onnx"
    file.write_bytes(b"not a graph")
    with pytest.raises(EngineError, match=r"broken\.onnx does not load in OpenVINO"):
        open_engine(dataclasses.replace(graph, path=file), "openvino")


def test_inputs_are_checked(tiny_bundle: Path) -> None:
    engine = OpenVinoEngine(load_bundle(tiny_bundle, verify=False).graphs["y_encoder"], 1)
    with pytest.raises(EngineError, match="must be int64"):
        engine.run(ids=np.zeros((1, 16), np.int32), mask=np.ones((1, 16), np.int64))


def test_chunks_are_joined_as_onnxruntime_joins_them(tmp_path: Path) -> None:
    bundle = load_bundle(make_bundle(tmp_path, chunk=1, query=False, frames=8), verify=False)
    random = np.random.default_rng(0)
    found = []
    for backend in ("openvino", "onnxruntime-cpu"):
        model = Runtime(bundle, backend, threads=1, parts=PARTS[:2])
        kept = model.encode_keeping(random.integers(0, 256, (8, 1, 32, 32, 3), np.uint8))
        for _ in range(2 * OFTEN):  # also where the sizes have a model of their own
            kept = [*kept[1:], *model.encode_keeping(np.full((1, 1, 32, 32, 3), 99, np.uint8))]
            found.append(model.predict([Joined(kept), Joined(kept[::-1])], [""]))
        random = np.random.default_rng(0)
        model.close()
    half = len(found) // 2
    np.testing.assert_allclose(found[:half], found[half:], atol=1e-4)
