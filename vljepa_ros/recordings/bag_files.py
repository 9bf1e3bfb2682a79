"""The files of a bag, one after the other.

Invariant: a file that is missing or cannot be read is said, and the others are read.
"""

from __future__ import annotations

import errno
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

from .mcap_file import McapFile
from .sqlite_file import SqliteFile
from .storage import BagError, Message, Say, Wanted, decompressors, unreadable

SUFFIXES = (".db3", ".mcap")
_PATHS = re.compile(r"rosbag2_bagfile_information:[^\0]*?\n +relative_file_paths:\n((?: *- .+\n)+)")


def is_bag(path: Path) -> bool:
    """Whether the path is a bag's folder, or one of its files. Raises BagError."""
    try:
        return bool(_lying(path) or _listed(path)) if path.is_dir() else _is_storage(path)
    except OSError as error:
        raise _closed(path, error) from error


def bag_messages(path: Path, wanted: Wanted, say: Say, data: bool = True) -> Iterator[Message]:
    """The messages of the wanted topics in all files of a bag, in the order they were written.

    `say` is told what cannot be read. `data`: whether the messages are to be with their data.
    Raises BagError where no file can be read at all.
    """
    try:
        decompressors()
        files = _files(path, say)
    except ImportError as error:
        raise BagError(f"Reading {path} needs rosbags: pip install rosbags.") from error
    except OSError as error:
        raise _closed(path, error) from error
    refused: list[BagError] = []
    for file in files:
        try:
            with _decompressed(file, say) as plain:
                kind = SqliteFile if plain.suffix == ".db3" else McapFile
                yield from kind(plain, file, say).messages(wanted, data)
        except OSError as error:
            refused.append(_closed(file, error))
        except BagError as error:
            refused.append(error)
    if len(refused) == len(files):
        raise refused[0]
    for one in refused:
        say(str(one))


def _closed(path: Path, error: OSError) -> BagError:
    if error.errno == errno.ENOSPC:
        where = tempfile.gettempdir()
        return BagError(f"There is no room for a copy of {path} in {where}; set TMPDIR.")
    return BagError(f"{path} cannot be read: {error.strerror or error}.")


def _is_storage(path: Path) -> bool:
    return path.name.removesuffix(".zstd").endswith(SUFFIXES) and path.is_file()


def _lying(folder: Path) -> list[Path]:
    """The storage files in the folder, the tenth behind the ninth, without compressed twins."""
    plain: dict[str, Path] = {}
    for path in sorted(folder.iterdir(), key=_natural):
        if _is_storage(path):
            plain.setdefault(path.name.removesuffix(".zstd"), path)
    return list(plain.values())


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(n or 0), text) for n, text in re.findall(r"(\d*)(\D*)", path.name)]


def _listed(folder: Path) -> list[str]:
    """The names of the files that metadata.yaml names; none where it cannot be read.

    Looked for as rosbag2 writes them: YAML that is damaged may be anything, and take any time.
    """
    try:
        text = (folder / "metadata.yaml").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    found = _PATHS.search(text)
    names = re.findall(r"- +(.+?) *\n", found[1]) if found else []
    return [PurePath(name.strip("'\"")).name for name in names]


def _files(path: Path, say: Say) -> list[Path]:
    """The storage files of a bag in the order they were written. Raises BagError without any."""
    if not path.is_dir():
        if not _is_storage(path):
            raise unreadable(path, "neither a folder nor a .db3 or .mcap file")
        return [path]
    lying = _lying(path)
    names = {file.name.removesuffix(".zstd") for file in lying}
    missing = [n for n in _listed(path) if n.removesuffix(".zstd") not in names]
    absent = f"{', '.join(missing)} of {path} is missing, though its metadata.yaml names it"
    if not lying:
        raise unreadable(path, absent if missing else "it holds no .db3 or .mcap file")
    if missing:
        say(f"{absent}; copy the recording again to have all of it.")
    return lying


@contextmanager
def _decompressed(file: Path, say: Say) -> Iterator[Path]:
    """The file itself, or what was compressed in it, as far as it is whole, for a while."""
    if file.suffix != ".zstd":
        yield file
        return
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder, file.stem)
        decompressor = decompressors()["zstd"]()
        with file.open("rb") as packed, plain.open("wb") as out:
            try:
                while not decompressor.eof and (block := packed.read(2**20)):
                    out.write(decompressor.decompress(block))
            except Exception as error:  # each library has its own
                if isinstance(error, OSError):
                    raise
        if not decompressor.eof:
            say(f"{file} is cut short or damaged; what could be decompressed of it is read.")
        yield plain
