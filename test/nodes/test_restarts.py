"""A stream that begins anew at every frame, and stamps of another clock: told, and why."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")

import rclpy
from bundles import make_bundle
from graph import NodeProcess, Probe, Stream, domain, image, noise, wait
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image

from vljepa_ros.nodes.perception import cameras
from vljepa_ros.nodes.perception.cameras import Camera
from vljepa_ros.perception.images import FULL_RANGE
from vljepa_ros.perception.window import Verdict
from vljepa_ros.ros.messages import to_time
from vljepa_ros.stamps import SECOND_NS, other_clock

WARN = b"\x01"
NAME = "perception: camera camera"


@pytest.fixture
def domain_id() -> int:
    return domain()


@pytest.fixture
def node(domain_id: int, tmp_path: Path) -> Iterator[NodeProcess]:
    node = NodeProcess("perception_node", domain_id, bundle=make_bundle(tmp_path / "tiny"))
    node.wait_for_log("Active.")
    yield node
    assert node.end() == 0
    assert "Traceback" not in node.log


@pytest.fixture
def probe(domain_id: int) -> Iterator[Probe]:
    probe = Probe(domain_id)
    yield probe
    probe.close()


def test_a_stream_that_begins_anew_at_every_frame_says_why(node: NodeProcess, probe: Probe) -> None:
    camera = Stream(probe, "camera", noise(0))

    def told(words: str, *steps: float) -> None:
        """Frames whose stamps are so many seconds apart, until the status says `words`."""
        steps_ns = [round(step * SECOND_NS) for step in steps]
        sent = 0

        def is_told() -> bool:
            nonlocal sent
            camera.now += steps_ns[sent % len(steps_ns)]
            sent += 1
            camera.send(image(noise(sent % 7), camera.now))
            probe.executor.spin_once(timeout_sec=0.05)
            status = probe.health.get(NAME)
            return status is not None and status.level == WARN and words in status.message

        probe.wait(is_told, words)
        node.wait_for_log(words)
        assert node.log.count(words) == 1

    def well() -> bool:
        """Whether it steps again, and nothing of this is said."""
        camera.restart(noise(0))
        status = probe.health.get(NAME)
        return status is not None and "no clip fills" not in status.message

    other = probe.node.create_publisher(Image, "camera/image_raw", qos_profile_sensor_data)
    told("its stamps jump back and forth by", 10.0, -9.75)
    assert "'/camera/image_raw' has 2 publishers (/probe, /probe); leave one" in node.log
    probe.node.destroy_publisher(other)
    probe.wait(well, "a stream again")
    told("its frames are 3.5 s apart, more than 'max_gap' (3 s)", 3.5)
    assert "set 'max_gap' to 7 or more." in node.log
    probe.wait(well, "a stream again")
    told("its stamps jump back by 5 s", -5.0)
    probe.wait(well, "a stream again")
    assert probe.set("perception", max_gap=0.1).successful
    told("its frames are 0.25 s apart, more than 'max_gap' (0.1 s)", 0.25)
    assert "set 'max_gap' to 0.5 or more." in node.log
    assert probe.set("perception", max_gap=0.5).successful
    probe.wait(well, "a stream again")


def test_stamps_of_another_clock_are_called_that(node: NodeProcess, probe: Probe) -> None:
    camera = Stream(probe, "camera", noise(0))

    def told(words: str, ahead: float | None = None) -> bool:
        """Whether the status says so; `ahead`: seconds from the clock to the stamps."""
        if ahead is not None:
            camera.now = time.time_ns() + round(ahead * SECOND_NS)
        camera.send(image(noise(0), camera.tick()))
        probe.executor.spin_once(timeout_sec=0.05)
        status = probe.health.get(NAME)
        return status is not None and words in status.message

    words = "its stamps are {} the ROS clock's, so ages and latencies mean nothing"
    years = f"{(time.time() - 1000) / 31_557_600:.1f} years behind"
    probe.wait(lambda: told(words.format(years)), "the difference between the clocks")
    assert probe.health[NAME].level == WARN
    node.wait_for_log(words.format(years))
    wanted = "1.0 hours ahead of the ROS clock's"
    probe.wait(lambda: told(wanted, 3600.0), "the other difference")
    probe.wait(lambda: told("running", -1.0), "stamps of the ROS clock")


@pytest.mark.parametrize(
    ("age", "said"),
    [(0.0, ""), (-0.9, ""), (599.0, ""), (-1.5, "1.5 s ahead of"), (601.0, "601.0 s behind"),
     (7200.0, "2.0 hours behind"), (-172800.0, "2.0 days ahead of"), (1.7e9, "53.9 years behind")],
)  # fmt: skip
def test_what_is_no_age(age: float, said: str) -> None:
    assert other_clock(age) == said


# ------------------------------------------------------------------ silence


class Watcher:
    """One `Camera` in a node of this process, and a node that may publish for it."""

    def __init__(self, *arguments: str, topic: str = "front/image_raw", transport: str = "raw"):
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain(), args=[])
        options: dict[str, Any] = {"context": self.context}
        self.node = rclpy.create_node(
            "perception", cli_args=["--ros-args", *arguments] if arguments else None, **options
        )
        self.driver = rclpy.create_node("driver", **options)
        self.executor = SingleThreadedExecutor(context=self.context)
        for node in (self.node, self.driver):
            self.executor.add_node(node)
        self.camera = Camera(
            self.node,
            "front",
            topic,
            transport,
            FULL_RANGE,
            lambda name, stamp: Verdict.EARLY,
            lambda name, stamp: None,
            lambda: None,
        )
        self.camera.open()

    def spin(self, condition: Any, what: str) -> None:
        def holds() -> bool:
            self.executor.spin_once(timeout_sec=0.01)
            return bool(condition())

        wait(holds, what)

    def close(self) -> None:
        self.camera.close()
        self.executor.shutdown(timeout_sec=0)
        for node in (self.node, self.driver):
            node.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cameras, "QUIET", 0.3)


def test_a_slow_camera_is_not_blamed_on_the_transport(quick: None) -> None:
    watcher = Watcher()
    publisher = watcher.driver.create_publisher(Image, "front/image_raw", 1)
    camera, period = watcher.camera, 0.5  # longer than QUIET
    try:
        watcher.spin(publisher.get_subscription_count, "the subscription")
        said: set[str] = set()
        for count in range(1, 5):
            message = Image()
            message.header.stamp = to_time(count * SECOND_NS)
            publisher.publish(message)
            until = time.monotonic() + period
            watcher.spin(lambda until=until: time.monotonic() >= until, "the next frame")
            if count > 1:  # then the period is known
                said.add(camera.look())
            assert camera.received == count
        assert said == {""}
        watcher.spin(camera.look, "word of its silence")
        assert "'/front/image_raw'" in camera.silence and "see whether the camera runs." in (
            camera.silence
        )
        assert "Fast DDS" not in camera.silence
    finally:
        watcher.close()


def test_nobody_publishes_but_others_do(quick: None) -> None:
    watcher = Watcher()
    try:
        watcher.node.create_publisher(Image, "overlay", 1)  # its own is no camera
        watcher.driver.create_publisher(CompressedImage, "jpeg", 1)
        watcher.spin(watcher.camera.look, "word of its silence")
        assert watcher.camera.look() == (
            "nobody publishes '/front/image_raw' (sensor_msgs/msg/Image)."
        )
        for name in ("right", "left"):
            watcher.driver.create_publisher(Image, f"stereo/{name}", 1)
        watcher.spin(
            lambda: watcher.camera.look() == (
                "nobody publishes '/front/image_raw' (sensor_msgs/msg/Image). Of that type there "
                "are '/stereo/left', '/stereo/right'; set 'front.topic' to the right one."
            ),
            "the topics that there are",
        )  # fmt: skip
    finally:
        watcher.close()


@pytest.mark.parametrize(
    ("rules", "topic"),
    [
        ([], "/front/image_raw/compressed"),
        (["front/image_raw:=/usb/image"], "/usb/image/compressed"),
        (["front/image_raw/compressed:=/usb/jpeg"], "/usb/jpeg"),
        (["front/image_raw:=/usb/image", "front/image_raw/compressed:=/usb/jpeg"], "/usb/jpeg"),
    ],
)
def test_a_remap_of_the_raw_topic_moves_the_compressed_one(rules: list[str], topic: str) -> None:
    arguments = [part for rule in rules for part in ("-r", rule)]
    watcher = Watcher(*arguments, topic="front/image_raw/compressed", transport="compressed")
    try:
        assert watcher.camera.topic == topic
    finally:
        watcher.close()
