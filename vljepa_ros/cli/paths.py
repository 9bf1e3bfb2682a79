"""Files that commands write. Invariant: what cannot be written is said before any work is done."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from vljepa_ros.errors import VLJepaError

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def checked_output(path: Path, endings: Sequence[str], what: str) -> None:
    """VLJepaError where no file `what`, e.g. "a picture", of that name can be written.

    Its ending is to be one of `endings`, small or capital, its folder there.
    """
    if path.suffix.lower() not in endings:
        *others, last = endings
        known = f"{', '.join(others)} or {last}" if others else last
        raise VLJepaError(f"{path} is no name of {what}; let it end with {known}.")
    if not path.parent.is_dir():
        raise VLJepaError(
            f"{path} cannot be written: there is no folder {path.parent}; make it first."
        )
    if path.is_dir():
        raise VLJepaError(f"{path} cannot be written: it is a folder; give another name.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise VLJepaError(f"{path} cannot be written: permission denied; give another place.")
