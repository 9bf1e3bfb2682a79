"""A bag's .mcap file (https://mcap.dev/spec).

Invariant: neither the footer nor the summary is needed, and a damaged chunk costs only itself.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from .storage import BagError, Message, Say, Topic, Wanted, decompressed, in_line, unreadable

_MAGIC = b"\x89MCAP0\r\n"
_FOOTER, _SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _INDEX = range(2, 8)
_DATA_END = 15
_FOOTER_HEAD = struct.pack("<BQ", _FOOTER, 20)


class _DamageError(ValueError):
    """The records cannot be told apart from here on."""


@dataclass
class McapFile:
    """A .mcap file; `named` is what the user knows it as."""

    path: Path
    named: Path
    say: Say
    _schemas: dict[int, tuple[str, str]] = field(default_factory=dict)
    _topics: dict[int, Topic] = field(default_factory=dict)  # by channel
    _damaged: int = 0  # records
    _whole: bool = False  # with its summary

    def messages(self, wanted: Wanted, data: bool) -> Iterator[Message]:
        """See `bag_messages`."""
        with self.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if file.read(8) != _MAGIC:
                raise unreadable(
                    self.named, "it does not begin as MCAP does" if size else "it is empty"
                )
            self._read_summary(file, size)
            found = False
            try:
                for message in self._walk(file, 8, size, data):
                    found = True
                    if wanted(message.topic):
                        yield message
            except _DamageError as damage:
                if not found:
                    raise BagError(
                        f"{self.named} is not a rosbag2 recording that can be read ({damage}, "
                        f"before its first whole chunk); `mcap recover {self.named.name} -o "
                        "new.mcap` may save some of it, `ros2 bag reindex` repairs only a lost "
                        "metadata.yaml."
                    ) from damage
                self.say(f"{self.named}: {damage}; what is whole before is read.")
        if self._damaged:
            records = f"{self._damaged} record{'s' * (self._damaged > 1)}"
            self.say(f"{self.named}: {records} left out for being damaged.")

    def _read_summary(self, file: BinaryIO, size: int) -> None:
        """Know the channels from the end of the file, if it is there."""
        file.seek(max(8, size - 37))
        foot = file.read(37)
        if len(foot) == 37 and foot.startswith(_FOOTER_HEAD) and foot.endswith(_MAGIC):
            start = int.from_bytes(foot[9:17], "little")
            if 8 <= start < size:
                with suppress(_DamageError):
                    for _ in self._walk(file, start, size, False):
                        pass
                    self._whole = bool(self._topics) and not self._damaged
        self._damaged = 0

    def _walk(self, file: BinaryIO, at: int, end: int, data: bool) -> Iterator[Message]:
        """The messages of the records from `at` on. _DamageError where they end early."""
        top = at > 0
        for kind, begin, stop in _records(file, at, end):
            if kind in (_DATA_END, _FOOTER) and top:
                return
            if kind not in (_SCHEMA, _CHANNEL, _MESSAGE, _CHUNK):
                continue
            try:
                by_index = kind == _CHUNK and top and self._whole and not data
                if by_index and (found := self._indexed(file, stop, end)):
                    yield from found
                    continue
                file.seek(begin)
                yield from self._record(kind, file.read(stop - begin), top, data)
            except Exception:  # of bytes that may be anything, and of three libraries
                self._damaged += 1
        if top:
            raise _DamageError(f"it is cut short after {end} bytes")

    def _indexed(self, file: BinaryIO, at: int, end: int) -> list[Message]:
        """The messages of a chunk, without data, by the indexes at `at`, behind it."""
        found: list[tuple[int, int, Topic]] = []
        for kind, begin, stop in _records(file, at, end):
            if kind != _INDEX:
                break
            file.seek(begin)
            body = file.read(stop - begin)
            topic = self._topics[struct.unpack_from("<H", body)[0]]
            found += [(where, ns, topic) for ns, where in struct.iter_unpack("<QQ", body[6:])]
        return [Message(topic, ns, b"") for _, ns, topic in sorted(found)]

    def _record(self, kind: int, body: bytes, top: bool, data: bool) -> Iterator[Message]:
        """What a record holds: messages, or what is to be known of them."""
        if kind == _SCHEMA:
            name, encoding, text = _texts(body, 2, 3)
            kept = text if encoding == "ros2msg" else ""
            self._schemas[struct.unpack_from("<H", body)[0]] = in_line(name), kept
        elif kind == _CHANNEL:
            channel, schema = struct.unpack_from("<HH", body)
            (name,) = _texts(body, 4, 1)
            self._topics[channel] = Topic(in_line(name), *self._schemas.get(schema, ("", "")))
        elif kind == _MESSAGE:
            channel, _, log_ns, _ = struct.unpack_from("<HIQQ", body)
            yield Message(self._topics[channel], log_ns, body[22:])
        elif kind == _CHUNK:
            if not top:
                raise ValueError("a chunk inside a chunk")
            plain = _unpacked(body)
            yield from self._walk(BytesIO(plain), 0, len(plain), data)


def _records(file: BinaryIO, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(opcode, where its content begins and ends) of the records from `at` on."""
    while at < end:
        file.seek(at)
        head = file.read(9)
        kind, size = struct.unpack("<BQ", head) if len(head) == 9 else (0, 0)
        if not kind or size > end - at - 9:
            raise _DamageError(f"it is cut short or damaged at byte {at} of {end}")
        yield kind, at + 9, at + 9 + size
        at += 9 + size


def _texts(body: bytes, at: int, count: int) -> list[str]:
    """Strings that are each led by their length."""
    found = []
    for _ in range(count):
        (size,) = struct.unpack_from("<I", body, at)
        at += 4 + size
        if at > len(body):
            raise ValueError("a text is longer than its record")
        found.append(body[at - size : at].decode())
    return found


def _unpacked(body: bytes) -> bytes:
    """The content of a chunk, checked."""
    size, crc = struct.unpack_from("<QI", body, 16)
    (compression,) = _texts(body, 28, 1)
    at = 32 + len(compression.encode())
    (packed,) = struct.unpack_from("<Q", body, at)
    data = body[at + 8 : at + 8 + packed]
    plain = decompressed(compression, data, size) if compression else data
    if len(plain) != size or (crc and zlib.crc32(plain) != crc):
        raise ValueError("the chunk is damaged")
    return plain
