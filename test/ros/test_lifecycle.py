"""Transitions, failures and signals of the nodes as processes."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")

from bundles import make_bundle
from graph import SECOND, NodeProcess, Probe, Stream, domain, image, noise, slow_down

MOST = 10.0  # seconds from a signal to the end: 3 on a machine that has time, and never minutes


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("lifecycle") / "tiny")


Start = Callable[..., NodeProcess]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts nodes in one domain; they have to end cleanly."""
    domain_id = domain()
    nodes: list[NodeProcess] = []

    def begin(name: str, **parameters: object) -> NodeProcess:
        nodes.append(NodeProcess(name, domain_id, **parameters))  # type: ignore[arg-type]
        return nodes[-1]

    begin.domain_id = domain_id  # type: ignore[attr-defined]
    yield begin
    for node in nodes:
        if node.process.poll() is None:
            assert node.end() == 0
        assert "Traceback" not in node.log


@pytest.fixture
def probe(start: Start) -> Iterator[Probe]:
    probe = Probe(start.domain_id)  # type: ignore[attr-defined]
    yield probe
    probe.close()


def test_every_transition(start: Start, probe: Probe, bundle: Path) -> None:
    start("perception_node", bundle=bundle, autostart=False)
    assert probe.state("perception") == "unconfigured"
    assert probe.transition("perception", "configure")
    assert probe.state("perception") == "inactive"
    assert probe.transition("perception", "activate")
    camera = Stream(probe, "camera", noise(1))
    assert probe.transition("perception", "deactivate")
    # While inactive nothing is subscribed, so what comes next is the proof that nothing came.
    last = camera.now
    probe.wait(lambda: not camera.heard(), "the node to unsubscribe")
    for _ in range(5):
        camera.send(image(noise(2), camera.tick()))
    silent = camera.now
    assert probe.transition("perception", "activate")
    camera.restart(noise(3))
    assert not any(last < stamp <= silent for stamp in camera.stamps())
    assert probe.transition("perception", "deactivate")
    assert probe.transition("perception", "cleanup")
    assert probe.state("perception") == "unconfigured"
    assert probe.transition("perception", "configure")
    assert probe.transition("perception", "activate")
    camera.restart(noise(4))
    assert probe.transition("perception", "shutdown")
    assert probe.state("perception") == "finalized"


def test_a_failed_configure_says_why_and_can_be_tried_again(
    start: Start, probe: Probe, tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path / "altered")
    graph = bundle / "predictor.onnx"
    whole = graph.read_bytes()
    graph.write_bytes(whole[:-1])
    for name in ("perception", "decoder"):
        if name == "decoder":
            graph.unlink()
        node = start(f"{name}_node", bundle=bundle)
        node.wait_for_log("Cannot configure")
        assert "predictor.onnx" in node.log
        assert probe.state(name) == "unconfigured"
        probe.wait_for_health(f"{name}: state", lambda v: v["state"] == "unconfigured")
        assert "predictor.onnx" in probe.health[f"{name}: state"].message
        assert not probe.transition(name, "configure")
        assert probe.state(name) == "unconfigured"
        graph.write_bytes(whole)
        assert probe.transition(name, "configure")
        assert probe.transition(name, "activate")


@pytest.mark.parametrize("installed", [True, False])
def test_it_advises_what_is_possible(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    if installed:
        (tmp_path / "ros2").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    node = start("perception_node", bundle="/no/such/bundle")
    node.wait_for_log("start it again.")
    advice = "ros2 lifecycle set /perception configure, then activate; or start it again."
    assert (advice in node.log) is installed


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"bundle": "/no/such/bundle"}, "/no/such/bundle"),
        ({"rate": "fast"}, "Parameter 'rate' must be a number, not 'fast'"),
        ({"gate_threshold": 300}, "'gate_threshold' must be in -1..255, not 300"),
        ({"cameras": ["front", "front"]}, "'cameras' must name at least one camera, and each once"),
        ({"camera__transport": "jpeg"}, "must be one of raw, compressed, not 'jpeg'"),
        ({"backend": "tpu"}, "'backend' must be one of"),
    ],
)
def test_a_wrong_parameter_is_one_message(
    start: Start, bundle: Path, parameters: dict[str, object], words: str
) -> None:
    node = start("perception_node", **{"bundle": bundle, **parameters})
    node.wait_for_log("is unconfigured")
    assert words in node.log
    assert node.log.count("Cannot configure") == 1


def test_an_unknown_parameter_is_named(start: Start, bundle: Path) -> None:
    node = start("decoder_node", bundle=bundle, bundel="x", autostart=False)
    node.wait_for_log("Parameter 'bundel' does not exist; did you mean 'bundle'?")


def ends(node: NodeProcess, number: int) -> None:
    began = time.monotonic()
    assert node.end(number, within=2 * MOST) == 0, node.log
    assert time.monotonic() - began < MOST
    assert "Traceback" not in node.log
    assert "Error" not in node.log


@pytest.mark.parametrize("name", ["perception_node", "decoder_node", "video_node"])
def test_a_signal_at_any_moment_of_the_start(bundle: Path, name: str) -> None:
    own = {} if name == "video_node" else {"bundle": bundle}
    for delay, number in zip((0.0, 0.3, 0.7), itertools.cycle((signal.SIGINT, signal.SIGTERM))):
        node = NodeProcess(name, domain(), **own)
        node.in_control()
        time.sleep(delay)  # not for luck: every moment has to do
        if node.process.poll() is None:
            began = time.monotonic()
            code = node.end(number, within=2 * MOST)
            assert time.monotonic() - began < MOST
            refused = "Parameter 'source' is empty" in node.log  # it was about to end by itself
            assert code == int(refused), node.log
        assert "Traceback" not in node.log


def test_a_signal_while_engines_run(start: Start, probe: Probe, tmp_path: Path) -> None:
    """So long that the worker cannot end in time: the process does all the same."""
    bundle = slow_down(make_bundle(tmp_path / "slow"), 10_000)
    node = start("perception_node", bundle=bundle, rate=1000.0, threads=1)
    node.wait_for_log("Active.")
    stamp = itertools.count(SECOND, SECOND // 4)

    def began() -> bool:
        probe.publisher("camera/image_raw").publish(image(noise(1), next(stamp)))
        status = probe.health.get("perception: camera camera")
        return status is not None and int(probe.values(status.name)["dropped"]) > 0

    probe.wait(began, "frames to be dropped while the engine runs")
    ends(node, signal.SIGTERM)


def test_a_signal_while_words_are_made(start: Start, probe: Probe, bundle: Path) -> None:
    perception = start("perception_node", bundle=bundle)
    decoder = start("decoder_node", bundle=bundle)
    decoder.wait_for_log("Active.")
    perception.wait_for_log("Active.")
    Stream(probe, "camera", noise(1))
    ends(decoder, signal.SIGINT)
    ends(perception, signal.SIGINT)
