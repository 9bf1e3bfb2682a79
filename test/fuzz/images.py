"""A coverage-guided search (atheris) for bytes that the image decoders do not bear.

    pip install atheris
    python test/fuzz/images.py CORPUS -max_total_time=3600

CORPUS is a folder; pictures to begin with are put there. An input that ends the search is a find:
it lies beside, as crash-* or timeout-*, and belongs into test/perception/test_compressed.py.
"""

from __future__ import annotations

import struct
import sys
import zlib
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
with atheris.instrument_imports(include=["vljepa_ros"]):
    from pictures import JPEGS, PNGS, encode, printed, scene

    from vljepa_ros.perception.compressed import compressed_to_rgb, image_to_rgb
    from vljepa_ros.perception.images import ENCODINGS, to_rgb

FORMATS = ("jpeg", "rgb8; png compressed ", "bayer_rggb8; jpeg compressed ", "h264")
RAW = b"raw image "


def seeds() -> dict[str, bytes]:
    """Whole pictures of every kind, by name."""
    kinds = {"png": PNGS, "jpeg": JPEGS}
    found = {
        f"{kind}-{n}": data for kind, its in kinds.items() for n, data in enumerate(its.values())
    }
    for kind in ("bmp", "ppm", "tiff", "webp"):
        found[kind] = encode(kind, scene(8, 6))
    for n in range(len(ENCODINGS)):
        found[f"raw-{n}"] = RAW + struct.pack("<BBBHB", n, 8, 6, 32, 0) + bytes(range(192))
    return found


def check(data: bytes) -> None:
    """A sentence or a picture, and not a line on stderr, whatever the data."""
    for decode in decoders(data):

        def attempt() -> str:
            try:
                picture = decode()  # noqa: B023 - called at once
            except ValueError as error:
                return str(error)
            assert picture.dtype.name == "uint8" and picture.shape[2:] == (3,)
            return "."

        said, lines = printed(attempt)
        assert said.endswith(".") and "\n" not in said, said
        assert not lines, lines


def decoders(data: bytes) -> list:
    """The calls that these data are for."""
    if data.startswith(RAW) and len(data) > len(RAW) + 6:
        encoding, width, height, step, big = struct.unpack_from("<BBBHB", data, len(RAW))
        name = ENCODINGS[encoding % len(ENCODINGS)]
        return [lambda: to_rgb(name, width, height, step, big > 0, data[len(RAW) + 6 :])]
    format = FORMATS[len(data) % len(FORMATS)]
    return [lambda: compressed_to_rgb(format, data), lambda: image_to_rgb(data)]


def mutate(data: bytes, size: int, seed: int) -> bytes:
    """Other data; of three PNGs, two with checksums that are right again."""
    data = atheris.Mutate(data, size)
    if not data.startswith(b"\x89PNG\r\n\x1a\n") or seed % 3 == 0:
        return data
    mended, at = data[:8], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        body = data[at + 4 : at + 8 + length]
        mended += data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return (mended + data[at:])[:size]


if __name__ == "__main__":
    folders = [Path(word) for word in sys.argv[1:] if not word.startswith("-")]
    for folder in folders[:1]:
        folder.mkdir(exist_ok=True)
        for name, data in seeds().items():
            (folder / name).write_bytes(data)
    atheris.Setup(["images", "-timeout=10", *sys.argv[1:]], check, custom_mutator=mutate)
    atheris.Fuzz()
