"""Encoders that change the process they run in."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

LIBC = ctypes.CDLL(None)


def scheduling() -> tuple[int, int]:
    """Policy and priority of this thread, as libc has them, and so whoever starts threads by them.

    Fast DDS does: what Linux alone knows (`os.sched_setscheduler`), its threads do not inherit.
    """
    policy, priority = ctypes.c_int(), ctypes.c_int()
    thread = ctypes.c_ulong(threading.get_ident())
    error = LIBC.pthread_getschedparam(thread, ctypes.byref(policy), ctypes.byref(priority))
    assert error == 0, error
    return policy.value, priority.value


@contextmanager
def usual_scheduling() -> Iterator[None]:
    """Take back the realtime priority that SVT-AV1, run by root, gives the thread that opens it.

    All threads and processes begun from there would have it (SCHED_FIFO, 99) and starve others.
    """
    policy, priority = scheduling()
    try:
        yield
    finally:
        thread = ctypes.c_ulong(threading.get_ident())
        error = LIBC.pthread_setschedparam(thread, policy, ctypes.byref(ctypes.c_int(priority)))
        assert error == 0, error
