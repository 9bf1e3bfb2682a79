"""What TensorRT for RTX compiles when an engine first runs on a GPU, kept from start to start.

Invariant: a file of compiled kernels is only a help; the library judges it, and one that it does
not take is written anew.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from . import cache

log = logging.getLogger(__name__)


class CompiledKernels:
    """The kernels of one engine in a file. Methods are called inside `Device.current()`."""

    def __init__(self, engine: Any, file: Path) -> None:
        self._file = file
        self.config = engine.create_runtime_config()  # to create the execution context with
        self._cache = self.config.create_runtime_cache()
        self._known = file.read_bytes() if file.is_file() else b""
        if self._known and not self._cache.deserialize(self._known):
            log.info("%s was compiled for another driver or GPU and is written anew.", file)
        self.config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write what was compiled since. EngineError where the folder cannot be written."""
        compiled = bytes(self._cache.serialize())
        if compiled != self._known:
            cache.write(self._file, compiled)
            self._known = compiled
