"""Every encoding against a slow reference written in plain loops."""

from __future__ import annotations

from array import array

import cv2
import numpy as np
import pytest

from vljepa_ros.perception.compressed import compressed_to_rgb
from vljepa_ros.perception.images import ENCODINGS, to_rgb
from vljepa_ros.perception.thumbnails import thumbnail

SIZES = [(6, 4), (7, 5), (1, 1), (64, 48)]
EVEN = [(2, 2), (6, 4), (64, 48)]
ORDER = {"rgb8": (0, 1, 2, 3), "bgr8": (2, 1, 0, 3), "rgba8": (0, 1, 2, 4), "bgra8": (2, 1, 0, 4)}


def noise(count: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, count, np.uint8).tobytes()


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("encoding", sorted(ORDER))
def test_colours(encoding: str, size: tuple[int, int], padding: int) -> None:
    width, height = size
    red, green, blue, depth = ORDER[encoding]
    step = width * depth + padding
    data = noise(step * height)
    picture = to_rgb(encoding, width, height, step, False, data)
    assert picture.shape == (height, width, 3)
    assert picture.dtype == np.uint8
    assert picture.flags.c_contiguous
    for y in range(height):
        for x in range(width):
            at = y * step + x * depth
            assert tuple(picture[y, x]) == (data[at + red], data[at + green], data[at + blue])


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("size", SIZES)
def test_grey(size: tuple[int, int], padding: int) -> None:
    width, height = size
    step = width + padding
    data = noise(step * height)
    picture = to_rgb("mono8", width, height, step, False, data)
    for y in range(height):
        for x in range(width):
            assert tuple(picture[y, x]) == (data[y * step + x],) * 3


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_grey_of_16_bits(size: tuple[int, int], big: bool) -> None:
    width, height = size
    step = width * 2 + 2
    data = noise(step * height)
    picture = to_rgb("mono16", width, height, step, big, data)
    for y in range(height):
        for x in range(width):
            at = y * step + x * 2
            value = int.from_bytes(data[at : at + 2], "big" if big else "little")
            assert tuple(picture[y, x]) == (value // 256,) * 3


@pytest.mark.parametrize(
    ("encoding", "step"),
    [("rgb8", 18), ("mono8", 7), ("yuyv", 12), ("mono16", 12), ("bayer_grbg8", 6)],
)
@pytest.mark.parametrize("rows", [1, 3])
def test_rows_behind_the_picture_are_left_out(encoding: str, step: int, rows: int) -> None:
    data = noise(step * (4 + rows))
    picture = to_rgb(encoding, 6, 4, step, False, data)
    np.testing.assert_array_equal(picture, to_rgb(encoding, 6, 4, step, False, data[: step * 4]))


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("encoding", ["mono16", "16UC1"])
def test_16_bits_between_black_and_white(encoding: str, big: bool) -> None:
    """The same value has the same grey in every picture, whatever else is in it."""
    values = np.array([[0, 6999, 7000, 7004, 7005], [7600, 8200, 8201, 16000, 65535]])
    data = values.astype(">u2" if big else "<u2").tobytes()
    said: list[str] = []
    picture = to_rgb(encoding, 5, 2, 10, big, data, (7000, 8200), said.append)
    assert picture[..., 0].tolist() == [[0, 0, 0, 0, 1], [127, 255, 255, 255, 255]]
    assert not said
    dull = np.linspace(7000, 8200, 10).astype(">u2" if big else "<u2").tobytes()
    to_rgb(encoding, 5, 2, 10, big, dull, note=said.append)
    assert len(said) == 1
    assert "with values from 7000 to 8200" in said[0]
    assert "'black' and 'white'" in said[0]


def yuv_to_rgb(y: int, u: int, v: int) -> tuple[float, float, float]:
    """BT.601, limited range; what is below black (16) is black."""
    luma = 1.164383 * max(y - 16, 0)
    rgb = (
        luma + 1.596027 * (v - 128),
        luma - 0.391762 * (u - 128) - 0.812968 * (v - 128),
        luma + 2.017232 * (u - 128),
    )
    return tuple(min(max(c, 0.0), 255.0) for c in rgb)  # type: ignore[return-value]


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("size", [(2, 1), (2, 3), *EVEN])
@pytest.mark.parametrize(
    ("encoding", "offsets"),
    [("yuv422", (1, 0, 2)), ("uyvy", (1, 0, 2)), ("yuv422_yuy2", (0, 1, 3)), ("yuyv", (0, 1, 3))],
)
def test_yuv422(
    encoding: str, offsets: tuple[int, int, int], size: tuple[int, int], padding: int
) -> None:
    width, height = size
    luma, u, v = offsets
    step = width * 2 + padding
    data = noise(step * height)
    picture = to_rgb(encoding, width, height, step, False, data)
    for y in range(height):
        for x in range(width):
            pair = y * step + (x // 2) * 4
            wanted = yuv_to_rgb(data[pair + luma + 2 * (x % 2)], data[pair + u], data[pair + v])
            assert np.abs(picture[y, x] - np.array(wanted)).max() <= 1.5, (x, y)


@pytest.mark.parametrize("padding", [0, 4])
@pytest.mark.parametrize("size", EVEN)
@pytest.mark.parametrize(("encoding", "u", "v"), [("nv12", 0, 1), ("nv21", 1, 0)])
def test_nv12(encoding: str, u: int, v: int, size: tuple[int, int], padding: int) -> None:
    width, height = size
    step = width + padding
    data = noise(step * height * 3 // 2)
    picture = to_rgb(encoding, width, height, step, False, data)
    for y in range(height):
        for x in range(width):
            chroma = step * height + (y // 2) * step + (x // 2) * 2
            wanted = yuv_to_rgb(data[y * step + x], data[chroma + u], data[chroma + v])
            assert np.abs(picture[y, x] - np.array(wanted)).max() <= 1.5, (x, y)


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("size", [(8, 6), (9, 7)])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer(pattern: str, size: tuple[int, int], padding: int) -> None:
    """Inside, each colour is the mean of its nearest samples; the border repeats the inside."""
    width, height = size
    step = width + padding
    data = noise(step * height)
    picture = to_rgb(f"bayer_{pattern}8", width, height, step, False, data)

    def colour(x: int, y: int) -> str:
        return pattern[2 * (y % 2) + x % 2]

    for y in range(1, height - 1):
        for x in range(1, width - 1):
            for channel, name in enumerate("rgb"):
                near = [
                    data[(y + dy) * step + x + dx]
                    for dx, dy in ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))
                    if colour(x + dx, y + dy) == name
                ]
                if colour(x, y) == name:
                    near = [data[y * step + x]]
                elif not near:
                    near = [data[(y + dy) * step + x + dx] for dx in (-1, 1) for dy in (-1, 1)]
                assert abs(int(picture[y, x, channel]) - sum(near) / len(near)) <= 1, (x, y, name)
    np.testing.assert_array_equal(picture[0, 1:-1], picture[1, 1:-1])
    np.testing.assert_array_equal(picture[:, 0], picture[:, 1])


def test_rgb_without_padding_is_not_copied() -> None:
    data = array("B", noise(6 * 4 * 3))
    picture = to_rgb("rgb8", 6, 4, 18, False, data)
    assert np.shares_memory(picture, np.frombuffer(data, np.uint8))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (("rgb16", 4, 4, 24, 96), ["rgb16", *sorted(ENCODINGS)]),
        (("rgb8", 0, 4, 12, 48), ["0 x 4", "empty"]),
        (("rgb8", 4, 0, 12, 48), ["4 x 0", "empty"]),
        (("rgb8", 4, 4, 11, 44), ["step of 11", "12"]),
        (("rgb8", 4, 4, 0, 0), ["step of 0"]),
        (("rgb8", 4, 4, 12, 47), ["47 bytes", "48"]),
        (("rgb8", 4, 4, 12, 49), ["49 bytes", "48"]),
        (("mono16", 4, 4, 7, 28), ["step of 7", "8"]),
        (("yuv422", 5, 4, 10, 40), ["even width", "5"]),
        (("nv12", 5, 4, 5, 30), ["even sides", "5 x 4"]),
        (("nv12", 4, 3, 4, 18), ["even sides", "4 x 3"]),
        (("nv12", 4, 4, 4, 16), ["16 bytes", "24"]),
        (("nv12", 4, 4, 4, 28), ["28 bytes", "24"]),  # where do its colours begin?
        (("nv21", 4, 3, 4, 18), ["even sides", "4 x 3"]),
        (("rgb8", 2**15, 2**15, 3 * 2**15, 0), ["32768 x 32768", "megapixels"]),
        (("bayer_rggb8", 1, 4, 1, 4), ["2 x 2"]),
    ],
)
def test_what_is_wrong_is_named(fields: tuple[str, int, int, int, int], words: list[str]) -> None:
    encoding, width, height, step, size = fields
    with pytest.raises(ValueError) as caught:
        to_rgb(encoding, width, height, step, False, bytes(size))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_compressed(kind: str) -> None:
    ramp = np.linspace(0, 255, 40 * 30).reshape(30, 40).astype(np.uint8)
    rgb = np.stack([ramp, ramp[::-1], ramp[:, ::-1]], axis=-1)
    ok, data = cv2.imencode(f".{kind}", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])
    assert ok
    for content in (data.tobytes(), array("B", data.tobytes()), data.tobytes() + bytes(5)):
        picture = compressed_to_rgb("rgb8; jpeg compressed bgr8", content)
        assert picture.shape == (30, 40, 3)
        assert np.abs(picture.astype(int) - rgb).mean() < 4


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_compressed_and_cut_short(kind: str) -> None:
    rgb = np.frombuffer(noise(40 * 30 * 3), np.uint8).reshape(30, 40, 3)
    data = cv2.imencode(f".{kind}", rgb)[1].tobytes()
    for length in (len(data) // 4, len(data) // 2, len(data) - 3):
        with pytest.raises(ValueError, match="cut short"):
            compressed_to_rgb("", data[:length])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "neither JPEG nor PNG"),
        (b"GIF89a...", "neither JPEG nor PNG"),
        (b"\xff\xd8nonsense\xff\xd9", "damaged"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20) + b"IEND\xaeB\x60\x82", "damaged"),
    ],
)
def test_compressed_that_is_no_picture(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        compressed_to_rgb("jpeg", data)


@pytest.mark.parametrize(
    ("size", "small"), [((640, 480), (320, 240)), ((480, 1000), (154, 320)), ((64, 48), (64, 48))]
)
def test_a_thumbnail_is_small_and_shows_the_picture(
    size: tuple[int, int], small: tuple[int, int]
) -> None:
    width, height = size
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:, : width // 2] = (200, 40, 90)
    data = thumbnail(picture)
    shown = compressed_to_rgb("jpeg", data)
    assert (shown.shape[1], shown.shape[0]) == small
    inside = shown[:, : small[0] // 2 - 8].reshape(-1, 3)
    assert np.abs(inside.astype(int) - (200, 40, 90)).max() <= 8
    assert len(data) < 20_000
