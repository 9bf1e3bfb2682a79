"""Several cameras, overload, and embeddings that are not finite: counted, never timed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")

from bundles import make_bundle
from graph import (
    SECOND,
    NodeProcess,
    Probe,
    Stream,
    domain,
    image,
    noise,
    not_finite_when_black,
    slow_down,
)

from vljepa_ros.stamps import to_ns

pytestmark = pytest.mark.usefixtures("default_transports")

CAMERAS = {"a": (1, 64, 48), "b": (2, 320, 240), "c": (3, 33, 77), "d": (5, 160, 120)}


@pytest.fixture
def domain_id() -> int:
    return domain()


@pytest.fixture
def probe(domain_id: int) -> Iterator[Probe]:
    probe = Probe(domain_id)
    yield probe
    probe.close()


def begin(domain_id: int, **parameters: object) -> NodeProcess:
    node = NodeProcess("perception_node", domain_id, **parameters)  # type: ignore[arg-type]
    node.wait_for_log("Active.")
    return node


def test_cameras_of_different_rates_and_sizes_share_alike(
    domain_id: int, probe: Probe, tmp_path: Path
) -> None:
    """Frames come faster than the engine can take them, from some cameras more than from others."""
    bundle = slow_down(make_bundle(tmp_path / "slow"), 10)
    node = begin(domain_id, bundle=bundle, cameras=list(CAMERAS), threads=1, gate_threshold=0.0)
    streams = {name: Stream(probe, name, noise(0, w, h)) for name, (_, w, h) in CAMERAS.items()}
    pictures = {name: [noise(k, w, h) for k in (1, 2)] for name, (_, w, h) in CAMERAS.items()}
    before = {name: len(probe.of(name)) for name in CAMERAS}
    for tick in range(80):
        for name, stream in streams.items():
            frames = CAMERAS[name][0]
            start = stream.now
            for k in range(frames):  # all but the first of a tick are not due
                stamp = start + SECOND // 4 * (k + frames) // frames
                stream.send(image(pictures[name][tick % 2], stamp))
            stream.now = start + SECOND // 4
        probe.executor.spin_once(timeout_sec=0.01)
    for stream in streams.values():
        stream.restart(noise(9))
    served = {name: len(probe.of(name)) - before[name] for name in CAMERAS}
    mean = np.mean(list(served.values()))
    assert all(abs(count - mean) <= max(0.1 * mean, 4) for count in served.values()), served
    for name in CAMERAS:
        probe.wait_for_health(
            f"perception: camera {name}", lambda v: int(v["dropped"]) + int(v["steps"]) > 0
        )
    assert node.end() == 0


def test_overload_drops_and_counts_but_never_queues(
    domain_id: int, probe: Probe, tmp_path: Path
) -> None:
    bundle = slow_down(make_bundle(tmp_path / "slow"), 10)
    node = begin(domain_id, bundle=bundle, threads=1, gate_threshold=0.0)
    camera = Stream(probe, "camera", noise(0))
    dropped = 0
    sent = 0

    def overloaded() -> bool:
        nonlocal dropped, sent
        for _ in range(10):
            camera.send(image(noise(sent % 7), camera.tick()))
            sent += 1
            probe.executor.spin_once(timeout_sec=0.002)
        status = probe.health.get("perception: camera camera")
        dropped = int(probe.values(status.name)["dropped"]) if status else 0
        return dropped >= 20

    probe.wait(overloaded, "20 dropped frames")
    # The parameters answer all the same.
    assert probe.get("perception", "rate").double_value == 0.0
    # Behind the frame in the engine waits one frame at most: the newest.
    answered = {to_ns(e.header.stamp) for e in probe.of("camera")}
    last = camera.now
    camera.restart(noise(8))
    late = {
        to_ns(e.header.stamp) for e in probe.of("camera") if to_ns(e.header.stamp) <= last
    } - answered
    assert len(late) <= 2 + 1, late  # one in the engine, one in the slot, one on its way to us
    assert len(probe.of("camera")) < sent
    assert node.end() == 0


def test_an_embedding_that_is_not_finite_is_one_message(
    domain_id: int, probe: Probe, tmp_path: Path
) -> None:
    bundle = not_finite_when_black(make_bundle(tmp_path / "nan"))
    node = begin(domain_id, bundle=bundle)
    camera = Stream(probe, "camera", noise(0))
    black = np.zeros((48, 64, 3), np.uint8)

    def failed() -> bool:
        camera.send(image(black, camera.tick()))
        status = probe.health.get("perception: camera camera")
        return status is not None and int(probe.values(status.name)["steps not finite"]) >= 3

    probe.wait(failed, "three steps that are not finite")
    assert node.log.count("not finite") == 1, node.log
    camera.restart(noise(1))
    assert all(np.isfinite(e.embedding).all() for e in probe.of("camera"))
    assert node.end() == 0
