"""PNG data: whether they are whole.

Invariant: data that pass are a whole PNG, by the checksums of its chunks, the length of its pixels
and the checksum of those, so that libpng has nothing to print on the process's stderr.
"""

from __future__ import annotations

import struct
import zlib
from collections import defaultdict

from ..images import check_size

MAGIC = b"\x89PNG\r\n\x1a\n"
_END = b"IEND\xaeB\x60\x82"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_INDEXED = 3  # the colour type of a palette
_FILTERS = 4  # the highest number of a row's filter
# (first column, first row, columns and rows from one to the next) of each pass: plain, and Adam7's.
_PASSES = (
    ((0, 0, 1, 1),),
    ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
     (0, 1, 1, 2)),
)  # fmt: skip


class _DamagedError(Exception):
    """Something is not as it must be."""


def whole_png(data: bytes) -> bytes:
    """The picture as a PNG that is quick to decode, without anything else that `data` hold.

    Left out are transparency, profiles, and the further pictures of an animation. ValueError, a
    sentence, where `data` are not a whole PNG; what stands behind one is padding.
    """
    try:
        chunks = _chunks(data)
        header, palette = chunks.get(b"IHDR", b""), chunks.get(b"PLTE", b"")
        width, height, depth, colours, *methods, interlaced = struct.unpack(">IIBBBBB", header)
        check_size(width, height)
        if depth not in _DEPTHS[colours] or methods != [0, 0]:
            raise _DamagedError
        if colours == _INDEXED and (len(palette) % 3 or not 0 < len(palette) // 3 <= 2**depth):
            raise _DamagedError
        passes = _passes(width, height, depth * _CHANNELS[colours], _PASSES[interlaced])
        pixels = _pixels(chunks.get(b"IDAT", b""), passes)
    except (_DamagedError, LookupError, struct.error, zlib.error):
        fault = "damaged" if _END in data else "cut short"
        raise ValueError(f"The PNG image of {len(data)} bytes is {fault}.") from None
    colour_map = _chunk(b"PLTE", palette) if colours == _INDEXED else b""
    body = _chunk(b"IDAT", zlib.compress(pixels, 0))  # not packed again
    return MAGIC + _chunk(b"IHDR", header) + colour_map + body + _chunk(b"IEND", b"")


def _chunks(data: bytes) -> dict[bytes, bytes]:
    """What the chunks hold, by their type, those of one type joined."""
    parts: dict[bytes, list[bytes]] = defaultdict(list)
    at = len(MAGIC)
    while b"IEND" not in parts:
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 8 + length
        (checksum,) = struct.unpack_from(">I", data, end)
        kind, content = data[at + 4 : at + 8], data[at + 8 : end]
        if zlib.crc32(content, zlib.crc32(kind)) != checksum:
            raise _DamagedError
        parts[kind].append(content)
        at = end + 4
    return {kind: b"".join(its) for kind, its in parts.items()}


def _passes(
    width: int, height: int, bits: int, passes: tuple[tuple[int, int, int, int], ...]
) -> list[tuple[int, int]]:
    """(rows, bytes in each, its filter's among them) of every pass."""
    found = []
    for x, y, dx, dy in passes:
        columns, rows = -((x - width) // dx), -((y - height) // dy)
        if columns > 0 and rows > 0:
            found.append((rows, 1 + (columns * bits + 7) // 8))
    return found


def _pixels(packed: bytes, passes: list[tuple[int, int]]) -> bytes:
    """The rows of all passes with their filters, unpacked."""
    size = sum(rows * length for rows, length in passes)
    unpacker = zlib.decompressobj()
    pixels = unpacker.decompress(packed, size + 1)
    if len(pixels) != size or not unpacker.eof:
        raise _DamagedError
    begin = 0
    for rows, length in passes:
        end = begin + rows * length
        if max(pixels[begin:end:length]) > _FILTERS:
            raise _DamagedError
        begin = end
    return pixels


def _chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))
