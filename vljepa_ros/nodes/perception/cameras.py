"""The cameras of a perception node: subscriptions, one slot each, and what went wrong.

Invariant: the executor's callback never does more than to look at the stamp and fill the slot; a
frame that is replaced in the slot is counted as dropped; a frame that turns out bad costs no slot
of time, as the next good one takes it; each distinct problem of a camera is reported once.
"""

from __future__ import annotations

import copy
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from rclpy.node import Node
from rclpy.qos import (
    QoSCompatibility,
    QoSProfile,
    ReliabilityPolicy,
    qos_check_compatible,
)
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image

from vljepa_ros.errors import counted
from vljepa_ros.perception.compressed import compressed_to_rgb
from vljepa_ros.perception.images import Levels, Note, UnknownEncodingError, to_rgb
from vljepa_ros.perception.window import Verdict
from vljepa_ros.ros.process import FASTDDS_TRANSPORTS, FASTDDS_VARIABLE
from vljepa_ros.stamps import to_ns

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

QUIET = 3.0  # seconds without a frame after which the topic is looked into
LISTED = 5  # topics that a hint names
IMAGE_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
LARGE_IMAGES = (
    "with Fast DDS, whose default drops large images, start the camera's process with "
    f"{FASTDDS_VARIABLE}='{FASTDDS_TRANSPORTS}', or send compressed images"
)
TYPES = {"raw": Image, "compressed": CompressedImage}


@dataclass(frozen=True)
class Frame:
    """A frame that is due. `received`: time.monotonic() in the callback."""

    message: Any
    stamp_ns: int
    received: float


class Camera:
    """One camera's subscription, slot and counters.

    `due(name, stamp_ns)` judges a stamp, `refuse(name, stamp_ns)` takes back that it was due;
    `wake()` tells that the slot is full. `levels`: black and white of 16-bit images.
    """

    def __init__(
        self,
        node: Node,
        name: str,
        topic: str,
        transport: str,
        levels: Levels,
        due: Callable[[str, int], Verdict],
        refuse: Callable[[str, int], None],
        wake: Callable[[], None],
    ) -> None:
        self.name = name
        self.topic = _resolved(node, topic)
        self.type = TYPES[transport]
        self.received = 0  # frames that reached the callback
        self.newest_ns = 0  # stamp of the last of them
        self.lost = 0  # frames that were sent and did not arrive whole
        self.dropped = 0  # frames replaced before the worker came
        self.bad = 0  # frames that could not be used
        self.served = 0.0  # time.monotonic() of the last frame taken
        self.age = 0.0  # seconds, of the last frame when its inference began
        self.problem = ""  # the last one
        self.silence = ""  # why no frame comes; empty where frames come, or may be about to
        self._levels = levels
        self._due = due
        self._refuse = refuse
        self._wake = wake
        self._node = node
        self._lock = threading.Lock()
        self._slot: Frame | None = None
        self._last_due: Frame | None = None  # in the slot, or taken
        self._spare: Frame | None = None  # the next one in its slot of time
        self._subscription: Subscription | None = None
        self._reported: set[str] = set()
        self._size: tuple[int, int] | None = None
        self._heard_ns: int | None = None  # the ROS clock at the last frame since `open`
        self._heard = 0.0  # time.monotonic() of the last frame, or of the subscription
        self._period = 0.0  # seconds between the last two frames
        self._alone = 0.0  # time.monotonic() when nobody was seen to publish

    # ------------------------------------------------------------ the executor's side

    def open(self) -> None:
        """Subscribe."""
        self._heard = self._alone = time.monotonic()
        self._heard_ns = None
        self._reported.clear()
        self.silence = ""
        self._subscription = self._node.create_subscription(
            self.type, self.topic, self.take_in, copy.copy(IMAGE_QOS),  # overrides go into it
            event_callbacks=SubscriptionEventCallbacks(message_lost=self._on_lost),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )  # fmt: skip

    def close(self) -> None:
        """Unsubscribe and empty the slot."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription = None
        with self._lock:
            self._slot = self._last_due = self._spare = None

    def take_in(self, message: Any) -> None:
        """The topic's callback: judge the stamp, and keep the frame where it may be used."""
        received = time.monotonic()
        if self._heard_ns is not None:
            self._period = received - self._heard
        self._heard = received
        self._heard_ns = self._node.get_clock().now().nanoseconds
        self.received += 1
        self.newest_ns = stamp_ns = to_ns(message.header.stamp)
        frame = Frame(message, stamp_ns, received)
        with self._lock:  # so that `_behind` comes before the verdict, or finds the frame
            verdict = self._due(self.name, stamp_ns)
            if verdict.due:
                self.dropped += self._slot is not None
                self._slot, self._last_due, self._spare = frame, frame, None
            elif verdict is Verdict.EARLY:
                self._spare = self._spare or frame
        if verdict.due:
            self._wake()
        elif verdict is Verdict.INVALID:
            self.reject("its images have a stamp of zero; the driver must stamp them.")

    def silent_for(self) -> float | None:
        """Seconds of the ROS clock since the last frame; None before the first since `open`.

        So a simulation that is paused, or a slow bag, does not make its last picture old.
        """
        if self._heard_ns is None:
            return None
        return (self._node.get_clock().now().nanoseconds - self._heard_ns) / 1e9

    def _on_lost(self, event: Any) -> None:
        self.lost += event.total_count_change

    def look(self) -> str:
        """Set and return `silence`; in the executor's thread."""
        self.silence = self._silence()
        return self.silence

    def publishers(self) -> list[str]:
        """Who publishes its topic: the names of the nodes, one for each publisher."""
        return [node_name(p) for p in self._node.get_publishers_info_by_topic(self.topic)]

    def _silence(self) -> str:
        now = time.monotonic()
        silent = now - self._heard
        if silent < max(QUIET, 2 * self._period) or self._subscription is None:
            return ""
        kind = _type_name(self.type)
        wanted = f"'{self.topic}' ({kind})"
        publishers = self._node.get_publishers_info_by_topic(self.topic)
        if not publishers:
            self._alone = now
            return f"nobody publishes {wanted}.{self._sibling() or self._published(kind)}"
        if now - self._alone < QUIET:
            return ""
        misfits = []
        for info in publishers:
            who = node_name(info)
            if info.topic_type != kind:
                misfits.append(f"{who} publishes it as {info.topic_type}")
                continue
            verdict, reason = qos_check_compatible(info.qos_profile, self._subscription.qos_profile)
            if verdict == QoSCompatibility.ERROR:  # each is an object of its own
                misfits.append(f"the QoS of {who} does not match: {reason.rstrip(';')}")
        if misfits:
            return f"no frame on {wanted}: {'; '.join(misfits)}."
        if self._heard_ns is not None:  # so what is sent does arrive
            return f"no frame on {wanted} for {silent:.0f} s; see whether the camera runs."
        return (
            f"no frame on {wanted}, although {len(publishers)} publish it; see whether the camera "
            f"runs, and {LARGE_IMAGES}."
        )

    def _sibling(self) -> str:
        """A hint where the same camera is there on the other transport."""
        raw = self.type is Image
        other = f"{self.topic}/compressed" if raw else self.topic.removesuffix("/compressed")
        transport = "compressed" if raw else "raw"
        if other == self.topic or not self._node.count_publishers(other):
            return ""
        return f" '{other}' is published; set '{self.name}.transport' to {transport} for it."

    def _published(self, kind: str) -> str:
        """A hint at what somebody else publishes of this type."""
        own = self._node.get_fully_qualified_name()
        found = [
            topic
            for topic, types in self._node.get_topic_names_and_types()
            if kind in types
            and any(node_name(p) != own for p in self._node.get_publishers_info_by_topic(topic))
        ]
        if not found:
            return ""
        listed = ", ".join(f"'{topic}'" for topic in found[:LISTED])
        more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
        return f" Of that type there are {listed}{more}; set '{self.name}.topic' to the right one."

    # ------------------------------------------------------------ the worker's side

    @property
    def waiting(self) -> bool:
        """Whether a frame is in the slot."""
        return self._slot is not None

    def take(self) -> Frame | None:
        """Empty the slot."""
        with self._lock:
            frame, self._slot = self._slot, None
        return frame

    def decoded(self, due: Frame) -> tuple[Frame, np.ndarray] | None:
        """The frame, or the next good one in its slot of time, and its picture.

        RGB uint8 `[H, W, 3]`. None, reported, where none has come: the next that does takes the
        slot.
        """
        frame: Frame | None = due
        while frame is not None:
            picture = self._picture(frame)
            if picture is not None:
                return frame, picture
            frame = self._behind(due)
        return None

    def _behind(self, bad: Frame) -> Frame | None:
        """The frame behind one that was due and is bad."""
        with self._lock:
            if bad is not self._last_due:  # its slot of time is over
                return None
            self._refuse(self.name, bad.stamp_ns)
            frame, self._spare = self._spare, None
        return frame

    def _picture(self, frame: Frame) -> np.ndarray | None:
        """The frame as RGB uint8 `[H, W, 3]`; None, reported, where it cannot be decoded."""
        message = frame.message
        try:
            if isinstance(message, CompressedImage):
                picture = compressed_to_rgb(
                    message.format, message.data, self._levels, self._say_once
                )
            else:
                picture = _decode(message, self._levels, self._say_once)
        except ValueError as error:
            self.reject(str(error))
            return None
        size = (picture.shape[1], picture.shape[0])
        if self._size is not None and size != self._size:
            old = self._size
            self.report(
                f"the image size changed from {old[0]} x {old[1]} to {size[0]} x {size[1]}; is "
                f"there more than one publisher on '{self.topic}'?"
            )
        self._size = size
        return picture

    def reject(self, problem: str) -> None:
        """Count a frame that cannot be used, and report why. Both threads do."""
        with self._lock:
            self.bad += 1
        self.report(problem)

    def report(self, problem: str) -> str:
        """Warn of a problem, once; numbers in it do not make it another one. Returns it."""
        self.problem = problem
        self._say_once(problem)
        return problem

    def _say_once(self, problem: str) -> None:
        key = re.sub(r"\d+", "#", problem)
        if key not in self._reported:
            self._reported.add(key)
            self._node.get_logger().warning(f"Camera '{self.name}': {problem}")


def lost_frames(count: int) -> str:
    """A sentence on frames that were sent and did not arrive."""
    were = "was" if count == 1 else "were"
    return f"{counted(count, 'frame')} {were} lost on the way to this node; {LARGE_IMAGES}."


def _decode(message: Image, levels: Levels, note: Note) -> np.ndarray:
    try:
        return to_rgb(
            message.encoding, message.width, message.height, message.step,
            bool(message.is_bigendian), message.data, levels, note,
        )  # fmt: skip
    except UnknownEncodingError:
        bridge = _cv_bridge()
        if bridge is None:
            raise
        try:
            return np.ascontiguousarray(bridge.imgmsg_to_cv2(message, "rgb8"))
        except Exception as error:  # cv_bridge raises its own and OpenCV's
            raise ValueError(f"cv_bridge cannot decode '{message.encoding}': {error}") from None


def _cv_bridge() -> Any:
    """A CvBridge for encodings that are rarer; None where cv_bridge does not import."""
    try:
        from cv_bridge import CvBridge
    except Exception:  # built for another NumPy it fails in many ways
        return None
    return CvBridge()


def _type_name(kind: type) -> str:
    return f"{kind.__module__.partition('.')[0]}/msg/{kind.__name__}"


def node_name(endpoint: Any) -> str:
    """The fully qualified name of a publisher's or subscriber's node."""
    return f"{endpoint.node_namespace.rstrip('/')}/{endpoint.node_name}"


def _resolved(node: Node, topic: str) -> str:
    """The topic after remaps; one of the raw topic moves the compressed one beside it, too."""
    resolved = node.resolve_topic_name(topic)
    raw = topic.removesuffix("/compressed")
    if raw == topic or resolved != node.resolve_topic_name(topic, only_expand=True):
        return resolved
    return f"{node.resolve_topic_name(raw)}/compressed"
