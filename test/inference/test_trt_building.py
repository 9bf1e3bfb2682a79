"""Building in a child process: progress, errors, crashes, two at a time, and parents that die."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu import FakeGpu, builders_of, command_of, environment, fake_gpu  # noqa: F401, as fixtures

from vljepa_ros.bundle.graphs import GraphSpec
from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.errors import BuildError
from vljepa_ros.inference.trt.open import open_trt, to_build


@pytest.fixture
def graph(tiny_bundle: Path) -> GraphSpec:
    return load_bundle(tiny_bundle, verify=False).graphs["predictor"]


@pytest.fixture
def gpu(fake_gpu: FakeGpu) -> FakeGpu:  # noqa: F811
    return fake_gpu


def until(condition: Callable[[], Any]) -> Any:
    """Wait for a condition; what it gives."""
    for _ in range(6000):
        found = condition()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError("it did not come to pass in a minute")


def opened(graph: GraphSpec, report: Any = None, precision: str = "fp32") -> Any:
    return open_trt(graph, "tensorrt", precision, report)


def test_a_build_tells_how_far_it_is_and_is_kept(gpu: FakeGpu, graph: GraphSpec) -> None:
    said: list[tuple[str, float]] = []
    assert to_build(graph, "tensorrt", "auto")
    engine = opened(graph, lambda phase, done: said.append((phase, done)), "auto")
    assert engine.precision == "fp16"
    assert not to_build(graph, "tensorrt", "auto")
    assert to_build(graph, "tensorrt", "fp32") and to_build(graph, "tensorrt_rtx", "auto")
    phases = [phase for phase, _ in said]
    assert {"reading the graph", "Timing tactics"} <= set(phases)
    building = [done for phase, done in said if "comparing" not in phase]
    assert building == sorted(building) and len(building) > 10 and building[-1] == 1.0
    assert any("comparing" in phase for phase in phases)
    said.clear()
    again = opened(graph, lambda phase, done: said.append((phase, done)), "auto")
    assert not said  # it came out of the cache
    words = np.ones((1, 12), np.int64)
    inputs = {"visual_tokens": np.ones((1, 32, 16), np.float32), "query_ids": words,
              "query_mask": words}  # fmt: skip
    np.testing.assert_array_equal(
        engine.run(**inputs)["embedding"], again.run(**inputs)["embedding"]
    )


def test_the_sidecar_says_all_in_plain_words(gpu: FakeGpu, graph: GraphSpec) -> None:
    opened(graph)
    (file,) = gpu.engines.glob("predictor-fp32-*.json")
    said = json.loads(file.read_text())
    assert said["key"] == {
        "graph": "predictor", "sha256": graph.sha256, "weights": "", "library": "tensorrt",
        "version": "10.3.0", "gpu": "Fake Orin", "capability": "8.7", "precision": "fp32",
        "profile": {"B": [1, 1, 8], "Q": [1, 1, 16]}, "options": [],
    }  # fmt: skip
    assert said["cosine"] > 0.999999 and said["built_with"] == "10.3.0"
    assert said["build_seconds"] > 0 and said["workspace_mib"] == 1024
    plan = file.with_suffix(".plan")
    assert said["size"] == plan.stat().st_size and len(said["sha256"]) == 64
    head = json.loads(plan.read_bytes().partition(b"\n")[0])
    assert not head["tf32"] and head["workspace"] == 1024 << 20 and head["aux"] == 0
    assert not list(gpu.engines.glob(".new-*"))


def test_the_timings_of_one_build_are_there_for_the_next(gpu: FakeGpu, graph: GraphSpec) -> None:
    opened(graph)
    opened(graph, precision="fp16")
    (timings,) = gpu.engines.glob("*.timing")
    assert timings.read_bytes().splitlines() == [b"timings Fake Orin", b"predictor", b"predictor"]
    timings.write_bytes(b"timings another GPU\n")
    for plan in gpu.engines.glob("*.plan"):
        plan.unlink()
    opened(graph)
    assert timings.read_bytes().splitlines() == [b"timings Fake Orin", b"predictor"]


def test_every_error_of_the_parser_is_in_the_sentence(gpu: FakeGpu, graph: GraphSpec) -> None:
    gpu.faults("parse")
    with pytest.raises(BuildError) as error:
        opened(graph)
    for words in (str(graph.path), "node layers.3.loop (Loop)", "node layers.7.loop (Loop)",
                  "Unsupported operator: Loop", "tensorrt does not take 'predictor'"):  # fmt: skip
        assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert to_build(graph, "tensorrt", "fp32")


def test_a_builder_that_gives_no_engine_says_why(gpu: FakeGpu, graph: GraphSpec) -> None:
    gpu.faults("build")
    with pytest.raises(BuildError, match=r"'predictor' in fp32.*no implementation for node 4.*;"):
        opened(graph)
    gpu.faults()
    opened(graph)


def test_a_builder_that_crashes_is_a_build_error(gpu: FakeGpu, graph: GraphSpec) -> None:
    gpu.faults("crash")
    with pytest.raises(BuildError, match="'predictor' in fp32 was ended by SIGSEGV"):
        opened(graph)
    assert not list(gpu.engines.glob("*.plan")) and not list(gpu.engines.glob(".new-*"))


def test_a_graph_that_is_no_onnx_is_a_build_error(
    gpu: FakeGpu, graph: GraphSpec, tmp_path: Path
) -> None:
    file = tmp_path / "broken.onnx"
    file.write_bytes(b"\xff\xfenot a graph")
    with pytest.raises(BuildError, match=r"broken\.onnx cannot be read"):
        opened(dataclasses.replace(graph, path=file))


def test_what_the_report_raises_ends_the_build(gpu: FakeGpu, graph: GraphSpec) -> None:
    class GivenUp(Exception):
        pass

    children: list[int] = []

    def give_up(phase: str, done: float) -> None:
        children.extend(builders_of(os.getpid()))
        if phase == "reading the graph":
            raise GivenUp

    gpu.faults("hold")
    with pytest.raises(GivenUp):
        opened(graph, give_up)
    assert children and not set(children) & set(builders_of(os.getpid()))


OPENS = """
import sys
from pathlib import Path
from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.inference.trt.open import open_trt, to_build
graph = load_bundle(Path(sys.argv[1]), verify=False).graphs["predictor"]
open_trt(graph, "tensorrt", "fp32", lambda phase, done: print(phase, flush=True)).close()
"""


def building(gpu: FakeGpu, graph: GraphSpec) -> subprocess.Popen[str]:
    """A process with the same cache that builds the graph's engine now."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{OPENS}",
         str(graph.path.parent)],
        env=environment(gpu.folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    while process.stdout.readline() != "reading the graph\n":
        assert process.poll() is None
    return process


def test_two_processes_do_not_build_the_same_engine(gpu: FakeGpu, graph: GraphSpec) -> None:
    gpu.faults("hold")
    first = building(gpu, graph)
    said: list[str] = []
    waiting = threading.Event()

    def report(phase: str, done: float) -> None:
        said.append(phase)
        if phase.startswith("waiting for another process"):
            waiting.set()

    mine = threading.Thread(target=lambda: opened(graph, report).close())
    mine.start()
    assert waiting.wait(60)
    gpu.faults()
    mine.join(60)
    output, errors = first.communicate(timeout=60)
    assert first.returncode == 0, errors
    assert "Timing tactics" in output and "Timing tactics" not in said
    (timings,) = gpu.engines.glob("*.timing")
    assert timings.read_bytes().count(b"predictor") == 1  # built once


def test_a_builder_ends_with_its_parent_and_another_process_takes_over(
    gpu: FakeGpu, graph: GraphSpec
) -> None:
    gpu.faults("hold")
    parent = building(gpu, graph)
    (child,) = until(lambda: builders_of(parent.pid))
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    until(lambda: b"trt.builder" not in command_of(child))
    gpu.faults()
    opened(graph).close()  # the lock went with the process that had it
