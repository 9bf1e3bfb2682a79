"""The camera of `vljepa bench node`: noisy rgb8 images from a process of its own.

Usage: WIDTH HEIGHT FPS SECONDS CAMERA... Frame k of every camera has the stamp start + k / FPS, so
that who receives them can tell how many were lost. The scene changes every few seconds, so that
there is something for the decoder to say.
"""

from __future__ import annotations

import sys
import time
from array import array

import numpy as np
import rclpy
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image

PICTURES = 3  # of each scene
SCENE = 4.0  # seconds until the other one comes
SQUARES = (1, 8)  # of one colour, along each side of a scene


def main() -> None:
    """Publish until the time is over."""
    width, height = int(sys.argv[1]), int(sys.argv[2])
    fps, seconds, cameras = float(sys.argv[3]), float(sys.argv[4]), sys.argv[5:]
    rclpy.init(args=[])
    node = rclpy.create_node("bench_camera", start_parameter_services=False)
    publishers = [
        node.create_publisher(Image, f"{name}/image_raw", qos_profile_sensor_data)
        for name in cameras
    ]
    random = np.random.default_rng(0)
    messages = []
    for squares in SQUARES:
        colours = random.integers(0, 192, (squares, squares, 3), np.uint8)
        rows, columns = (np.arange(n) * squares // n for n in (height, width))
        picture = colours[rows][:, columns]
        for _ in range(PICTURES):
            message = Image(width=width, height=height, encoding="rgb8", step=3 * width)
            noise = random.integers(0, 64, picture.shape, np.uint8)
            message.data = array("B", (picture + noise).tobytes())
            messages.append(message)
    while any(publisher.get_subscription_count() == 0 for publisher in publishers):
        time.sleep(0.02)
    start = time.time_ns()
    k = 0
    while k / fps < seconds:
        stamp = start + round(k * 1e9 / fps)
        time.sleep(max(0.0, (stamp - time.time_ns()) / 1e9))
        scene = int(k / fps / SCENE) % len(SQUARES)
        message = messages[scene * PICTURES + k % PICTURES]
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, 1_000_000_000)
        for publisher in publishers:
            publisher.publish(message)
        k += 1


if __name__ == "__main__":
    main()
