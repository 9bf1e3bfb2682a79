"""Streams with a priority, which PyCUDA cannot make: five calls of CUDA's driver through ctypes.

Invariant: a lane's work begins after what was on the stream beside it and is done before what that
stream gets next; so PyCUDA's stream stays the one that copies and is waited for.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from typing import Any

from vljepa_ros.errors import DeviceError

log = logging.getLogger(__name__)

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
DISABLE_TIMING = 2  # CU_EVENT_DISABLE_TIMING

_said: set[str] = set()


def high_priority_lane() -> Lane | None:
    """A stream of the highest priority, in the current context; None where there are none.

    Priorities run from the least, which every ordinary stream has, to the greatest.
    """
    try:
        library = ctypes.CDLL("libcuda.so.1")  # PyCUDA has loaded it: the same one
        least, greatest = ctypes.c_int(), ctypes.c_int()
        _call(library, "cuCtxGetStreamPriorityRange", ctypes.byref(least), ctypes.byref(greatest))
        if least.value != greatest.value:
            return Lane(library, greatest.value)
        reason = "this GPU has no stream priorities"
    except (OSError, AttributeError) as error:
        reason = f"the CUDA driver cannot be asked for them ({error})"
    if reason not in _said:
        _said.add(reason)
        log.info("All engines run with the same priority: %s.", reason)
    return None


class Lane:
    """A CUDA stream with a priority beside an ordinary one."""

    def __init__(self, library: Any, priority: int) -> None:
        self._library = library
        self._stream, self._before, self._after = (ctypes.c_void_p() for _ in range(3))
        _call(
            library, "cuStreamCreateWithPriority",
            ctypes.byref(self._stream), ctypes.c_uint(NON_BLOCKING), ctypes.c_int(priority),
        )  # fmt: skip
        for event in (self._before, self._after):
            _call(library, "cuEventCreate", ctypes.byref(event), ctypes.c_uint(DISABLE_TIMING))

    def launch(self, enqueue: Callable[[int], bool], beside: int) -> bool:
        """Have `enqueue` put work on this stream, in the order of the stream `beside`."""
        ordinary = ctypes.c_void_p(beside)
        self._join(self._before, ordinary, self._stream)
        done = enqueue(self._stream.value or 0)
        self._join(self._after, self._stream, ordinary)
        return done

    def _join(self, event: ctypes.c_void_p, first: ctypes.c_void_p, then: ctypes.c_void_p) -> None:
        """What `then` gets next waits for what is on `first`."""
        _call(self._library, "cuEventRecord", event, first)
        _call(self._library, "cuStreamWaitEvent", then, event, ctypes.c_uint(0))

    def close(self) -> None:
        """Release the stream and its events."""
        for event in (self._before, self._after):
            self._library.cuEventDestroy_v2(event)
        self._library.cuStreamDestroy_v2(self._stream)


def _call(library: Any, function: str, *arguments: Any) -> None:
    code = getattr(library, function)(*arguments)
    if code:
        raise DeviceError(f"The GPU failed ({function} gives CUDA error {code}).")
