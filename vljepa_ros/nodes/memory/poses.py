"""Where the robot was, from TF, where there is one.

Invariant: a pose that is not known is None, and why is said once; nothing waits for TF.
"""

from __future__ import annotations

from typing import Any

from rclpy.node import Node
from rclpy.time import Time

from vljepa_ros.memory.moment import Pose
from vljepa_ros.stamps import to_ns


class Poses:
    """The pose of a robot's `frame` in `reference`. ImportError where there is no tf2_ros."""

    def __init__(self, node: Node, reference: str, frame: str) -> None:
        import tf2_ros

        self._node, self._reference, self._frame = node, reference, frame
        self._error: type[Exception] = tf2_ros.TransformException
        self._buffer = tf2_ros.Buffer()
        self._listener = tf2_ros.TransformListener(self._buffer, node, spin_thread=False)
        self._reported = False

    def at(self, stamp_ns: int) -> Pose | None:
        """The pose at a stamp, else the newest one; from any thread."""
        for time in (Time(nanoseconds=stamp_ns), Time()):
            try:
                return self._pose(self._buffer.lookup_transform(self._reference, self._frame, time))
            except self._error as error:
                reason = error
        if not self._reported:
            self._reported = True
            self._node.get_logger().warning(
                f"Moments are kept without a pose: '{self._frame}' in '{self._reference}' is not "
                f"known ({reason}); see parameters pose_frame and pose_reference."
            )
        return None

    def close(self) -> None:
        """Listen no longer."""
        self._listener.unregister()

    def _pose(self, found: Any) -> Pose:
        at, turn = found.transform.translation, found.transform.rotation
        stamp = found.header.stamp
        return Pose(
            found.header.frame_id, (at.x, at.y, at.z), (turn.x, turn.y, turn.z, turn.w),
            to_ns(stamp),
        )  # fmt: skip
