"""Small things done with files. Invariant: what is written here is there whole, or not at all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a killed process or a power cut leaves the old content or the new."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def disk_bytes(folder: Path) -> int:
    """Bytes that the files below `folder` take on the disk; holes take none."""
    found = 0
    for path in folder.rglob("*"):
        try:
            found += path.lstat().st_blocks * 512
        except FileNotFoundError:  # removed meanwhile
            continue
    return found


def free_bytes(folder: Path) -> int:
    """Bytes that are left on the disk of `folder`."""
    return shutil.disk_usage(folder).free
