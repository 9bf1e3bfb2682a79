"""Compressed pictures and their damages, for tests of what decodes them."""

from __future__ import annotations

import base64
import os
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np


def scene(width: int = 160, height: int = 120, seed: int = 0) -> np.ndarray:
    """A smooth picture with a little noise, RGB uint8 `[height, width, 3]`."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 8, 3)).astype(np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(int)
    return (smooth + rng.integers(-6, 7, smooth.shape)).clip(0, 255).astype(np.uint8)


def encode(kind: str, picture: np.ndarray, options: Sequence[int] = ()) -> bytes:
    """RGB, or grey, uint8 or uint16, as `kind` (jpg, png, ...)."""
    bgr = picture[..., ::-1] if picture.ndim == 3 else picture
    ok, data = cv2.imencode(f".{kind}", bgr, list(options))
    assert ok
    return data.tobytes()


SAMPLING = 7  # cv2.IMWRITE_JPEG_SAMPLING_FACTOR; OpenCV before 4.7 takes no notice
# What cameras send: all that libjpeg can decode of these is decoded alike by OpenCV.
JPEGS = {
    "plain": encode("jpg", scene()),
    "fine": encode("jpg", scene(), [cv2.IMWRITE_JPEG_QUALITY, 100]),
    "progressive": encode("jpg", scene(), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]),
    "optimised": encode("jpg", scene(), [cv2.IMWRITE_JPEG_OPTIMIZE, 1]),
    "restarts": encode("jpg", scene(), [cv2.IMWRITE_JPEG_RST_INTERVAL, 3]),
    "4:4:4": encode("jpg", scene(), [SAMPLING, 0x111111]),
    "4:2:2": encode("jpg", scene(), [SAMPLING, 0x211111]),
    "4:1:1": encode("jpg", scene(), [SAMPLING, 0x411111]),
    "grey": encode("jpg", scene()[..., 1]),
    "flat": encode("jpg", np.full((64, 96, 3), 128, np.uint8)),
    "flat and optimised": encode(
        "jpg", np.full((480, 640, 3), 128, np.uint8), [cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    ),
    "odd": encode("jpg", scene(37, 23)),
    "tiny": encode("jpg", scene(1, 1)),
    # 8 x 8, each component in a scan of its own (made with libjpeg's cjpeg -scans).
    "scan by scan": base64.b85decode(
        "|JeWF01!$>Nk#wx0RR9200961|JwjV02>k%7Zed27Zw*D92+1gLMtdGB`8rkJupIGRb^yfRb5+Zc$tA}agcLcU"
        "4^xVke;Kft*d8%yve$z$C;?Br2pFhLjfEf9w;LyPAe-;q;6eqq@<*zq@<*zq@<*zq@<*zq@<*zq@<*zq@<*zq@"
        "<*zq@<*zq@<*zq@<*zq@<*zq@@4A01*fP2mlBJ0U`hb5di}c0sq7R6aWDL00000000000000000092!~hi#0Ra"
        "F200000000000000000IBn00;pA002J#QUAmM6afJM00000000000000000061!~hf#0RR9100000000000000"
        "00RP$m2mt~S06zd9|HJ?k0RaF200000000000000000IBR02L7d0RR910000000000000000sq<n2mu2T06zdD"
        "|Je"
    ),
    # 8 x 8 of one colour in four components, as Adobe's programs write them (made with Pillow).
    "cmyk": base64.b85decode(
        "|JeWT01iQ9Z(?NtWB>pF0095n07C!+0s;d90s{jB0|WyD1O*5M1q1{I3I_)U2n-4g3=0Yi3k?nu5Dg9y4hstq7"
        "7!5=6crT}3=bC=78Do~6crTzzyK5o00;mG1Va%3O%VWD5dcdO0RO}Q761VO0RR910000000000000OF3ID_Z6c"
        "7Ob00000000000000000030+5ip&LjX+xSpZ7_06zd89Sa*yAOG0"
    ),
}
PNGS = {
    "colours": encode("png", scene(40, 30)),
    "grey": encode("png", scene(40, 30)[..., 0]),
    "16 bits": encode("png", scene(40, 30)[..., 0].astype(np.uint16) * 257),
    "16 bits of colours": encode("png", scene(40, 30).astype(np.uint16) * 257),
    "transparent": encode("png", np.dstack([scene(40, 30), scene(40, 30, 1)[..., 0]])),
    "black and white": encode("png", scene(37, 5)[..., 0], [cv2.IMWRITE_PNG_BILEVEL, 1]),
}
# An EXIF segment that says: turn it by 90 degrees clockwise.
EXIF = b"\xff\xe1\x00\x22Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6" + bytes(6)


def without_tables(jpeg: bytes) -> bytes:
    """A JPEG without its Huffman tables, as many USB cameras send them."""
    return b"\xff\xd8" + b"".join(
        jpeg[begin:end] for marker, begin, end in segments(jpeg) if marker != 0xC4
    )


def segments(jpeg: bytes) -> list[tuple[int, int, int]]:
    """(marker, begin, end) of the segments behind the first; the scan is the last, to the end."""
    found, at = [], 2
    while True:
        marker, end = jpeg[at + 1], at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if marker == 0xDA:
            return [*found, (marker, at, len(jpeg))]
        found.append((marker, at, end))
        at = end


def scan(jpeg: bytes) -> int:
    """Where the data of the first scan begin."""
    at = segments(jpeg)[-1][1]
    return at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG, with its checksum."""
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png(header: tuple[int, ...], packed: bytes, *others: tuple[bytes, bytes]) -> bytes:
    """A PNG of (width, height, depth, colours, 0, 0, interlaced), its data, and other chunks."""
    first, last = (b"IHDR", struct.pack(">IIBBBBB", *header)), (b"IEND", b"")
    chunks = (first, *others, (b"IDAT", packed), last)
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def printed(call: Callable[[], Any]) -> tuple[Any, str]:
    """What `call` returns, and what the process, C's code included, wrote to stderr meanwhile."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            result = call()
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        file.seek(0)
        lines = file.read().decode(errors="replace").splitlines(keepends=True)
    # OpenCV 4 cannot be kept from this line on a BMP or PPM that is cut short, and a blank one.
    noisy = cv2.__version__ < "5" and any("imdecode_('')" in line for line in lines)
    return result, "" if noisy else "".join(lines)
