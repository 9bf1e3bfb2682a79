"""A coverage-guided search (atheris) for files that the reader of bags does not bear.

    pip install atheris
    python test/fuzz/bags.py CORPUS -max_total_time=3600

CORPUS is a folder; bags to begin with are put there. An input that ends the search is a find: it
lies beside, as crash-* or timeout-*, and belongs into test/recordings/test_bags.py.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
with atheris.instrument_imports(include=["vljepa_ros"]):
    from bags import write_bag
    from pictures import printed, scene
    from rosbags.rosbag2 import CompressionMode, StoragePlugin

    from vljepa_ros.errors import VLJepaError
    from vljepa_ros.recordings.bags import bag_images, bag_info
    from vljepa_ros.recordings.left_out import LeftOut

SQLITE = b"SQLite format 3\0"
FOLDER = Path(tempfile.mkdtemp())


def seeds() -> dict[str, bytes]:
    """Whole bags of both kinds, by name."""
    picture = scene(8, 6)
    images = [
        (topic, 10**9 * (n + 1), picture) for n in range(3) for topic in ("/a", "/b/compressed")
    ]
    found = {}
    for number, (plugin, packed) in enumerate(
        (
            (StoragePlugin.MCAP, None),
            (StoragePlugin.MCAP, CompressionMode.STORAGE),
            (StoragePlugin.MCAP, CompressionMode.MESSAGE),
            (StoragePlugin.SQLITE3, None),
            (StoragePlugin.SQLITE3, CompressionMode.MESSAGE),
        )
    ):
        path = write_bag(FOLDER / f"seed{number}", images, plugin, packed=packed)
        (file,) = (file for file in path.iterdir() if file.suffix != ".yaml")
        found[file.name] = file.read_bytes()
    return found


def check(data: bytes) -> None:
    """A sentence or pictures, and not a line on stderr, whatever the file holds."""
    path = FOLDER / ("bag.db3" if data.startswith(SQLITE) else "bag.mcap")
    path.write_bytes(data)

    def attempt() -> list[str]:
        left_out = LeftOut()
        try:
            for image in bag_images(path, bag_info(path).image_topics, left_out):
                with suppress(ValueError):  # what the decoders refuse is the other search's
                    image.picture()
        except VLJepaError as error:
            return [str(error)]
        return left_out.sentences()

    sentences, lines = printed(attempt)
    for said in sentences:
        assert said.endswith(".") and "\n" not in said, said
    assert not lines, lines


if __name__ == "__main__":
    folders = [Path(word) for word in sys.argv[1:] if not word.startswith("-")]
    for folder in folders[:1]:
        folder.mkdir(exist_ok=True)
        for name, data in seeds().items():
            (folder / name).write_bytes(data)
    atheris.Setup(["bags", "-timeout=20", *sys.argv[1:]], check)
    atheris.Fuzz()
