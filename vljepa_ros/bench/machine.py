"""What a benchmark ran on, as far as the machine says. Invariant: nothing here raises."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

# What `nvidia-smi` is asked for, and what it is called in a report.
_GPU = {
    "name": "name", "driver_version": "driver", "memory.total": "memory", "clocks.sm": "clock",
    "clocks.max.sm": "clock_most", "power.limit": "power_limit",
}  # fmt: skip
_LIBRARIES = (
    "numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "openvino", "torch",
    "transformers", "saccadic",
)  # fmt: skip


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory, system, libraries, and the GPU if any."""
    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "libraries": {},
    }
    for name in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found["libraries"][name] = metadata.version(name)
    board = _read("/proc/device-tree/model").strip("\0")
    if board:  # a Jetson, and what it is set to
        found["board"] = board
        found["power_mode"] = " ".join(_output("nvpmodel", "-q").split())
    gpu = _output("nvidia-smi", f"--query-gpu={','.join(_GPU)}", "--format=csv,noheader")
    if gpu.strip():
        found["gpu"] = dict(zip(_GPU.values(), (x.strip() for x in gpu.splitlines()[0].split(","))))
    return found


def describe(found: dict[str, Any]) -> str:
    """A machine in a line."""
    lines = [f"{found['processor']}, {found['cores']} cores, {found['memory_gb']:g} GB"]
    if "board" in found:
        lines.append(f"{found['board']} ({found['power_mode'] or 'power mode not known'})")
    if "gpu" in found:
        gpu = found["gpu"]
        lines.append(
            f"{gpu['name']}, driver {gpu['driver']}, {gpu['clock']} of {gpu['clock_most']}"
        )
    libraries = ", ".join(f"{name} {version}" for name, version in found["libraries"].items())
    return f"{'; '.join(lines)}; {libraries}"


def memory_of(process: int) -> float:
    """Megabytes resident of a process, shared libraries included; NaN where it has ended."""
    for line in _read(f"/proc/{process}/status").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def device_memory_of(process: int) -> float | None:
    """Megabytes of the GPU's own memory that a process holds; None where that is not known."""
    rows = _output("nvidia-smi", "--query-compute-apps=pid,used_memory",
                   "--format=csv,noheader,nounits")  # fmt: skip
    for row in rows.splitlines():
        pid, _, used = row.partition(",")
        if pid.strip() == str(process) and used.strip().isdigit():
            return float(used)
    return None


def _processor() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _output(*command: str) -> str:
    """What a program prints; nothing where there is none, or it fails."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
