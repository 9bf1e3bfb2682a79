"""Damaged frames of a live camera: counted, said once, and without cost for the good ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")

from bundles import make_bundle
from diagnostic_msgs.msg import DiagnosticStatus
from graph import SECOND, NodeProcess, Probe, compressed, domain, image, noise
from pictures import encode
from sensor_msgs.msg import CompressedImage

SLOT = SECOND // 4


@pytest.fixture(scope="module")
def domain_id() -> int:
    return domain()


@pytest.fixture(scope="module")
def node(domain_id: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    node = NodeProcess(
        "perception_node", domain_id, threads=1, gate_threshold=0.0,
        bundle=make_bundle(tmp_path_factory.mktemp("bundle") / "b"), cameras=["jpeg", "thermal"],
        jpeg__transport="compressed",
    )  # fmt: skip
    node.wait_for_log("Active.")
    yield node
    assert node.end() == 0


@pytest.fixture
def probe(domain_id: int, node: NodeProcess) -> Iterator[Probe]:
    probe = Probe(domain_id)
    yield probe
    probe.close()


def jpeg(seed: int) -> bytes:
    return encode("jpg", noise(seed, 320, 240))


def torn(seed: int) -> bytes:
    """With the middle third of it missing."""
    data = jpeg(seed)
    return data[: len(data) // 3] + data[2 * len(data) // 3 :]


def begin(probe: Probe) -> int:
    """Whole frames until the stream is there; the stamp of the last one."""
    publisher = probe.publisher("jpeg/image_raw/compressed", CompressedImage)
    now = probe.fresh_time()
    start = now

    def answered() -> bool:
        nonlocal now
        now += SLOT
        publisher.publish(compressed(jpeg(0), now))
        return bool(probe.of("jpeg")) and probe.of("jpeg")[-1].header.stamp.sec >= start // SECOND

    probe.wait(answered, "an embedding of a jpeg")
    return now


def test_torn_frames_are_counted_and_said_once(probe: Probe, node: NodeProcess) -> None:
    now = begin(probe)
    publisher = probe.publisher("jpeg/image_raw/compressed", CompressedImage)
    name = "perception: camera jpeg"
    probe.health.clear()

    def three_bad() -> bool:
        nonlocal now
        now += SLOT
        publisher.publish(compressed(torn(now // SLOT % 7), now))
        status = probe.health.get(name)
        return status is not None and int(probe.values(name)["bad frames"]) >= 3

    probe.wait(three_bad, f"three bad frames; the log:\n{node.log}")
    status = probe.health[name]
    assert status.level == DiagnosticStatus.ERROR
    assert "JPEG image" in status.message
    assert "damaged" in status.message
    assert node.log.count("damaged") == 1, node.log
    assert "Corrupt JPEG data:" not in node.log.replace("(Corrupt JPEG data:", "")


def test_a_bad_frame_does_not_cost_its_slot(probe: Probe, node: NodeProcess) -> None:
    """A camera of 8 Hz whose first frame of every slot is torn: the second takes it."""
    now = begin(probe)
    publisher = probe.publisher("jpeg/image_raw/compressed", CompressedImage)
    before = int(_bad(probe))
    for k in range(12):
        now += SLOT
        publisher.publish(compressed(torn(k), now))
        seen = now + SLOT // 2

        def answered(seen: int = seen, k: int = k) -> bool:
            publisher.publish(compressed(jpeg(k), seen))  # again: the torn one may be on its way
            return bool(probe.at("jpeg", seen))

        probe.wait(answered, f"the embedding at {seen}; the log:\n{node.log}")
    assert int(_bad(probe)) >= before + 6  # the next may have overtaken one


def _bad(probe: Probe) -> str:
    name = "perception: camera jpeg"
    probe.wait_for_health(name, lambda values: True)
    return probe.values(name)["bad frames"]


def test_a_thermal_camera_is_told_of_its_levels(probe: Probe, node: NodeProcess) -> None:
    warm = np.linspace(7000, 8200, 64 * 48).astype("<u2").reshape(48, 64)
    now = probe.fresh_time()

    def answered() -> bool:
        nonlocal now
        now += SLOT
        probe.publisher("thermal/image_raw").publish(image(warm, now, encoding="mono16", step=128))
        return len(probe.of("thermal")) >= 2

    probe.wait(answered, "embeddings of the thermal camera")
    assert node.log.count("with values from 7000 to 8200") == 1, node.log
    assert "set 'black' and 'white'" in node.log


def test_black_is_below_white(domain_id: int, tmp_path: Path) -> None:
    node = NodeProcess(
        "perception_node", domain_id, namespace="/dark", bundle=make_bundle(tmp_path / "b"),
        camera__black=8200, camera__white=7000,
    )  # fmt: skip
    node.wait_for_log("'camera.white' must be above 'camera.black' (8200), not 7000")
    node.end()
