"""The camera of `vljepa bench node`: noisy rgb8 images from a process of its own.

Usage: WIDTH HEIGHT FPS SECONDS CAMERA... Frame k of every camera has the stamp start + k / FPS, so
that who receives them can tell how many were lost. The scene, one of the shipped video, changes
every few seconds, so that there is something for the decoder to say.
"""

from __future__ import annotations

import sys
import time
from array import array

import cv2
import numpy as np
import rclpy
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image

from vljepa_ros.bundle.locate import shared_folders
from vljepa_ros.recordings.video import VideoSource

PICTURES = 3  # of each scene
SCENE = 4.0  # seconds until the other one comes
SCENES = (21.0, 32.0)  # seconds of the video: a quiet table, and a hand over it
NOISE = 64  # grey levels


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
    messages = []
    for picture in pictures(width, height):
        message = Image(width=width, height=height, encoding="rgb8", step=3 * width)
        message.data = array("B", picture.tobytes())
        messages.append(message)
    while any(publisher.get_subscription_count() == 0 for publisher in publishers):
        time.sleep(0.02)
    start = time.time_ns()
    k = 0
    while k / fps < seconds:
        stamp = start + round(k * 1e9 / fps)
        time.sleep(max(0.0, (stamp - time.time_ns()) / 1e9))
        message = messages[shown(k, fps)]
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, 1_000_000_000)
        for publisher in publishers:
            publisher.publish(message)
        k += 1


def shown(frame: int, fps: float) -> int:
    """Which of the pictures a frame shows, by its number."""
    return int(frame / fps / SCENE) % len(SCENES) * PICTURES + frame % PICTURES


def pictures(width: int, height: int) -> list[np.ndarray]:
    """`PICTURES` of each scene, uint8 `[height, width, 3]`, each with other noise."""
    random = np.random.default_rng(0)
    videos = (folder / "tabletop.mp4" for folder in shared_folders("videos"))
    source = VideoSource(next(video for video in videos if video.is_file()))
    found = [p for offset, p in source.frames() if offset / 1e9 in SCENES]
    return [
        (small * (256 - NOISE) // 256 + random.integers(0, NOISE, small.shape)).astype(np.uint8)
        for small in (cv2.resize(p, (width, height)).astype(np.uint16) for p in found)
        for _ in range(PICTURES)
    ]


if __name__ == "__main__":
    main()
