"""Encoders that change the process they run in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def usual_scheduling() -> Iterator[None]:
    """Take back the realtime priority that SVT-AV1, run by root, gives the thread that opens it.

    All threads and processes begun from there would inherit it (SCHED_FIFO, 99) and starve others.
    """
    policy, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameter)
