"""JPEG, PNG and image files: what is whole is decoded, whatever is not is a sentence, silently."""

from __future__ import annotations

import zlib
from array import array

import cv2
import numpy as np
import pytest
from pictures import EXIF, JPEGS, PNGS, encode, png, printed, scan, scene, without_tables

from vljepa_ros.perception.compressed import compressed_to_rgb, image_to_rgb
from vljepa_ros.perception.formats import jpeg

GOOD = JPEGS["plain"]
OTHERS = ("bmp", "ppm", "tiff", "webp")


def by_opencv(data: bytes) -> np.ndarray | None:
    """The picture as OpenCV decodes it, RGB."""
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    return None if picture is None else picture[..., ::-1]


def refused(data: bytes, format: str = "jpeg") -> str:
    """The one sentence with which the data are refused; nothing else is printed."""

    def call() -> str:
        with pytest.raises(ValueError, match=r"^[^\n]+\.$") as caught:
            compressed_to_rgb(format, data)
        return str(caught.value)

    said, lines = printed(call)
    assert lines == ""
    return said


@pytest.mark.parametrize("kind", list(JPEGS))
def test_every_kind_of_jpeg_is_decoded_as_opencv_does(kind: str) -> None:
    picture = compressed_to_rgb("jpeg", JPEGS[kind])
    np.testing.assert_array_equal(picture, by_opencv(JPEGS[kind]))
    assert picture.dtype == np.uint8
    assert picture.flags.c_contiguous


@pytest.mark.parametrize("kind", list(PNGS))
def test_every_kind_of_png_is_decoded_as_opencv_does(kind: str) -> None:
    np.testing.assert_array_equal(compressed_to_rgb("png", PNGS[kind]), by_opencv(PNGS[kind]))


def test_jpegs_without_tables_are_those_of_the_standard() -> None:
    bare = without_tables(GOOD)
    assert len(bare) < len(GOOD) - 400
    np.testing.assert_array_equal(compressed_to_rgb("jpeg", bare), by_opencv(GOOD))


@pytest.mark.parametrize("data", [*JPEGS.values(), *PNGS.values()])
@pytest.mark.parametrize(
    "tail", [bytes(64), bytes(100_000), b"\xff" * 9, b"\xff" * 5000, b"\0\xff" * 40, b"stale"]
)
def test_whatever_a_buffer_holds_behind_the_picture_is_padding(data: bytes, tail: bytes) -> None:
    picture, lines = printed(lambda: compressed_to_rgb("", data + tail))
    np.testing.assert_array_equal(picture, by_opencv(data))
    assert lines == ""


@pytest.mark.parametrize("kind", ["plain", "restarts"])
def test_zeros_before_a_marker_are_padding_too(kind: str) -> None:
    data = JPEGS[kind]
    begin = scan(data)
    for marker in (b"\xff\xd9", b"\xff\xd1", b"\xff\xd2")[: 3 if kind == "restarts" else 1]:
        at = data.index(marker, begin)
        padded = data[:at] + bytes(8) + data[at:]
        np.testing.assert_array_equal(compressed_to_rgb("jpeg", padded), by_opencv(data))


TALL = GOOD[: GOOD.index(b"\xff\xc0") + 5] + (4800).to_bytes(2, "big")
TALL += GOOD[len(TALL) :]
N = len(GOOD)
TORN = {
    "the middle third is missing": GOOD[: N // 3] + GOOD[2 * N // 3 :],
    "the middle third is zero": GOOD[: N // 3] + bytes(N // 3) + GOOD[2 * (N // 3) :],
    "half, then the end": GOOD[: N // 2] + b"\xff\xd9",
    "two halves glued": GOOD[: N // 2] + GOOD,
    "a new one over an old one": GOOD[: N // 2] + encode("jpg", scene(seed=5))[N // 2 :],
    "a height of 4800": TALL,
    "lost in transfers of 512 bytes": GOOD[:1536] + GOOD[2048:],
    "a picture of the rubbish of another": GOOD[:-400] + b"\xff" * 200 + GOOD[-200:],
}


@pytest.mark.parametrize("what", list(TORN))
def test_torn_jpegs_are_damaged(what: str) -> None:
    assert "damaged" in refused(TORN[what])


@pytest.mark.parametrize("kind", ["plain", "fine", "restarts", "4:4:4", "4:2:2", "4:1:1", "grey"])
def test_holes_of_zeros_are_damage(kind: str) -> None:
    """Zeros are codes: most such holes decode without a word of libjpeg."""
    data = JPEGS[kind]
    begin = scan(data)
    for at in range(begin, len(data) - 70, 997):
        assert "damaged" in refused(data[:at] + bytes(64) + data[at + 64 :])


@pytest.mark.parametrize(("kind", "scans"), [("progressive", 10), ("scan by scan", 3)])
def test_scans_that_are_missing_are_damage(kind: str, scans: int) -> None:
    """Cut between two scans, a picture is blurred or has lost a colour; libjpeg says nothing."""
    data = JPEGS[kind]
    begins = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    assert len(begins) == scans
    for at in begins[1:]:
        cut = data[:at] + b"\xff\xd9"
        if by_opencv(cut) is not None:
            assert "damaged" in refused(cut)


def test_a_kind_of_jpeg_that_is_not_decoded_is_named_so() -> None:
    at = GOOD.index(b"\xff\xc0") + 11
    assert GOOD[at] == 0x22
    said = refused(GOOD[:at] + b"\x42" + GOOD[at + 1 :])
    assert "of a kind that is not decoded" in said
    assert "4:2:0" in said


def test_a_picture_of_thousands_of_scans_is_a_trap() -> None:
    data = JPEGS["progressive"]
    first = data.index(b"\xff\xda")
    length = int.from_bytes(data[first + 2 : first + 4], "big")
    again = data[first : first + 2 + length]
    assert "damaged" in refused(data[:first] + again * 5000 + b"\xff\xd9")


@pytest.mark.parametrize(
    "fill", [b"\xff", b"\0", b"\xff\0", b"\xff\xd0", b"\0\xff", b"\xff\xda\0\2"]
)
def test_half_a_megabyte_of_anything_takes_no_time(fill: bytes) -> None:
    half = len(GOOD) // 2
    for tail in (b"\x55" + GOOD[half:], b"\xff\xd9"):
        refused(GOOD[:half] + fill * (2**19 // len(fill)) + tail)
    refused(b"\xff\xd8" + fill * 2**18 + b"\0")


def test_sides_that_no_picture_has_are_not_allocated() -> None:
    at = GOOD.index(b"\xff\xc0") + 5
    huge = GOOD[:at] + b"\xff\xf0\xff\xf0" + GOOD[at + 4 :]
    assert "65520 x 65520" in refused(huge)
    assert "100000 x 1" in refused(png((100_000, 1, 8, 0, 0, 0, 0), zlib.compress(bytes(100_001))))


@pytest.mark.parametrize("kind", list(JPEGS))
def test_a_jpeg_that_is_cut_anywhere_is_cut_short(kind: str) -> None:
    data = JPEGS[kind]
    for length in {*range(2, len(data) - 1, 101), len(data) - 1, len(data) - 2, len(data) - 3}:
        said = refused(data[:length])
        assert "cut short" in said or "damaged" in said
    assert "cut short" in refused(data[:-2])


def test_without_simplejpeg_jpegs_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    assert "pip install simplejpeg" in refused(GOOD)
    assert compressed_to_rgb("png", PNGS["colours"]).shape == (30, 40, 3)


ROWS = b"".join(b"\0" + row.tobytes() for row in scene(8, 6))
WHOLE = (8, 6, 8, 2, 0, 0, 0)
PACKED = zlib.compress(ROWS)


@pytest.mark.parametrize(
    "data",
    [
        png(WHOLE, PACKED[: len(PACKED) // 2]),
        png(WHOLE, zlib.compress(ROWS[:-30])),
        png(WHOLE, zlib.compress(ROWS + bytes(30))),
        png(WHOLE, PACKED[:-4]),
        png(WHOLE, PACKED[:-4] + b"abcd"),
        png(WHOLE, b""),
        png(WHOLE, zlib.compress(b"\x07" + ROWS[1:])),  # a filter that is none
        png((8, 6, 8, 3, 0, 0, 0), PACKED),  # colours of a palette that is not there
        png((8, 6, 3, 2, 0, 0, 0), PACKED),
        png((8, 6, 8, 5, 0, 0, 0), PACKED),
        png((8, 6, 8, 2, 0, 0, 2), PACKED),
        png((8, 6, 8, 2, 246, 0, 0), PACKED),  # found by test/fuzz/images.py, as the next
        png((8, 6, 8, 2, 0, 1, 0), PACKED),
        png((8, 6, 8, 3, 0, 0, 0), zlib.compress(bytes(54)), (b"PLTE", bytes(10))),
        png((0, 6, 8, 2, 0, 0, 0), PACKED),
        png(WHOLE, PACKED).replace(b"IHDR", b"iHDR"),
    ],
)
def test_a_png_that_its_checksums_do_not_save_is_refused(data: bytes) -> None:
    assert refused(data)


def test_what_else_a_png_holds_is_left_out() -> None:
    """A profile that libpng warns of, frame by frame, is not the picture's fault."""
    profile = zlib.compress(bytes(200))
    data = png(WHOLE, PACKED, (b"iCCP", b"x\0\0" + profile), (b"gAMA", b"\0\0\0\0"))
    assert "libpng" in printed(lambda: by_opencv(data))[1]
    picture, lines = printed(lambda: compressed_to_rgb("png", data))
    np.testing.assert_array_equal(picture, scene(8, 6))
    assert lines == ""


def test_interlaced_and_indexed_pngs_are_decoded() -> None:
    picture = scene(11, 9)[..., 0]
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
              (0, 1, 1, 2))  # fmt: skip
    rows = b"".join(
        b"\0" + row.tobytes() for x, y, dx, dy in passes for row in picture[y::dy, x::dx]
    )
    decoded = compressed_to_rgb("png", png((11, 9, 8, 0, 0, 0, 1), zlib.compress(rows)))
    np.testing.assert_array_equal(decoded[..., 0], picture)
    palette = scene(16, 16).reshape(-1, 3)
    rows = b"".join(b"\0" + row.tobytes() for row in picture)
    data = png((11, 9, 8, 3, 0, 0, 0), zlib.compress(rows), (b"PLTE", palette.tobytes()))
    np.testing.assert_array_equal(compressed_to_rgb("png", data), palette[picture])


@pytest.mark.parametrize("kind", [*OTHERS, "jpg", "png"])
def test_image_files_are_decoded_or_refused(kind: str) -> None:
    data = encode(kind, scene(40, 30))
    expected = by_opencv(data)
    np.testing.assert_array_equal(image_to_rgb(data), expected)
    for length in {0, 1, 2, 10, *range(40, len(data) - 2, 97), len(data) - 3}:
        short = data[:length]

        def decode(short: bytes = short) -> str:
            with pytest.raises(ValueError, match=r"^[^\n]+\.$") as caught:
                image_to_rgb(short)
            return str(caught.value)

        said, lines = printed(decode)
        assert said
        assert lines == ""


def test_image_files_are_upright_and_messages_as_the_camera_sent_them() -> None:
    rotated = GOOD[:2] + EXIF + GOOD[2:]
    upright = image_to_rgb(rotated)
    np.testing.assert_array_equal(upright, np.rot90(compressed_to_rgb("jpeg", rotated), -1))
    assert upright.shape == (160, 120, 3)
    with pytest.raises(ValueError, match="damaged"):
        image_to_rgb(rotated[:3000] + rotated[3600:])


def test_data_may_have_any_buffer() -> None:
    expected = compressed_to_rgb("jpeg", GOOD)
    for data in (array("B", GOOD), np.frombuffer(GOOD, np.uint8), memoryview(GOOD)):
        np.testing.assert_array_equal(compressed_to_rgb("jpeg", data), expected)


@pytest.mark.parametrize(
    ("format", "data", "words"),
    [
        ("h264", bytes(50), ["H.264", "isaac_ros_h264_decoder", "transport"]),
        ("", b"\0\0\0\1\x67" + bytes(50), ["H.264", "JPEG"]),
        ("video/hevc", bytes(50), ["H.265"]),
        ("16UC1; compressedDepth png", bytes(12) + PNGS["16 bits"], ["depths", "/compressed"]),
        ("jpeg", b"", ["0 bytes", "neither JPEG nor PNG"]),
    ],
)
def test_what_is_no_picture_is_named_with_its_remedy(
    format: str, data: bytes, words: list[str]
) -> None:
    said = refused(data, format)
    for word in words:
        assert word in said


# ------------------------------------------------------------ 16 bits, and Bayer

WARM = np.linspace(7000, 8200, 40 * 30).astype(np.uint16).reshape(30, 40)


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_16_bit_pictures_are_scaled_as_they_are_told(kind: str) -> None:
    decode = image_to_rgb if kind == "tiff" else lambda *a: compressed_to_rgb("16UC1; png", *a)
    said: list[str] = []
    data = encode(kind, WARM)
    dull = decode(data, (0, 65535), said.append)
    np.testing.assert_array_equal(dull[..., 1], WARM >> 8)
    assert "from 7000 to 8200" in said[0]
    assert "'black' and 'white'" in said[0]
    clear = decode(data, (7000, 8200), said.append)
    np.testing.assert_array_equal(clear[..., 1], (WARM.astype(int) - 7000) * 256 // 1201)
    assert len(said) == 1


def mosaic(picture: np.ndarray, pattern: str) -> np.ndarray:
    """What a sensor behind a Bayer filter sees of an RGB picture."""
    found = np.empty(picture.shape[:2], np.uint8)
    for k, colour in enumerate(pattern):
        y, x = divmod(k, 2)
        found[y::2, x::2] = picture[y::2, x::2, "rgb".index(colour)]
    return found


@pytest.mark.parametrize("kind", ["jpg", "png"])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_a_bayer_mosaic_gets_its_colours(pattern: str, kind: str) -> None:
    """image_transport's plugin compresses a Bayer image as the grey mosaic that it is."""
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:, :48], picture[:, 48:] = (200, 60, 30), (20, 90, 210)
    data = encode(kind, mosaic(picture, pattern), [cv2.IMWRITE_JPEG_QUALITY, 95])
    said: list[str] = []
    format = f"bayer_{pattern}8; {'jpeg' if kind == 'jpg' else kind} compressed "
    found = compressed_to_rgb(format, data, note=said.append).astype(int)
    inside = np.abs(found - picture)[4:-4, [*range(4, 44), *range(52, 92)]]
    assert inside.max() <= (0 if kind == "png" else 16)
    assert not said


def test_colours_that_cannot_be_had_are_said() -> None:
    said: list[str] = []
    data = encode("jpg", scene()[..., 0])
    grey = compressed_to_rgb("bayer; jpeg compressed ", data, note=said.append)
    np.testing.assert_array_equal(grey, by_opencv(data))
    assert "raw Bayer mosaic" in said[0]
    colours = compressed_to_rgb("bayer_rggb8; jpeg compressed bgr8", GOOD, note=said.append)
    np.testing.assert_array_equal(colours, by_opencv(GOOD))
    assert len(said) == 1
