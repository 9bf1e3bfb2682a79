"""Pictures that were damaged in any way: a sentence or a right picture, in silence, and soon."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import JPEGS, PNGS, printed, scan

from vljepa_ros.perception.compressed import compressed_to_rgb, image_to_rgb
from vljepa_ros.perception.images import ENCODINGS, to_rgb

Damage = Callable[[bytes], bytes]
MAGIC = (b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"RIFF", b"P6 3 2 255 ")


@st.composite
def damages(draw: st.DrawFn) -> Damage:
    """One to three things that happen to data on their way."""
    kind = st.sampled_from("change flip cut lose zero fill repeat insert glue".split())
    place = st.tuples(st.floats(0, 1), st.integers(1, 3000), st.integers(0, 255))
    events = draw(st.lists(st.tuples(kind, place), min_size=1, max_size=3))

    def damage(data: bytes) -> bytes:
        for kind, (where, length, byte) in events:
            at = int(where * len(data))
            behind = min(at + length, len(data))
            value = bytes([byte])
            data = {
                "change": data[:at] + value + data[at + 1 :],
                "flip": data[:at] + bytes(b ^ 1 for b in data[at : at + 1]) + data[at + 1 :],
                "cut": data[:at],
                "lose": data[:at] + data[behind:],
                "zero": data[:at] + bytes(behind - at) + data[behind:],
                "fill": data[:at] + value * (behind - at) + data[behind:],
                "repeat": data[:behind] + data[at:],
                "insert": data[:at] + value * length + data[at:],
                "glue": data[:at] + data,
            }[kind]
        return data

    return damage


def decoded(call: Callable[[], np.ndarray]) -> tuple[np.ndarray | None, str]:
    """A picture, or the sentence by which it was refused; nothing is printed."""

    def attempt() -> tuple[np.ndarray | None, str]:
        try:
            return call(), ""
        except ValueError as error:
            return None, str(error)

    (picture, said), lines = printed(attempt)
    assert lines == ""
    if picture is None:
        assert said.endswith(".")
        assert "\n" not in said
    else:
        assert picture.dtype == np.uint8
        assert picture.ndim == 3
        assert picture.shape[2] == 3
        assert picture.flags.c_contiguous
    return picture, said


@settings(max_examples=300, deadline=None)
@given(kind=st.sampled_from(sorted(JPEGS)), damage=damages())
def test_what_passes_as_a_jpeg_is_what_libjpeg_finds_without_a_fault(
    kind: str, damage: Damage
) -> None:
    """JPEG has no checksum: OpenCV's libjpeg, whose words we can read here, is the judge."""
    data = damage(JPEGS[kind])
    picture, _ = decoded(lambda: compressed_to_rgb("jpeg", data))
    if picture is None or data[:2] != b"\xff\xd8":
        return
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    judged, lines = printed(lambda: cv2.imdecode(np.frombuffer(data, np.uint8), flags))
    assert lines == "" or "extraneous bytes" in lines  # zeros before a marker are padding
    np.testing.assert_array_equal(picture, judged[..., ::-1])


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from(["plain", "fine", "restarts", "4:4:4", "4:2:2", "4:1:1", "grey", "odd"]),
    where=st.floats(0, 1),
    length=st.integers(64, 5000),
)
def test_zeros_and_ends_in_a_jpeg_are_always_told(kind: str, where: float, length: int) -> None:
    data = JPEGS[kind]
    begin, end = scan(data), len(data) - 2
    at = begin + int(where * max(0, end - begin - length))
    if at + length <= end:
        holed = data[:at] + bytes(length) + data[at + length :]
        assert decoded(lambda: compressed_to_rgb("jpeg", holed))[0] is None
    for torn in (data[:at], data[:at] + b"\xff\xd9" + bytes(64), data[:at] + data):
        assert at == begin or decoded(lambda torn=torn: compressed_to_rgb("jpeg", torn))[0] is None


@settings(max_examples=300, deadline=None)
@given(kind=st.sampled_from(sorted(PNGS)), damage=damages())
def test_a_damaged_png_is_refused_or_right(kind: str, damage: Damage) -> None:
    whole = PNGS[kind]
    data = damage(whole)
    picture, _ = decoded(lambda: compressed_to_rgb("png", data))
    if picture is not None and data[:4] == whole[:4]:
        np.testing.assert_array_equal(picture, compressed_to_rgb("png", whole))


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=300), magic=st.sampled_from(MAGIC), format=st.text(max_size=12))
def test_any_bytes_are_a_picture_or_a_sentence(data: bytes, magic: bytes, format: str) -> None:
    decoded(lambda: compressed_to_rgb(format, magic + data))
    decoded(lambda: image_to_rgb(magic + data))


@settings(max_examples=500, deadline=None)
@given(
    encoding=st.sampled_from(ENCODINGS),
    width=st.integers(0, 12),
    height=st.integers(0, 12),
    padding=st.integers(-3, 3),
    missing=st.integers(-40, 40),
    is_bigendian=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_raw_image_is_right_or_refused(
    encoding: str,
    width: int,
    height: int,
    padding: int,
    missing: int,
    is_bigendian: bool,
    seed: int,
) -> None:
    """Whatever the fields say: a picture comes from exactly the rows that they name."""
    depth = {"rgba8": 4, "bgra8": 4, "rgb8": 3, "bgr8": 3}.get(encoding, 1)
    depth = 2 if encoding in ("mono16", "16uc1") or "yu" in encoding else depth
    step = max(0, width * depth + padding)
    rows = height * 3 // 2 if encoding.startswith("nv") else height
    data = np.random.default_rng(seed).integers(0, 256, max(0, step * rows - missing), np.uint8)
    picture, _ = decoded(lambda: to_rgb(encoding, width, height, step, is_bigendian, data))
    if picture is None:
        return
    assert picture.shape == (height, width, 3)
    assert data.size >= step * rows
    assert step >= width * depth
    exact = to_rgb(encoding, width, height, step, is_bigendian, data[: step * rows])
    np.testing.assert_array_equal(picture, exact)
