"""Fast DDS's shared memory: what a killed process leaves that hangs every other.

Invariant: only files that nobody can use are removed.

A port is a file that is made empty and then enlarged. Who is killed between the two leaves it
empty; whoever opens it later, a process of that port's domain or one that sends to such a process,
waits for ever for it to grow, without a word (Fast DDS 3.2 and Boost.Interprocess).
"""

from __future__ import annotations

import time
from pathlib import Path

FOLDER = Path("/dev/shm")
PATIENCE = 2.0  # seconds; whoever makes a port enlarges it within a few microseconds
LOOK_AGAIN = 0.1  # seconds


def dead_ports(folder: Path = FOLDER, patience: float = PATIENCE) -> list[Path]:
    """The ports that were empty and stayed so for `patience` seconds; at once where none is."""
    empty = _empty_ports(folder)
    until = time.monotonic() + patience
    while empty and time.monotonic() < until:
        time.sleep(LOOK_AGAIN)
        now = _empty_ports(folder)
        empty = {path: inode for path, inode in empty.items() if now.get(path) == inode}
    return sorted(empty)


def remove_dead_ports(folder: Path = FOLDER, patience: float = PATIENCE) -> list[Path]:
    """Remove them; those that are gone. Another user's stay."""
    removed = []
    for path in dead_ports(folder, patience):
        try:
            path.unlink()
        except OSError:  # somebody was faster, or it is another user's
            continue
        removed.append(path)
    return removed


def _empty_ports(folder: Path) -> dict[Path, int]:
    """Empty ports, each with what tells it from a later file of the same name."""
    found = {}
    for path in folder.glob("fast*_port*"):
        if path.name.rpartition("_port")[2].isdigit():  # others are locks, which are always empty
            try:
                status = path.stat()
            except OSError:  # it went just now
                continue
            if status.st_size == 0:
                found[path] = status.st_ino
    return found
