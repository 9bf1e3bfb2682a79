"""What this machine's processor can do.

Invariant: nothing here raises; what cannot be found out counts as missing.
"""

from __future__ import annotations

import functools
from pathlib import Path

CPU = Path("/proc/cpuinfo")


@functools.cache
def int8_products() -> bool:
    """Whether this CPU sums products of bytes in one instruction (VNNI, or ARM's dot products).

    Without, int8 gains little: on AVX2 such sums saturate unless weights are converted.
    """
    try:
        described = CPU.read_text()
    except OSError:
        return False
    return not {"avx512_vnni", "avx_vnni", "asimddp"}.isdisjoint(described.split())
