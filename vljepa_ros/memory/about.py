"""What a folder says of the moment store in it (`store.json`), and the lock of who writes it.

Invariant: the lock is the operating system's, so it ends with the process that holds it.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

from vljepa_ros.errors import StoreError

from .files import write_json
from .table import FILE as TABLE

FORMAT = 1
FILE, LOCK = "store.json", "lock"
CONTENT = '{"format": 1, "model_id": "…", "dim": …}, as vljepa bundle show says them'


def begin(folder: Path, model_id: str, dim: int) -> int:
    """Make the store's folder where there is none, and lock it: the lock's file descriptor.

    Raises StoreError: there is no store and no model to begin one for, the folder holds something
    else, another process writes the store. OSError: the folder cannot be written.
    """
    file = folder / FILE
    if not file.exists():
        if not (model_id and dim > 0) or (folder / TABLE).exists():
            raise _no_store(folder)
        if folder.is_dir():
            names = {path.name for path in folder.iterdir()} - {LOCK}
            if any(not name.startswith(FILE) for name in names):
                raise StoreError(f"{folder} holds other files and no {FILE}: give an empty folder.")
    folder.mkdir(parents=True, exist_ok=True)
    lock = _lock(folder)
    if not file.exists():
        from vljepa_ros import __version__

        write_json(
            file,
            {
                "format": FORMAT, "model_id": model_id, "dim": dim,
                "made_by": f"vljepa_ros {__version__}",
            },
        )  # fmt: skip
    return lock


def _lock(folder: Path) -> int:
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(lock, 32).decode(errors="replace").strip()
        os.close(lock)
        raise StoreError(
            f"The store {folder} is open for writing in process {holder or 'unknown'}: stop that "
            "process, or open the store for reading only."
        ) from error
    os.truncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    return lock


def _no_store(folder: Path) -> StoreError:
    """What to say where there is no description."""
    if (folder / TABLE).exists():
        return StoreError(
            f"The store {folder} is damaged: it has moments ({TABLE}) and no {FILE}, which says of "
            f"which model they are; write it again ({CONTENT}), or move the folder away to begin a "
            "new store."
        )
    return StoreError(f"There is no moment store in {folder}.")


def about(folder: Path, model_id: str, dim: int) -> tuple[str, int]:
    """The store's model and dimension; an empty `model_id` and a `dim` of 0 stand for them.

    Raises StoreError: there is no store, its description is damaged, it has a newer format, or is
    of another model or dimension.
    """
    file = folder / FILE
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        form, own_id, own_dim = found["format"], found["model_id"], found["dim"]
        if not (type(form) is type(own_dim) is int and isinstance(own_id, str)):
            raise ValueError("a value has another type")
        if own_dim <= 0:
            raise ValueError("dim is not above 0")
    except FileNotFoundError as error:
        raise _no_store(folder) from error
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{file} is damaged ({type(error).__name__}: {error}): put it right ({CONTENT}), or "
            "move the folder away to begin a new store."
        ) from error
    if form > FORMAT:
        raise StoreError(
            f"The store {folder} has format {form}, made by {found.get('made_by')}, and this "
            f"version knows formats up to {FORMAT}: update vljepa_ros."
        )
    if model_id not in ("", own_id) or dim not in (0, own_dim):
        raise StoreError(
            f"The store {folder} holds moments of {own_id} ({own_dim} numbers each), not of "
            f"{model_id or own_id} ({dim or own_dim}); embeddings of two models cannot be "
            "compared: give this model a folder of its own."
        )
    return own_id, own_dim
