"""The camera node: what it plays and how it ends; and that live is what offline is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")

import itertools
import time

from bundles import make_bundle
from graph import SECOND, NodeProcess, Probe, Stream, domain, image, noise
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from video_files import numbers, write_video

from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.perception.perceiver import Perceiver
from vljepa_ros.perception.settings import Settings
from vljepa_ros.recordings.offline import RecordedFrame, perceive
from vljepa_ros.recordings.video import VideoSource
from vljepa_ros.stamps import to_ns

RATE = 8.0  # frames per second


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 32 images: 4 s at 8 Hz."""
    folder = tmp_path_factory.mktemp("images")
    for k in range(32):
        cv2.imwrite(str(folder / f"{k}.png"), noise(k)[..., ::-1])
    return folder


def test_a_folder_is_played_from_a_whole_second(folder: Path) -> None:
    """Images are best effort, so some may be missing; those that come are as they should be."""
    domain_id = domain()
    probe = Probe(domain_id)
    seen: list[Any] = []
    probe.node.create_subscription(Image, "camera/image_raw", seen.append, qos_profile_sensor_data)
    video = NodeProcess("video_node", domain_id, source=folder, rate=RATE, frame_id="lens")
    probe.wait(lambda: video.process.poll() is not None and seen, "the video to end")
    assert video.process.returncode == 0
    assert "ended after 32 frames" in video.log
    pictures = [noise(k).tobytes() for k in range(32)]
    begins = {to_ns(m.header.stamp) - round(n * SECOND / RATE)
              for m in seen for n in [pictures.index(m.data.tobytes())]}  # fmt: skip
    assert len(begins) == 1
    assert begins.pop() % SECOND == 0
    assert {m.header.frame_id for m in seen} == {"lens"}
    probe.close()


@pytest.mark.parametrize(("chunk", "query"), [(None, True), (2, True), (1, False)])
def test_live_is_what_offline_is(tmp_path: Path, chunk: int | None, query: bool) -> None:
    """Of a camera of 8 Hz that waits for every answer, so that no frame is lost."""
    bundle = make_bundle(
        tmp_path / "tiny", chunk=chunk, query=query,
        thresholds={"gate": 3.0, "change": 0.05, "watch": 0.5},
    )  # fmt: skip
    domain_id = domain()
    perception = NodeProcess("perception_node", domain_id, bundle=bundle)
    probe = Probe(domain_id)
    perception.wait_for_log("Active.")
    stream = Stream(probe, "camera", noise(0))  # which has sent its first picture at every tick
    sent = [(stamp, noise(0)) for stamp in range(stream.begin, stream.now + 1, SECOND // 4)]
    live: list[Any] = []
    for k in range(1, 17):
        live += stream.step(noise(k // 3))
        sent += [(stream.now, noise(k // 3)), (stream.now + SECOND // 8, noise(99))]
        stream.send(image(noise(99), stream.now + SECOND // 8))  # of a slot that has its frame
    assert perception.end() == 0
    probe.close()

    frames = [RecordedFrame("camera", t, "optical", t, lambda p=p: p) for t, p in sent]  # type: ignore[misc]
    perceiver = Perceiver(Runtime(load_bundle(bundle)), ["camera"], Settings())
    perceived = perceive(frames, perceiver, lambda frame, reason: pytest.fail(reason))
    offline = [step for _, _, steps in perceived for step in steps][-len(live) :]
    assert len(offline) == len(live) == 16
    for message, step in zip(live, offline, strict=True):
        assert to_ns(message.header.stamp) == step.stamp_ns
        assert to_ns(message.window_start) == step.window_start_ns
        np.testing.assert_allclose(message.embedding, step.embedding, atol=1e-5)
        assert message.header.frame_id == "optical"
        assert message.sequence - live[0].sequence == step.sequence - offline[0].sequence
        assert message.segment_id == step.segment_id
        assert message.reused == step.reused
        assert message.change_score == pytest.approx(step.change_score, abs=1e-4)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("", "Parameter 'source' is empty"),
        ("/no/such.mp4", "/no/such.mp4"),
        ("damaged", "not a video"),
        ("a" * 300, "File name too long"),
    ],
)
def test_what_cannot_be_played_is_one_message(source: str, words: str, tmp_path: Path) -> None:
    if source == "damaged":
        path = tmp_path / "damaged.mp4"
        path.write_bytes(b"\x00\x00\x00\x18ftypmp42" + bytes(1000))
        source = str(path)
    node = NodeProcess("video_node", domain(), source=source)
    assert node.process.wait(20) == 1
    assert words in node.log
    assert "Traceback" not in node.log


def test_it_loops_until_a_signal(folder: Path) -> None:
    domain_id = domain()
    probe = Probe(domain_id)
    stamps: list[int] = []
    probe.node.create_subscription(
        Image, "camera/image_raw", lambda m: stamps.append(to_ns(m.header.stamp)),
        qos_profile_sensor_data,
    )  # fmt: skip
    node = NodeProcess("video_node", domain_id, source=folder, rate=100.0, loop=True)
    probe.wait(lambda: len(stamps) > 70, "more frames than the folder has")
    assert all(later > earlier for earlier, later in itertools.pairwise(stamps))
    probe.close()
    assert node.end() == 0
    assert "Traceback" not in node.log


@pytest.mark.parametrize("speed", [1, 2])
def test_a_video_of_varying_rate_is_played_at_its_own_times(tmp_path: Path, speed: int) -> None:
    """Also when it is played again, and faster; images are best effort, so one may be missing."""
    times = [0, 40, 300, 350, 900]  # ms
    path = write_video(tmp_path / "v.mp4", times)
    rate = speed * VideoSource(path).fps if speed > 1 else 0.0
    domain_id = domain()
    probe = Probe(domain_id)
    seen: list[tuple[int, int, int]] = []  # number, stamp, when it came

    def take(message: Image) -> None:
        rgb = np.frombuffer(message.data, np.uint8)
        seen.append((*numbers([rgb]), to_ns(message.header.stamp), time.time_ns()))

    probe.node.create_subscription(Image, "camera/image_raw", take, qos_profile_sensor_data)
    node = NodeProcess("video_node", domain_id, source=path, rate=rate, loop=True)
    gaps = dict(zip(itertools.pairwise(range(5)), np.diff(times) * 1e6 / speed, strict=True))
    source = VideoSource(path)
    assert len(list(source.frames())) == 5  # after which its length is known
    long = source.seconds * 1e9 / speed
    gaps[4, 0] = long - times[-1] * 1e6 / speed

    def pairs() -> list[tuple[tuple[int, int], int]]:
        both = itertools.pairwise(seen)
        return [((a[0], b[0]), b[1] - a[1]) for a, b in both if b[1] - a[1] < long]

    probe.wait(lambda: gaps.keys() <= {pair for pair, _ in pairs()}, "every picture after another")
    for pair, gap in pairs():
        if pair in gaps:
            assert gap == pytest.approx(gaps[pair], abs=2)
    assert all(came >= stamp for _, stamp, came in seen)  # none is shown before its time
    probe.close()
    assert node.end() == 0
    assert "Traceback" not in node.log
