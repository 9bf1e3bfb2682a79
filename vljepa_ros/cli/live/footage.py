"""Footage of the running graph, for `vljepa calibrate --live`.

Invariant: it only subscribes, takes the frames that the perception node takes, and ends: when it
has its seconds of frames, by their stamps, with a sentence where a camera sends nothing, or soon
after SIGINT or SIGTERM.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from vljepa_ros.bundle.spec import Bundle
from vljepa_ros.console import notice
from vljepa_ros.errors import VLJepaError
from vljepa_ros.inference.preprocess import prepare
from vljepa_ros.perception.images import FULL_RANGE
from vljepa_ros.perception.window import Sampler, Verdict, millihertz
from vljepa_ros.recordings.calibration import Source
from vljepa_ros.recordings.indexing.recording import camera_of
from vljepa_ros.recordings.offline import RecordedFrame
from vljepa_ros.ros.process import Signals, init_ros, needs_ros, set_fastdds

SPIN = 0.05  # seconds until a signal is seen
DISCOVERY = 10.0  # seconds in which a camera that is there is found, on a busy machine, too
MAX_GAP_NS = 3 * 10**9


def record(bundle: Bundle, topics: Sequence[str], seconds: float) -> list[Source]:
    """What cameras show for so many seconds, a source for each of the image `topics`.

    Frames are kept as the clips of `bundle` have them. VLJepaError where a camera sends nothing.
    """
    if not topics:
        raise VLJepaError("Name the camera's topic: --live 60 --topic front/image_raw.")
    set_fastdds()
    signals, stopped = Signals(), threading.Event()
    try:
        import rclpy

        from vljepa_ros.nodes.perception.cameras import Camera
    except ImportError as error:
        raise needs_ros("calibrate --live", error) from error
    init_ros([])
    signals.on_stop(stopped.set)
    node = rclpy.create_node("vljepa_calibrate", start_parameter_services=False)
    kept: dict[str, list[RecordedFrame]] = {topic: [] for topic in topics}
    cameras = {
        topic: Camera(
            node, camera_of(topic), topic,
            "compressed" if topic.endswith("/compressed") else "raw", FULL_RANGE,
            *_judges(bundle), lambda: None,  # nobody is to be woken
        )
        for topic in topics
    }  # fmt: skip
    began = time.monotonic()
    notice(f"Looking at {', '.join(topics)} for {seconds:g} s; Ctrl-C ends it.")
    try:
        for camera in cameras.values():
            camera.open()
        wanted = seconds * bundle.clip.sample_rate  # frames; a clock that stands still adds none
        while min(map(len, kept.values())) < wanted and not stopped.is_set():
            rclpy.spin_once(node, timeout_sec=SPIN)
            for topic, camera in cameras.items():
                frame = camera.take()
                decoded = None if frame is None else camera.decoded(frame)
                if decoded is not None:
                    frame, picture = decoded
                    square = prepare(
                        picture, bundle.clip.image_size, bundle.resample, bundle.resize
                    )
                    stamp = frame.stamp_ns
                    kept[topic].append(
                        RecordedFrame(camera.name, stamp, "", stamp, partial(np.asarray, square))
                    )
                silence = camera.look()
                if silence and time.monotonic() - began > DISCOVERY:
                    raise VLJepaError(f"Camera '{camera.name}': {silence}")
    finally:
        for camera in cameras.values():
            camera.close()
        node.destroy_node()
        rclpy.try_shutdown()
    if stopped.is_set():
        raise VLJepaError("Stopped before the footage was whole.")
    return [
        Source(f"{topic}, live", (cameras[topic].name,), partial(iter, kept[topic]))
        for topic in topics
    ]


def _judges(
    bundle: Bundle,
) -> tuple[Callable[[str, int], Verdict], Callable[[str, int], None]]:
    """What a camera is told of its frames: `due` where clips of `bundle` have it; `refuse`."""
    sampler = Sampler(millihertz(bundle.clip.sample_rate), bundle.clip.span_ns, MAX_GAP_NS)
    return lambda _, stamp_ns: sampler.offer(stamp_ns), lambda _, stamp_ns: sampler.refuse(stamp_ns)
