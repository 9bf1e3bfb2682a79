"""What the files of a bag are read into, and how what is packed in them is unpacked.

Invariant: the files of a bag are read as far as they can be, in the order in which their messages
were written; what cannot be read is said, and what lies behind it is read.

rosbags' own readers need what a recorder that was killed did not write (metadata.yaml, an MCAP's
footer), pass over SQLite's write-ahead log, end at the first damaged chunk, and sort by a clock
that may have been set back.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from vljepa_ros.errors import VLJepaError

LARGEST = 2**30  # bytes of one message


class BagError(VLJepaError):
    """A bag cannot be read, or has no such pictures."""


class Topic(NamedTuple):
    """`definition`: the message's type as text (ros2msg), where the file holds it."""

    name: str
    type: str
    definition: str


class Message(NamedTuple):
    """A message as CDR; `log_ns` is when it was recorded."""

    topic: Topic
    log_ns: int
    data: bytes


Say = Callable[[str], None]
Wanted = Callable[[Topic], bool]


def decompressors() -> dict[str, Any]:
    """What makes a decompressor, by an MCAP's name of the format. ImportError without rosbags."""
    import lz4.frame  # type: ignore[import-untyped]

    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return {"lz4": lz4.frame.LZ4FrameDecompressor, "zstd": zstd.ZstdDecompressor}


def decompressed(kind: str, data: bytes, largest: int = LARGEST) -> bytes:
    """The whole frame in `data`. Raises what its library raises, ValueError for a cut one."""
    decompressor = decompressors()[kind]()
    plain = decompressor.decompress(data, max_length=largest + 1)
    if not decompressor.eof:
        raise ValueError(f"the {kind} data end early, or are too large")
    return plain


def in_line(text: object) -> str:
    """A file's text as a sentence can bear it: what cannot be printed, a line's end say, is ?."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(text))


def reason_of(error: object) -> str:
    """What an error of a library says, in one line and without its full stop."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def unreadable(path: Path, reason: object) -> BagError:
    """The refusal of a path, with the reason in a few words."""
    return BagError(f"{path} is not a rosbag2 recording that can be read ({reason_of(reason)}).")
