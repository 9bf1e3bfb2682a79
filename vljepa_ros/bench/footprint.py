"""What processes hold of memory while a benchmark runs. Invariant: figures are the kernel's own."""

from __future__ import annotations

from typing import Any

from .machine import memory_of


class Footprint:
    """Resident memory of some processes, by name and process id, from its first sample on."""

    def __init__(self, processes: dict[str, int]) -> None:
        self._processes = processes
        self._samples: dict[str, list[float]] = {name: [] for name in processes}

    def sample(self) -> None:
        """Look now; takes some 50 µs a process."""
        for name, process in self._processes.items():
            self._samples[name].append(memory_of(process))

    def report(self) -> dict[str, Any]:
        """Megabytes at the first and the last sample, the most, and how far it went from the first.

        `late_drift`: how far it went, in the second half, from where that began: buffers of larger
        pictures come once, a leak goes on.

        `together` sums the processes sample by sample; memory that they share counts twice.
        """
        named = dict(self._samples)
        if len(named) > 1:
            named["together"] = [sum(one) for one in zip(*self._samples.values())]
        return {name: _figures(samples) for name, samples in named.items()}


def _figures(samples: list[float]) -> dict[str, float]:
    first, late = samples[0], samples[len(samples) // 2 :]
    return {
        "start_mb": first,
        "end_mb": samples[-1],
        "most_mb": max(samples),
        "largest_drift": max(abs(sample - first) for sample in samples) / first,
        "late_drift": max(abs(sample - late[0]) for sample in late) / late[0],
        "samples": len(samples),
    }
