"""The cache of built engines: a plan and beside it a JSON sidecar that says in words what it is.

Invariant: a plan that `find` returned is whole, is what its sidecar says, and was built for just
the graph, library, version, GPU, precision and profile that its key names; plans and sidecars come
into being by renaming, so a process that dies leaves none that is half written.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

from vljepa_ros.bundle.manifest import sha256_of
from vljepa_ros.errors import EngineError

log = logging.getLogger(__name__)

NEW = ".new-"  # how names of files begin that are not whole yet
TIMINGS = ".timing"
POLL = 0.2  # seconds between two looks at whether another process has finished building


@dataclass(frozen=True)
class Key:
    """All that an engine depends on. Two engines with the same key are interchangeable.

    `sha256`: of the ONNX file, of a variant's for a variant; `weights`: of the weights that lie
    beside it, empty where it has them all. `gpu` and `capability` are what the engine runs on,
    `version` the library that loads it, each less exact where `options` say so.
    """

    graph: str
    sha256: str
    weights: str
    library: str
    version: str
    gpu: str
    capability: str
    precision: str
    profile: dict[str, tuple[int, int, int]]
    options: tuple[str, ...] = ()

    @property
    def stem(self) -> str:
        """The name of its files, without their ending."""
        words = json.dumps(asdict(self), sort_keys=True).encode()
        return f"{self.graph}-{self.precision}-{hashlib.sha256(words).hexdigest()[:16]}"


@dataclass(frozen=True)
class Entry:
    """A built engine. `cosine`: its least to the graph on the CPU; None: not compared yet.

    `built_with`: the exact version of the library. `sha256` and `size` are the plan's.
    """

    key: Key
    sha256: str
    size: int
    built_with: str
    build_seconds: float
    built_at: str
    workspace_mib: int
    cosine: float | None = None

    @property
    def plan(self) -> Path:
        """The engine as the library serialised it."""
        return folder() / f"{self.key.stem}.plan"

    @property
    def jit(self) -> Path:
        """What TensorRT for RTX compiled on this machine for it."""
        return folder() / f"{self.key.stem}.jit"


def folder() -> Path:
    """Where built engines lie: $VLJEPA_ENGINES, $XDG_CACHE_HOME/vljepa/engines, or in ~/.cache."""
    own = os.environ.get("VLJEPA_ENGINES")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vljepa" / "engines"


def find(key: Key) -> Entry | None:
    """The engine of that key, checked; None where there is none, or none that is whole.

    Why one that is there cannot be used is logged.
    """
    sidecar = folder() / f"{key.stem}.json"
    if not sidecar.is_file():
        return None
    try:
        entry = _read(sidecar)
        if entry.key != key:
            raise ValueError("it is of another graph, library, GPU, precision or profile")
        _check_plan(entry)
    except (OSError, ValueError) as error:
        log.warning("The built engine %s cannot be used and is built again: %s.", sidecar, error)
        return None
    return entry


def find_similar(key: Key, option: str) -> Entry | None:
    """The newest engine that is of that key but for its profile and a further option."""
    found = []
    for sidecar in folder().glob(f"{key.graph}-{key.precision}-*.json"):
        with suppress(OSError, ValueError):  # `find` says what is wrong with those that are used
            entry = _read(sidecar)
            own, options = entry.key, set(entry.key.options)
            if (
                option in options
                and own.profile.keys() == key.profile.keys()
                and key
                == replace(own, profile=key.profile, options=tuple(sorted(options - {option})))
            ):
                found.append(entry)
    for entry in sorted(found, key=lambda one: one.built_at, reverse=True):
        if find(entry.key) is not None:
            return entry
    return None


def _read(sidecar: Path) -> Entry:
    """What a sidecar says; ValueError where it is none."""
    try:
        values = json.loads(sidecar.read_text(encoding="utf-8"))
        key = values.pop("key")
        profile = {name: tuple(sizes) for name, sizes in key.pop("profile").items()}
        options = tuple(key.pop("options"))
        entry = Entry(Key(**key, profile=profile, options=options), **values)
        numbers = (entry.size, entry.build_seconds, entry.workspace_mib, entry.cosine or 0.0)
        if not all(isinstance(number, int | float) for number in numbers):
            raise TypeError("a number is none")
        return entry
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"its sidecar is damaged ({type(error).__name__})") from error


def _check_plan(entry: Entry) -> None:
    """ValueError unless the plan is what the sidecar says."""
    if not entry.plan.is_file():
        raise ValueError("its plan is missing")
    size = entry.plan.stat().st_size
    if size != entry.size:
        raise ValueError(f"its plan is cut short or altered ({size} bytes instead of {entry.size})")
    if hashed(entry.plan) != entry.sha256:
        raise ValueError("its plan is altered (another sha256)")


def hashed(file: Path) -> str:
    """A file's sha256, computed once as long as the file does not change."""
    stat = file.stat()
    return _hashed(file, stat.st_ino, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache
def _hashed(file: Path, inode: int, size: int, changed: int) -> str:
    return sha256_of(file)


def put(key: Key, plan: Path, built_with: str, build_seconds: float, workspace_mib: int) -> Entry:
    """Take a finished plan, a file in the cache's folder, into the cache."""
    entry = Entry(
        key, sha256_of(plan), plan.stat().st_size, built_with, round(build_seconds, 1),
        time.strftime("%Y-%m-%dT%H:%M:%S%z"), workspace_mib,
    )  # fmt: skip
    entry.jit.unlink(missing_ok=True)  # compiled for the plan that was here before
    os.chmod(plan, 0o644)
    os.replace(plan, entry.plan)
    _write(entry)
    return entry


def compared(entry: Entry, cosine: float) -> Entry:
    """Note the least cosine to the graph on the CPU in the engine's sidecar."""
    entry = replace(entry, cosine=cosine)
    _write(entry)
    return entry


def discard(entry: Entry) -> None:
    """Remove an engine's files."""
    for ending in ("json", "plan", "jit"):
        (folder() / f"{entry.key.stem}.{ending}").unlink(missing_ok=True)


def _write(entry: Entry) -> None:
    text = json.dumps(asdict(entry), indent=2) + "\n"
    write(folder() / f"{entry.key.stem}.json", text.encode())


def write(file: Path, content: bytes) -> None:
    """Write a file of the cache in one step."""
    temporary = temporary_file()
    try:
        temporary.write_bytes(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def temporary_file() -> Path:
    """A new empty file in the cache's folder, to be renamed when whole. EngineError if not."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=NEW, dir=folder())
    except OSError as error:
        raise EngineError(
            f"Built engines cannot be kept in {folder()} ({error.strerror}); set VLJEPA_ENGINES to "
            "a folder that can be written."
        ) from error
    os.close(handle)
    return Path(name)


@contextmanager
def lock(key: Key, waiting: Callable[[], None]) -> Iterator[None]:
    """Keep other processes and threads from building the same engine.

    `waiting` is called again and again while another one builds; it may raise to give up.
    """
    temporary_file().unlink()  # makes the folder, or says why not
    path = folder() / f"{key.stem}.lock"
    while True:
        with path.open("a") as file:
            if not _locked(file):
                waiting()
                time.sleep(POLL)
            elif path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                yield  # closing the file unlocks it, and so does the end of a process
                return
            # else `clean` removed it in between, and others lock a new one


def _locked(file: IO[str]) -> bool:
    """Take a file's lock, if nobody has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@dataclass(frozen=True)
class Listed:
    """A file of the cache as `vljepa engines list` shows it: an entry, or what is wrong with it."""

    sidecar: Path
    entry: Entry | None
    problem: str = ""


def listed() -> list[Listed]:
    """Every engine in the cache, by name, with what is wrong with it."""
    found = []
    for sidecar in sorted(folder().glob("*.json")):
        entry = None
        try:
            entry = _read(sidecar)
            _check_plan(entry)
            found.append(Listed(sidecar, entry))
        except (OSError, ValueError) as error:
            found.append(Listed(sidecar, entry, str(error)))
    return found


def clean(useless: Callable[[Listed], bool], everything: bool = False) -> list[Path]:
    """Remove the engines that are `useless` and what belongs to none; the files removed.

    With `everything` all engines and the timings of the builder. Files of an engine that is being
    built now stay.
    """
    kept = {one.sidecar.stem for one in listed() if not everything and not useless(one)}
    removed = []
    for file in sorted(folder().glob("*")):
        mine = file.suffix in (".json", ".plan", ".jit", ".lock") or file.name.startswith(NEW)
        if file.suffix == TIMINGS and everything:
            mine = True
        if mine and file.stem not in kept and not _in_use(file):
            file.unlink(missing_ok=True)
            removed.append(file)
    return removed


def _in_use(file: Path) -> bool:
    """Whether a process is building the engine that a file belongs to."""
    pattern = "*.lock" if file.name.startswith(NEW) else f"{file.stem}.lock"
    for path in folder().glob(pattern):
        with path.open("a") as opened:
            if not _locked(opened):
                return True
    return False
