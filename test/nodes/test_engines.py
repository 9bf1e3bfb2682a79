"""Nodes on a GPU, made up (fakes/README.md): they serve while engines are built, switch without
losing the stream, and go on elsewhere when the GPU fails.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")

from bundles import make_bundle
from gpu import builders_of, environment
from graph import NodeProcess, Probe, Stream, domain, noise, wait

from vljepa_ros.srv import Ask

QUESTION = "what falls ?"


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The made-up GPU of processes that are started now."""
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    file = Path(os.environ["FAKE_GPU_FAULTS"])
    return SimpleNamespace(
        faults=lambda *words: file.write_text(" ".join(words)), engines=tmp_path / "engines"
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    thresholds = {"gate": 3.0, "change": 0.05, "watch": 0.5}
    return make_bundle(tmp_path_factory.mktemp("gpu") / "tiny", thresholds=thresholds)


@pytest.fixture
def probe() -> Iterator[Probe]:
    probe = Probe(domain())
    yield probe
    probe.close()


@pytest.fixture
def perception(bundle: Path, gpu: SimpleNamespace, probe: Probe) -> Iterator[NodeProcess]:
    gpu.faults("hold")
    node = NodeProcess("perception_node", probe.context.get_domain_id(), bundle=bundle)
    yield node
    assert node.end() == 0
    assert "Traceback" not in node.log


def steps(camera: Stream, seeds: range) -> list[np.ndarray]:
    """Embeddings of one step for each picture; none is missing, and the sequence has no gap."""
    found = [camera.step(noise(seed))[0] for seed in seeds]
    first = found[0].sequence
    assert [m.sequence for m in found] == list(range(first, first + len(found)))
    return [np.asarray(m.embedding) for m in found]


def test_a_build_a_switch_and_a_fault_lose_no_step(
    perception: NodeProcess, gpu: SimpleNamespace, probe: Probe
) -> None:
    camera = Stream(probe, "camera", noise(0))
    assert probe.infos[-1].backend == "onnxruntime-cpu"
    probe.wait(lambda: "perception: build" in probe.health, "the build in /diagnostics")
    assert probe.health["perception: build"].message.startswith("building x_encoder")
    before = camera.step(noise(0))[0].sequence
    served = steps(camera, range(1, 9))

    gpu.faults()
    perception.wait_for_log("The engines are built; now x_encoder on tensorrt (fp16)")
    probe.wait(lambda: probe.infos[-1].backend == "tensorrt", "model_info of the new backend")
    assert probe.infos[-1].precision == "fp16"
    assert camera.step(noise(0))[0].sequence == before + 9
    on_gpu = steps(camera, range(1, 9))
    for one, other in zip(served[3:], on_gpu[3:], strict=True):  # clips of the same four pictures
        assert one @ other > 0.999
    status = probe.wait_for_health
    status("perception: engine x_encoder", lambda values: values["backend"] == "tensorrt")
    request = Ask.Request(question=QUESTION, candidates=["the cube", "the ball"])
    assert probe.call(Ask, "ask", request).success

    sequence = camera.step(noise(0))[0].sequence
    gpu.faults("lost")
    after = camera.step(noise(0))[0]  # the gate finds nothing new: no engine runs
    assert (after.sequence, after.reused) == (sequence + 1, False)
    again = steps(camera, range(1, 9))
    assert camera.step(noise(0))[0].sequence == sequence + 10
    for one, other in zip(on_gpu[3:], again[3:], strict=True):
        assert one @ other > 0.999
    probe.wait(lambda: probe.infos[-1].backend == "onnxruntime-cpu", "model_info of the fallback")
    probe.wait(lambda: "perception: engines" in probe.health, "the fault in /diagnostics")
    fault = probe.health["perception: engines"]
    assert fault.message.startswith("tensorrt failed and was left for onnxruntime-cpu: ")
    assert perception.log.count("tensorrt failed and was left") == 1
    assert probe.call(Ask, "ask", request).success


def test_what_was_built_serves_at_once_the_next_time(
    bundle: Path, gpu: SimpleNamespace, probe: Probe
) -> None:
    domain_id = probe.context.get_domain_id()
    decoder = NodeProcess("decoder_node", domain_id, bundle=bundle, serve_while_building=False)
    decoder.wait_for_log("Active.")
    assert "Building y_decoder" in decoder.log
    assert decoder.end() == 0
    gpu.faults("hold")  # a build would not end
    decoder = NodeProcess("decoder_node", domain_id, bundle=bundle)
    decoder.wait_for_log("Active.")
    probe.wait_for_health(
        "decoder: engine y_decoder", lambda values: values["backend"] == "tensorrt"
    )
    assert "Building" not in decoder.log and decoder.end() == 0


def test_a_build_that_fails_leaves_what_serves(
    bundle: Path, gpu: SimpleNamespace, probe: Probe
) -> None:
    gpu.faults("build")
    node = NodeProcess(
        "perception_node", probe.context.get_domain_id(), bundle=bundle, backend="tensorrt"
    )
    node.wait_for_log("The node goes on with the backend that serves.")
    camera = Stream(probe, "camera", noise(0))
    steps(camera, range(1, 4))
    probe.wait(lambda: "perception: engines" in probe.health, "the fault in /diagnostics")
    assert "goes on" in probe.health["perception: engines"].message
    assert probe.infos[-1].backend == "onnxruntime-cpu"
    assert node.end() == 0 and "Traceback" not in node.log


def test_a_build_is_given_up_with_what_served_meanwhile(
    perception: NodeProcess, gpu: SimpleNamespace, probe: Probe
) -> None:
    perception.wait_for_log("Active.")
    perception.wait_for_log("Building x_encoder")
    parent = perception.process.pid
    wait(lambda: len(builders_of(parent)) == 1, "the builder")
    assert probe.transition("perception", "deactivate")
    assert probe.transition("perception", "cleanup")
    wait(lambda: not builders_of(parent), "the builder to end")
    gpu.faults()
    assert probe.transition("perception", "configure")
    perception.wait_for_log("The engines are built; now x_encoder on tensorrt (fp16)")


def test_a_signal_ends_a_node_whose_engines_are_being_built(
    bundle: Path, gpu: SimpleNamespace, probe: Probe
) -> None:
    gpu.faults("hold")
    node = NodeProcess(
        "perception_node", probe.context.get_domain_id(), bundle=bundle, serve_while_building=False
    )
    node.wait_for_log("Building x_encoder")
    probe.wait(lambda: "perception: build" in probe.health, "the build in /diagnostics")
    assert node.end(within=10) == 0
