"""The second camera of `vljepa bench node --rough`: what cables and drivers do to a stream.

Usage: FPS SECONDS CAMERA. It is plugged in for `PLUGGED` seconds and unplugged for as long, in
turn; the first two times that it comes back it has another size, and one frame in ten is torn. At
its end it says what it has sent.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from array import array
from types import FrameType

import cv2
import numpy as np
import rclpy
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage

from vljepa_ros.ros.process import init_ros

PLUGGED = 30.0  # seconds
SIZES = ((640, 480), (320, 240), (1280, 720))
TORN = 10  # of so many frames one is
PICTURES = 4  # of each size


def main() -> None:
    """Publish until the time is over, or until SIGTERM."""
    fps, seconds, name = float(sys.argv[1]), float(sys.argv[2]), sys.argv[3]

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    init_ros([])
    node = rclpy.create_node("rough_camera", start_parameter_services=False)
    frames = [[_jpeg(size, seed) for seed in range(PICTURES)] for size in SIZES]
    said = {"sent": 0, "torn": 0, "plugged": 0}
    publisher, began = None, time.monotonic()
    try:
        for k in range(round(seconds * fps)):
            now = k / fps
            time.sleep(max(0.0, began + now - time.monotonic()))
            plugged = int(now / PLUGGED) % 2 == 0
            if publisher is None and plugged:
                topic = f"{name}/image_raw/compressed"
                publisher = node.create_publisher(CompressedImage, topic, qos_profile_sensor_data)
                said["plugged"] += 1
            if publisher is not None and not plugged:
                node.destroy_publisher(publisher)
                publisher = None
            if publisher is None:
                continue
            data = frames[min(len(SIZES), said["plugged"]) - 1][k % PICTURES]
            if k % TORN == 0:
                third = len(data) // 3
                data = data[:third] + data[2 * third :]
            message = CompressedImage(format="jpeg", data=array("B", data))
            message.header.stamp = node.get_clock().now().to_msg()
            publisher.publish(message)
            said["sent"] += 1
            said["torn"] += k % TORN == 0
    except KeyboardInterrupt:
        pass
    print(json.dumps(said), flush=True)


def _jpeg(size: tuple[int, int], seed: int) -> bytes:
    """A picture of coloured squares and noise, `(width, height)`, as JPEG."""
    width, height = size
    random = np.random.default_rng(seed)
    squares = random.integers(0, 192, (6, 8, 3), np.uint8)
    picture = cv2.resize(squares, (width, height), interpolation=cv2.INTER_NEAREST)
    noisy = picture + random.integers(0, 32, picture.shape, np.uint8)
    return bytes(cv2.imencode(".jpg", noisy)[1])


if __name__ == "__main__":
    main()
