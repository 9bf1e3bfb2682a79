"""The fixed vocabulary of the tabletop world. Indices are stored on disk: append, never reorder."""

from __future__ import annotations

import zlib

SHAPES = ("cube", "ball", "can", "bottle", "mug", "book")
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "white", "black")
KINDS = (
    "still", "reach", "pick_up", "carry", "put_down", "drop", "push", "tip_over", "roll", "slide",
    "fall_off", "retreat", "hand", "cover", "uncover",
)  # fmt: skip
OBJECT_KINDS = tuple(kind for kind in KINDS if kind not in ("still", "retreat", "hand"))

HELD, MOVING, UPRIGHT, ON_TABLE, FALLEN = 1, 2, 4, 8, 16  # bits of `object_state`
STATE_FLAGS = 5


def held_out(colour: str | None, shape: str | None, kind: str) -> bool:
    """Whether this combination is kept for the composition test (about one in ten)."""
    if kind not in OBJECT_KINDS:
        return False
    return zlib.crc32(f"{colour} {shape} {kind}".encode()) % 10 == 0
