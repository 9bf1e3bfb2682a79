"""Pictures from a rosbag2 recording (sqlite3 or MCAP) with their times; needs no ROS.

Invariant: the time of a picture is that of its message's header, and pictures come in the order in
which they were recorded. What cannot be used is left out, and told.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from vljepa_ros.perception.compressed import compressed_to_rgb
from vljepa_ros.perception.images import FULL_RANGE, Levels, Note, ignore, to_rgb
from vljepa_ros.stamps import to_ns

from .bag_files import bag_messages
from .left_out import LeftOut
from .storage import BagError, Message, Topic, decompressed, reason_of

RAW, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
DAY_NS = 86_400 * 10**9
LAST_NS = 2**31 * 10**9  # what a message's time holds
# A recorder with several compressing threads writes neighbours in any order: so many messages and
# nanoseconds apart at most. What lies further back was written after its clock was set.
NEIGHBOURS, BACK_NS = 16, 200_000_000
ZSTD = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True)
class BagInfo:
    """The topics that images were recorded on, sorted, and for about how many seconds."""

    image_topics: list[str]
    seconds: float


@dataclass(frozen=True)
class BagImage:
    """An image message. `stamp_ns` is its header's, `log_ns` when it was recorded."""

    topic: str
    stamp_ns: int
    frame_id: str
    log_ns: int
    message: Any

    def picture(self, levels: Levels = FULL_RANGE, note: Note = ignore) -> np.ndarray:
        """RGB uint8 `[H, W, 3]`; ValueError, a sentence, where it cannot be decoded.

        `levels`, `note`: as for `to_rgb`.
        """
        message = self.message
        if message.__msgtype__ == COMPRESSED:
            return compressed_to_rgb(message.format, message.data, levels, note)
        return to_rgb(
            message.encoding, message.width, message.height, message.step,
            bool(message.is_bigendian), message.data, levels, note,
        )  # fmt: skip


class Elapsed:
    """The seconds of a recording by its log times; where the clock was set, none pass."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._newest: int | None = None

    def add(self, log_ns: int) -> float:
        """The seconds up to the next message."""
        newest = log_ns if self._newest is None else self._newest
        if was_set(log_ns - newest):
            newest = log_ns
        self.seconds += max(0, log_ns - newest) / 1e9
        self._newest = max(newest, log_ns)
        return self.seconds


def was_set(ahead_ns: int) -> bool:
    """Whether a clock was set, by how far it is ahead of the newest time before."""
    return ahead_ns < -BACK_NS or ahead_ns > DAY_NS


def bag_info(path: Path) -> BagInfo:
    """What there is in the bag: a folder, or one of its files. BagError if there are no images."""
    elapsed, topics, others = Elapsed(), set(), set()
    left_out = LeftOut()
    for message in bag_messages(path, lambda _: True, left_out.say, data=False):
        if message.topic.type in (RAW, COMPRESSED):
            topics.add(message.topic.name)
            elapsed.add(message.log_ns)
        else:
            others.add(f"{message.topic.type} on {message.topic.name}")
    if not topics:
        why = "; ".join(left_out.sentences()) or "no message was recorded."
        raise BagError(
            f"{path} holds no images (sensor_msgs Image or CompressedImage): "
            + (f"only {', '.join(sorted(others))}." if others else why)
        )
    return BagInfo(sorted(topics), elapsed.seconds)


def bag_images(path: Path, topics: Sequence[str], left_out: LeftOut) -> Iterator[BagImage]:
    """Every image of these topics that has a time, in the order they were recorded. BagError."""

    def wanted(topic: Topic) -> bool:
        return topic.name in topics and topic.type in (RAW, COMPRESSED)

    newest: dict[str, int] = {}
    jumps: dict[str, list[int]] = {}
    try:
        for message in _in_order(bag_messages(path, wanted, left_out.say)):
            topic = message.topic
            try:
                image = _image(message)
            except Exception as error:  # of bytes that may be anything
                left_out.image(f"on {topic.name} in {path} left out", f"{reason_of(error)}.")
                continue
            if not 0 < image.stamp_ns < LAST_NS:
                left_out.image(
                    f"on {topic.name} in {path} left out",
                    "no time in their headers; record from a driver that stamps them.",
                )
                continue
            ahead = image.stamp_ns - newest.get(topic.name, image.stamp_ns)
            if was_set(ahead):
                jumps.setdefault(topic.name, []).append(ahead)
                newest[topic.name] = image.stamp_ns
            newest[topic.name] = max(image.stamp_ns, newest.get(topic.name, 0))
            yield image
    finally:
        for name, found in jumps.items():
            times = "once, " if len(found) == 1 else f"{len(found)} times, first "
            left_out.note(
                f"{name} in {path}",
                f"its stamps jump {times}by {found[0] / 1e9:+.1f} s: a clock was set while it was "
                "recorded.",
            )


def bag_pictures(path: Path, topic: str, left_out: LeftOut) -> Iterator[tuple[float, np.ndarray]]:
    """(seconds from the topic's first picture, RGB uint8 `[H, W, 3]`) of every picture of `topic`.

    Times rise strictly; a picture that comes late is left out, and so is one whose stamp jumps.
    With two in a row the recording ends: what follows has no known time in it. Raises BagError.
    """
    first = newest = jumped = 0
    for image in bag_images(path, [topic], left_out):
        jumps = first > 0 and was_set(image.stamp_ns - newest)
        jumped = jumped + 1 if jumps or jumped > 1 else 0
        if jumped:
            left_out.image(
                f"on {topic} in {path} left out",
                "their stamps jump, as a clock was set; cut the bag there to use them.",
            )
            continue
        if image.stamp_ns <= newest:
            continue
        try:
            picture = image.picture()
        except ValueError as error:
            left_out.image(f"on {topic} in {path} left out", str(error))
            continue
        first, newest = first or image.stamp_ns, image.stamp_ns
        yield (image.stamp_ns - first) / 1e9, picture


def _in_order(messages: Iterable[Message]) -> Iterator[Message]:
    """The messages with neighbours in the order of their log times."""
    held: list[tuple[int, int, Message]] = []
    newest = -DAY_NS
    for count, message in enumerate(messages):
        if was_set(message.log_ns - newest):
            while held:
                yield heapq.heappop(held)[2]
            newest = message.log_ns
        newest = max(newest, message.log_ns)
        heapq.heappush(held, (message.log_ns, count, message))
        if len(held) > NEIGHBOURS:
            yield heapq.heappop(held)[2]
    while held:
        yield heapq.heappop(held)[2]


def _image(message: Message) -> BagImage:
    """The image in a message; any exception where the data are not one."""
    topic, log_ns, data = message
    if data.startswith(ZSTD):  # recorded with --compression-mode message; CDR begins with a zero
        data = decompressed("zstd", data)
    refusals: list[Exception] = []
    for types in _types(topic.type, topic.definition):
        try:
            read = types.deserialize_cdr(data, topic.type)
            header = read.header
            return BagImage(topic.name, to_ns(header.stamp), header.frame_id, log_ns, read)
        except Exception as error:  # of bytes that may be anything
            refusals.append(error)
    raise refusals[-1]


@cache
def _types(kind: str, definition: str) -> list[Any]:
    """The types to read with: the bag's own definition, and Humble's, should it be damaged."""
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    known = get_typestore(Stores.ROS2_HUMBLE)

    def fields(types: Any) -> set[str]:
        return {name for name, _ in types.fielddefs[kind][1]}

    if definition:
        with suppress(Exception):  # of a text that may be anything
            own = get_typestore(Stores.EMPTY)
            own.register(get_types_from_msg(definition, kind))
            if fields(known) <= fields(own):
                return [own, known]
    return [known]
