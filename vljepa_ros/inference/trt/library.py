"""Which of the TensorRT libraries is here, in which version, and what it says.

Invariant: a library that `load` returned has an interface that this backend was written for.
"""

from __future__ import annotations

import functools
import logging
import re
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from vljepa_ros.errors import EngineError

from . import cuda

log = logging.getLogger(__name__)

# The least version, and the first that is too new.
VERSIONS = {"tensorrt": ((10, 3), (12,)), "tensorrt_rtx": ((1, 1), (2,))}
INSTALL = {
    "tensorrt": "on a Jetson use JetPack 6.1 or later, which ships it; elsewhere "
    "pip install 'tensorrt>=10.3,<12'",
    "tensorrt_rtx": "pip install tensorrt-rtx-cu13, or tensorrt-rtx-cu12 for CUDA 12",
}


def missing(library: str) -> tuple[str, str] | None:
    """Why engines of a library cannot run here, and the fix; None where they can.

    The library comes last: loaded, it takes 80 MB of memory, also where it cannot run.
    """
    if sys.modules.get(library) is None and find_spec(library) is None:
        return f"{library} is not installed", INSTALL[library]
    return cuda.missing() or library_missing(library)


def library_missing(library: str) -> tuple[str, str] | None:
    """Why a library cannot even build here, and the fix; None where it can."""
    try:
        module = import_module(library)
    except Exception as error:  # a broken installation raises whatever it likes
        if isinstance(error, ModuleNotFoundError) and error.name == library:
            return f"{library} is not installed", INSTALL[library]
        return f"{library} does not import ({cuda.line(error)})", INSTALL[library]
    least, end = VERSIONS[library]
    version = str(module.__version__)
    if not least <= numbers(version) < end:
        wanted = f"{_text(least)} and later versions before {_text(end)}"
        return f"{library} is {version}, and this backend takes {wanted}", INSTALL[library]
    return None


def load(library: str) -> Any:
    """The library's module. EngineError where it cannot be used."""
    reason = library_missing(library)
    if reason is not None:
        raise EngineError(f"The backend {library} is not available: {reason[0]}; {reason[1]}.")
    return import_module(library)


def numbers(version: str) -> tuple[int, ...]:
    """The numbers at the head of a version, to compare it by."""
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:4])


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


@functools.cache
def logger(library: str) -> Any:
    """The one logger of a library, which wants the same for all of its objects.

    Its `last` is the last error that was said, on one line; empty where there was none.
    """
    module = load(library)
    severity = module.ILogger.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.WARNING, severity.ERROR: logging.WARNING,
        severity.WARNING: logging.DEBUG, severity.INFO: logging.DEBUG,
    }  # fmt: skip

    class Logger(module.ILogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            module.ILogger.__init__(self)  # pybind11 wants it by this name
            self.last = ""

        def log(self, severity: Any, msg: str) -> None:
            level = levels.get(severity)
            if level == logging.WARNING:
                self.last = " ".join(msg.split())[:300].rstrip(".")
            if level is not None:
                log.log(level, "%s: %s", library, msg)

    return Logger()
