"""The camera node: a video file, a folder of images or a device, played as a camera.

Invariant: picture k of a file has the stamp start + offset(k), and start is a whole second, so
that every replay gives the perception node the same frames.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from vljepa_ros.errors import VLJepaError, counted
from vljepa_ros.recordings.video import VideoSource
from vljepa_ros.ros import diagnostics
from vljepa_ros.ros.messages import rgb_message, to_time
from vljepa_ros.ros.names import check_camera
from vljepa_ros.ros.parameters import ParameterError, Spec, declare, unknown, values
from vljepa_ros.stamps import SECOND_NS

LEAD = SECOND_NS // 4  # the publisher knows of a subscriber before that can receive

SPECS = (
    Spec("source", "", "Video file, folder of images, or camera device (a number, /dev/videoN)."),
    Spec("camera", "camera", "Name of the camera; publishes <camera>/image_raw."),
    Spec("frame_id", "", "frame_id of the images; empty: the camera's name."),
    Spec("rate", 0.0, "Mean frames per second; 0: the source's own.", low=0, high=1000),
    Spec("loop", False, "Play a file or folder again when it ends; time goes on."),
    Spec("wait", 10.0, "Seconds to wait for a subscriber before the first frame.",
         low=0, high=86400),
)  # fmt: skip


class VideoNode(Node):
    """Plays a video file, a folder of images or a device as a camera, then finishes."""

    specs = SPECS
    owned = False  # by a process that says itself why it has ended

    def __init__(self, **options: Any) -> None:
        super().__init__("camera", **options)
        self.finished = threading.Event()
        self.on_finished: Callable[[], None] = self.finished.set
        self.exit_code = 0
        self.failure = ""  # why it has ended before the source
        self.published = 0
        self._problems = declare(self, self.specs)
        for sentence in unknown(self):
            self.get_logger().warning(sentence)
        self._values = values(self, self.specs)
        self._thread = threading.Thread(target=self._play, name="video", daemon=True)
        try:
            check_camera("Parameter 'camera'", self._values["camera"])
        except VLJepaError as error:
            self._problems.append(str(error))
        else:
            self._publisher = self.create_publisher(
                Image, f"{self._values['camera']}/image_raw", qos_profile_sensor_data
            )
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._diagnostics = diagnostics.publisher(self)
        self._timer = self.create_timer(1.0, self._diagnose, clock=steady)
        self._starter = self.create_timer(0.0, self._begin, clock=steady)

    def _begin(self) -> None:
        """The node spins: it may now end by itself."""
        self._starter.cancel()
        self._thread.start()

    def end(self) -> None:
        """Stop playing."""
        self.finished.set()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def _diagnose(self) -> None:
        status = diagnostics.Status("video", message="playing" if self.published else "waiting")
        status.values = {"source": self._values["source"], "frames": self.published}
        diagnostics.publish(self._diagnostics, self, [status])

    def _play(self) -> None:
        """The player's thread."""
        try:
            if self._problems:
                raise ParameterError(" ".join(self._problems))
            if not self._values["source"]:
                raise ParameterError("Parameter 'source' is empty; give it a video to play.")
            source = VideoSource(self._values["source"], self._values["rate"] or None)
            try:
                self._wait_for_subscriber()
                self._play_source(source)
            finally:
                source.close()
        except (VLJepaError, OSError) as error:
            if not self.owned:
                self.get_logger().fatal(str(error))
            self.failure, self.exit_code = str(error), 1
        except Exception as error:
            self.get_logger().fatal(traceback.format_exc())
            self.failure, self.exit_code = f"{type(error).__name__}: {error}", 1
        self.on_finished()

    def _wait_for_subscriber(self) -> None:
        waited = 0.0
        while self._publisher.get_subscription_count() == 0 and waited < self._values["wait"]:
            if self.finished.wait(0.05):
                return
            waited += 0.05

    def _play_source(self, source: VideoSource) -> None:
        start = self._start(source.live)
        rate = f", {source.fps:g} frames per second" if source.fps else ""
        self.get_logger().info(
            f"Playing {source.source} ({source.size[0]} x {source.size[1]}{rate}) on "
            f"'{self._publisher.topic_name}'."
        )
        while not self.finished.is_set():
            for offset, picture in source.frames():
                if not self._sleep_until(start + offset):
                    return
                self._publish(start + offset, picture)
            if not self._values["loop"] or source.live:
                break
            start += round(source.seconds * SECOND_NS)
        self.get_logger().info(f"The video has ended after {counted(self.published, 'frame')}.")

    def _start(self, live: bool) -> int:
        """The stamp of the first picture, in nanoseconds.

        For a file the first whole second that is at least `LEAD` ahead.
        """
        while (now := self.get_clock().now().nanoseconds) == 0 and not self.finished.is_set():
            self.finished.wait(0.02)  # simulated time has not begun
        return now if live else ((now + LEAD) // SECOND_NS + 1) * SECOND_NS

    def _sleep_until(self, stamp_ns: int) -> bool:
        """Wait for the ROS clock; False where the node ends before."""
        simulated = self.get_clock().ros_time_is_active
        while (ahead := stamp_ns - self.get_clock().now().nanoseconds) > 0:
            if self.finished.wait(min(ahead / SECOND_NS, 0.005 if simulated else 1.0)):
                return False
        return not self.finished.is_set()

    def _publish(self, stamp_ns: int, picture: Any) -> None:
        frame_id = self._values["frame_id"] or self._values["camera"]
        header = Header(stamp=to_time(stamp_ns), frame_id=frame_id)
        self._publisher.publish(rgb_message(picture, header))
        self.published += 1
