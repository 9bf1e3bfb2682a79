"""The errors of the lower rooms: each message is one sentence that a user can act on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class VLJepaError(Exception):
    """What was wrong, with which file, topic or parameter, and what to do about it."""


class BundleError(VLJepaError):
    """A model bundle is missing, altered, or does not say what its schema asks for."""


class EngineError(VLJepaError):
    """An engine cannot be opened on this machine, or was given inputs that it does not take."""


class DeviceError(EngineError):
    """The device failed, at the start or in a run: out of memory, lost, or it never worked."""


class PrecisionError(EngineError):
    """A backend does not have a graph in the precision that was asked for."""


class BuildError(EngineError):
    """An engine cannot be built from its graph."""


class TensorsLostError(EngineError):
    """What a device kept went with it; it is to be computed again."""


class StoreError(VLJepaError):
    """A moment store cannot be opened, read or written, or was given what it does not take."""


def counted(count: int, noun: str) -> str:
    """A number with its noun, as people write it: "1 frame", "2 frames", "1,000 frames"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """Around imports: VLJepaError where a package of this extra is not installed."""
    try:
        yield
    except ImportError as error:
        raise VLJepaError(
            f"this command needs the package '{error.name}': install vljepa_ros with "
            f"pip install '.[{extra}]' in a Python environment of your own."
        ) from error
