"""JPEG data into RGB arrays, by libjpeg-turbo.

Invariant: what libjpeg warns of is refused, without a line on the process's stderr, and so is what
it passes over in silence although data are missing. JPEG has no checksum: a change that leaves as
many valid codes as there were cannot be told from a picture.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from ..images import check_size

try:
    import simplejpeg
except ImportError:  # an installation that is older than its use
    simplejpeg = None

MAGIC = b"\xff\xd8"
_END, _SCAN_BEGINS = b"\xff\xd9", b"\xff\xda"
_TABLES, _SCAN, _LAST = 0xC4, 0xDA, 0xD9
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL = (0xC0, 0xC1)  # with Huffman codes
# No fill byte, nor what stands in a scan: of a run of 0xFF the last one begins the marker.
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
_UNSUPPORTED = re.compile("[Uu]nsupported|subsampling")
_COMPLETE = 2**64 - 1  # every coefficient of a block
_MOST_SCANS = 500  # a picture has ten or so; a trap that takes hours has thousands
# In a scan's data so many zeros are no picture, unless the code of zeros says that nothing follows.
_HOLE = bytes(32)
_PADDING = re.compile(rb"(?<!\xff)\x00{1,16}(?=\xff+[\xd0-\xd9])")


def jpeg_to_rgb(data: bytes) -> np.ndarray:
    """The picture as RGB uint8 `[H, W, 3]`, C-contiguous; EXIF's orientation is not applied.

    Whatever stands behind the picture is padding. ValueError, a sentence, where it is not whole.
    """
    if simplejpeg is None:
        raise ValueError("JPEG images need the package simplejpeg: pip install simplejpeg.")
    problem = ""
    if _is_complete(data):
        try:
            return _decode(data)
        except ValueError as error:
            problem = str(error)
    said = f"The JPEG image of {len(data)} bytes"
    if not data.rstrip(b"\0\xff").endswith(_END):
        raise ValueError(f"The JPEG image is cut short after {len(data)} bytes.")
    if _UNSUPPORTED.search(problem) and _SCAN_BEGINS in data:
        raise ValueError(
            f"{said} is of a kind that is not decoded ({problem}); have it sent with 8 bits, as "
            "4:4:4, 4:2:2, 4:2:0, 4:4:0, 4:1:1 or grey."
        )
    raise ValueError(f"{said} is damaged: data were lost or changed on their way.")


def _decode(data: bytes) -> np.ndarray:
    try:
        return np.asarray(simplejpeg.decode_jpeg(data, "RGB"))
    except ValueError as error:
        if "extraneous" not in str(error):
            raise
    # Some cameras fill up with zeros before a marker, which is harmless.
    return np.asarray(simplejpeg.decode_jpeg(_PADDING.sub(b"", data), "RGB"))


def _is_complete(data: bytes) -> bool:
    """Whether nothing is missing that libjpeg does not miss. ValueError for sides of no picture."""
    codes: dict[int, int] = {}  # by table: what the code of zeros stands for
    done: dict[int, int] = {}  # by component: bit k: coefficient k is there in full
    frame = components = scans = 0
    for marker, payload, end in _segments(data):
        if marker in _FRAMES and len(payload) > 5:
            frame, components = marker, payload[5]
            height, width = (int.from_bytes(payload[k : k + 2], "big") for k in (1, 3))
            check_size(width, height)
        elif marker == _TABLES:
            codes.update(_codes_of_zeros(payload))
        elif marker == _SCAN and payload and len(payload) == 2 * payload[0] + 4:
            scans += 1
            hole = data.find(_HOLE, end) if frame in _SEQUENTIAL else -1
            # Of a camera that leaves out its tables they are the standard's, whose zeros are a 1.
            is_value = codes.get(0x10 | payload[2] & 15, 1) & 15
            if hole >= 0 and is_value and not _MARKER.search(data, end, hole):
                return False
            first, last, bits = payload[-3:]
            for component in payload[1:-3:2]:
                found = 0 if bits & 15 else (2 << min(last, 63)) - (1 << min(first, 63))
                done[component] = done.get(component, 0) | found
            if len(done) == components and set(done.values()) == {_COMPLETE}:
                return True
            if scans == _MOST_SCANS:
                return False
    return not scans  # else some are missing


def _segments(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """(marker, payload, where that ends) of every segment, over the data of scans, to the end."""
    at = len(MAGIC)
    while found := _MARKER.search(data, at):
        marker, begin = found[1][0], found.end()
        if marker == _LAST:
            return
        at = begin + max(2, int.from_bytes(data[begin : begin + 2], "big"))
        yield marker, data[begin + 2 : at], at


def _codes_of_zeros(payload: bytes) -> Iterator[tuple[int, int]]:
    """(table, its first symbol) of each Huffman table: the code of that one is of zeros alone."""
    at = 0
    while len(payload) > at + 17:
        yield payload[at], payload[at + 17]
        at += 17 + sum(payload[at + 1 : at + 17])
