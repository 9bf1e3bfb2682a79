"""Damaged frames of a live camera: counted, said once, and without cost for the good ones."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rclpy

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")

from bundles import make_bundle
from diagnostic_msgs.msg import DiagnosticStatus
from graph import SECOND, NodeProcess, Probe, compressed, domain, image, noise
from pictures import encode
from sensor_msgs.msg import CompressedImage

from vljepa_ros.nodes.perception.cameras import Camera, Frame
from vljepa_ros.perception.images import FULL_RANGE
from vljepa_ros.perception.window import Sampler, Verdict
from vljepa_ros.stamps import to_ns

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

    probe.wait(three_bad, lambda: f"three bad frames; the log:\n{node.log}")
    status = probe.health[name]
    assert status.level == DiagnosticStatus.ERROR
    assert "JPEG image" in status.message
    assert "damaged" in status.message
    assert node.log.count("damaged") == 1, node.log
    assert "Corrupt JPEG data:" not in node.log.replace("(Corrupt JPEG data:", "")


def test_a_bad_frame_does_not_cost_its_slot(probe: Probe, node: NodeProcess) -> None:
    """A camera whose first frame of every slot is torn: the next one takes it."""
    now = begin(probe)
    publisher = probe.publisher("jpeg/image_raw/compressed", CompressedImage)
    wanted = int(_bad(probe)) + 6
    bad = 0
    while bad < wanted:  # the good one may overtake the torn
        for _ in range(3):
            now += SLOT
            publisher.publish(compressed(torn(now // SLOT % 7), now))
            seen = now

            def answered() -> bool:
                nonlocal seen
                seen += SLOT // 2000
                publisher.publish(compressed(jpeg(0), seen))
                return to_ns(probe.of("jpeg")[-1].header.stamp) > now  # noqa: B023 - called at once

            probe.wait(answered, f"an embedding of the slot at {now}; the log:\n{node.log}")
            assert seen < now + SLOT
        bad = int(_bad(probe))


def test_a_frame_that_comes_while_the_one_before_turns_out_bad(domain_id: int) -> None:
    """It is judged as one more of its slot, and is the one that takes it."""
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain_id, args=[])
    node = rclpy.create_node("bad_frames", context=context)
    sampler = Sampler(4000, SECOND, SECOND)
    found: list[tuple[Frame, np.ndarray] | None] = []
    workers: list[threading.Thread] = []

    def due(name: str, stamp: int) -> Verdict:
        verdict = sampler.offer(stamp)
        if verdict is Verdict.EARLY and not workers:  # and now the worker sees what it has
            workers.append(threading.Thread(target=lambda: found.append(camera.decoded(bad))))
            workers[0].start()
            workers[0].join(1.0)  # which it must not finish before the verdict is heeded
        return verdict

    def refuse(name: str, stamp: int) -> None:
        sampler.refuse(stamp)

    camera = Camera(
        node, "jpeg", "jpeg/image_raw", "compressed", FULL_RANGE, due, refuse, lambda: None
    )
    camera.take_in(compressed(torn(0), SECOND))
    bad = camera.take()
    assert bad is not None
    camera.take_in(compressed(jpeg(0), SECOND + SLOT // 2))
    workers[0].join()
    assert found[0] is not None
    assert found[0][0].stamp_ns == SECOND + SLOT // 2

    # One that is of the next slot takes none before: time would jump back behind it.
    camera.take_in(compressed(torn(0), 2 * SECOND))
    bad = camera.take()
    assert bad is not None
    camera.take_in(compressed(jpeg(0), 2 * SECOND + SLOT))
    camera.take_in(compressed(jpeg(0), 2 * SECOND + SLOT + SLOT // 2))
    assert camera.decoded(bad) is None
    frame = camera.take()
    assert frame is not None
    assert frame.stamp_ns == 2 * SECOND + SLOT
    node.destroy_node()
    rclpy.shutdown(context=context)


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
