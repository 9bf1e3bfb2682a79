"""The cache of built engines: what a key holds, and every way in which an entry can be bad."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from gpu import FakeGpu, fake_gpu, quick_builds  # noqa: F401, as fixtures

from vljepa_ros.bundle.graphs import GraphSpec
from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.errors import EngineError
from vljepa_ros.inference.trt import cache
from vljepa_ros.inference.trt import open as opening
from vljepa_ros.inference.trt.cache import Key
from vljepa_ros.inference.trt.open import open_trt


@pytest.fixture
def gpu(quick_builds: FakeGpu) -> FakeGpu:  # noqa: F811
    return quick_builds


@pytest.fixture
def graph(tiny_bundle: Path) -> GraphSpec:
    return load_bundle(tiny_bundle, verify=False).graphs["predictor"]


def built(graph: GraphSpec, library: str = "tensorrt") -> Path:
    """Build the engine and close it; its plan."""
    open_trt(graph, library, "fp32", None).close()
    return max(cache.folder().glob("*.plan"), key=lambda file: file.stat().st_mtime_ns)


def to_build(graph: GraphSpec, library: str = "tensorrt", precision: str = "fp32") -> bool:
    return opening.to_build(graph, library, precision)


KEY = Key(
    graph="predictor", sha256="a" * 64, weights="", library="tensorrt", version="10.3.0",
    gpu="Orin", capability="8.7", precision="fp16", profile={"B": (1, 1, 8)},
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "other"),
    [("graph", "x_encoder"), ("sha256", "b" * 64), ("weights", "c" * 64),
     ("library", "tensorrt_rtx"), ("version", "10.4.0"), ("gpu", "Thor"), ("capability", "11.0"),
     ("precision", "bf16"), ("profile", {"B": (1, 1, 4)}), ("options", ("any-gpu",))],
)  # fmt: skip
def test_everything_that_an_engine_depends_on_is_in_its_key(name: str, other: Any) -> None:
    assert dataclasses.replace(KEY, **{name: other}).stem != KEY.stem
    assert dataclasses.replace(KEY).stem == KEY.stem
    assert {field.name for field in dataclasses.fields(Key)} == {
        "graph", "sha256", "weights", "library", "version", "gpu", "capability", "precision",
        "profile", "options",
    }  # fmt: skip


def test_the_folder_is_the_variable_s_or_the_user_s_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VLJEPA_ENGINES", str(tmp_path / "mine"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache.folder() == tmp_path / "mine"
    monkeypatch.delenv("VLJEPA_ENGINES")
    assert cache.folder() == tmp_path / "cache" / "vljepa" / "engines"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.folder() == tmp_path / ".cache" / "vljepa" / "engines"


def test_a_folder_that_cannot_be_written_is_named(
    gpu: FakeGpu, graph: GraphSpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VLJEPA_ENGINES", str(tmp_path / "file" / "engines"))
    with pytest.raises(EngineError, match=r"file/engines \(Not a directory\); set VLJEPA_ENGINES"):
        built(graph)


def cut(plan: Path) -> str:
    plan.write_bytes(plan.read_bytes()[:-7])
    return "cut short"


def alter(plan: Path) -> str:
    content = bytearray(plan.read_bytes())
    content[-3] ^= 1
    plan.write_bytes(content)
    return "another sha256"


def remove(plan: Path) -> str:
    plan.unlink()
    return "its plan is missing"


def damage_sidecar(plan: Path) -> str:
    sidecar = plan.with_suffix(".json")
    sidecar.write_text(sidecar.read_text()[:-40])
    return "its sidecar is damaged"


def empty_sidecar(plan: Path) -> str:
    plan.with_suffix(".json").write_text("[]")
    return "its sidecar is damaged"


def words_for_a_number(plan: Path) -> str:
    sidecar = plan.with_suffix(".json")
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), "cosine": "good"}))
    return "its sidecar is damaged (TypeError)"


def sidecar_of_another(plan: Path) -> str:
    sidecar = plan.with_suffix(".json")
    said = json.loads(sidecar.read_text())
    said["key"]["version"] = "10.9.0"
    sidecar.write_text(json.dumps(said))
    return "of another graph, library, GPU, precision or profile"


@pytest.mark.parametrize(
    "spoil",
    [
        cut,
        alter,
        remove,
        damage_sidecar,
        empty_sidecar,
        words_for_a_number,
        sidecar_of_another,
    ],
)
def test_an_entry_that_is_not_whole_is_built_again_and_said_why(
    gpu: FakeGpu, graph: GraphSpec, spoil: Any, caplog: pytest.LogCaptureFixture
) -> None:
    plan = built(graph)
    good = plan.read_bytes()
    assert not to_build(graph)
    why = spoil(plan)
    with caplog.at_level(logging.WARNING):
        assert to_build(graph)
        assert why in caplog.text and str(plan.with_suffix(".json")) in caplog.text
        built(graph)
    assert plan.read_bytes() == good
    assert not to_build(graph)


def test_a_plan_that_does_not_load_is_built_again_and_said_why(
    gpu: FakeGpu, graph: GraphSpec, caplog: pytest.LogCaptureFixture
) -> None:
    """As after an update of the driver: the key fits, and the library refuses the plan."""
    plan = built(graph)
    other = plan.read_bytes().replace(b'"version": "10.3.0"', b'"version": "10.3.9"')
    sidecar = plan.with_suffix(".json")
    said = json.loads(sidecar.read_text())
    plan.write_bytes(other)
    said["sha256"] = cache.sha256_of(plan)
    sidecar.write_text(json.dumps(said))
    assert not to_build(graph)
    with caplog.at_level(logging.WARNING):
        built(graph)
    assert "built again" in caplog.text and "Version tag does not match" in caplog.text
    assert b'"version": "10.3.0"' in plan.read_bytes()


def test_what_changes_on_the_machine_asks_for_another_engine(
    gpu: FakeGpu, graph: GraphSpec
) -> None:
    built(graph)
    for variables in ({"FAKE_TENSORRT_VERSION": "10.7.0"}, {"FAKE_GPU_NAME": "Fake Thor"},
                      {"FAKE_GPU_CAPABILITY": "11.0"}):  # fmt: skip
        gpu.again(**variables)
        assert to_build(graph)
        built(graph)
    assert len(list(cache.folder().glob("*.plan"))) == 4
    gpu.again(FAKE_TENSORRT_VERSION="10.3.0", FAKE_GPU_NAME="Fake Orin", FAKE_GPU_CAPABILITY="8.7")
    assert not to_build(graph)


def test_what_changes_in_the_bundle_asks_for_another_engine(
    gpu: FakeGpu, graph: GraphSpec, tmp_path: Path
) -> None:
    built(graph)
    assert to_build(dataclasses.replace(graph, sha256="0" * 64))
    assert to_build(dataclasses.replace(graph, profile={"B": (1, 1, 4), "Q": (1, 1, 16)}))
    path = tmp_path / "predictor.onnx"
    path.write_bytes(graph.path.read_bytes())
    assert not to_build(dataclasses.replace(graph, path=path))
    path.with_suffix(".data").write_bytes(b"weights")
    assert to_build(dataclasses.replace(graph, path=path))


def test_engines_for_any_gpu_and_any_version_load_elsewhere(gpu: FakeGpu, graph: GraphSpec) -> None:
    def prepared(*options: str) -> None:
        _, engine = opening.prepare(graph, "tensorrt", "fp32", lambda phase, done: None, options)
        assert engine is not None
        engine.close()

    prepared("any-gpu")
    gpu.again(FAKE_GPU_NAME="Fake Thor", FAKE_GPU_CAPABILITY="11.0")
    assert not to_build(graph)
    built(graph)
    assert len(list(cache.folder().glob("*.plan"))) == 1
    gpu.again(FAKE_GPU_NAME="Fake Xavier", FAKE_GPU_CAPABILITY="7.2")  # older than Ampere
    assert to_build(graph)
    gpu.again(FAKE_GPU_NAME="Fake Thor", FAKE_GPU_CAPABILITY="11.0", FAKE_TENSORRT_VERSION="10.9.0")
    assert to_build(graph)
    prepared("any-version")
    gpu.again(FAKE_TENSORRT_VERSION="10.13.0")
    assert not to_build(graph)
    built(graph)
    assert len(list(cache.folder().glob("*.plan"))) == 2
    gpu.again(FAKE_TENSORRT_VERSION="11.0.0")
    assert to_build(graph)


def test_compiled_kernels_of_rtx_are_kept(gpu: FakeGpu, graph: GraphSpec) -> None:
    plan = built(graph, "tensorrt_rtx")
    kernels = plan.with_suffix(".jit")
    first = kernels.read_bytes()
    assert first.count(b"visual_tokens") == 2  # of the two sizes that were compared
    changed = kernels.stat().st_mtime_ns
    built(graph, "tensorrt_rtx")
    assert kernels.stat().st_mtime_ns == changed
    kernels.write_bytes(b"of another driver")
    built(graph, "tensorrt_rtx")
    assert kernels.read_bytes() == b"Fake Orin"  # nothing was run since
    assert not built(graph).with_suffix(".jit").exists()  # TensorRT compiles when it builds


def test_clean_removes_what_is_useless_and_leaves_what_is_being_built(
    gpu: FakeGpu, graph: GraphSpec
) -> None:
    plan, rtx = built(graph), built(graph, "tensorrt_rtx")
    cut(rtx)
    (cache.folder() / ".new-left").write_bytes(b"")
    mine = cache.folder() / "notes.txt"
    mine.write_text("not ours")
    with cache.lock(KEY, lambda: None):
        (cache.folder() / f"{KEY.stem}.plan").write_bytes(b"half")
        removed = cache.clean(lambda one: bool(one.problem))
        assert {file.suffix for file in removed} == {".plan", ".json", ".jit", ".lock"}
        assert {file.stem for file in removed} == {rtx.stem}
        assert (cache.folder() / ".new-left").exists()  # it may be that build's
    removed = cache.clean(lambda one: bool(one.problem))
    assert {file.name for file in removed} == {".new-left", f"{KEY.stem}.plan", f"{KEY.stem}.lock"}
    assert plan.is_file() and not to_build(graph)
    removed = cache.clean(lambda one: bool(one.problem), everything=True)
    assert {file.suffix for file in removed} == {".plan", ".json", ".lock", ".timing"}
    assert list(cache.folder().iterdir()) == [mine]


def test_the_list_says_what_is_wrong(gpu: FakeGpu, graph: GraphSpec) -> None:
    assert cache.listed() == []
    plan, rtx = built(graph), built(graph, "tensorrt_rtx")
    cut(plan)
    empty_sidecar(rtx)
    found = {one.sidecar.stem: one for one in cache.listed()}
    assert "cut short" in found[plan.stem].problem and found[plan.stem].entry is not None
    assert "damaged" in found[rtx.stem].problem and found[rtx.stem].entry is None
