"""The GPU through PyCUDA: its primary context, streams, and memory that both sides see.

Invariant: every call into CUDA runs inside `Device.current()`, which makes the one primary context
of the process current in the calling thread and gives it back; so several nodes of one process may
use the GPU from threads of their own, and what CUDA raises leaves here as DeviceError.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from vljepa_ros.errors import DeviceError

from .priority import Lane, high_priority_lane

ALIGNMENT = 256  # bytes, which TensorRT asks of every tensor's address
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: no waiting for the default stream

_lock = threading.Lock()
_device: Device | None = None


def missing() -> tuple[str, str] | None:
    """Why no GPU can be used here, and the fix; None where one can."""
    try:
        import pycuda.driver as driver
    except Exception as error:  # a build for another CUDA or NumPy raises whatever it likes
        if isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("pycuda"):
            return "PyCUDA is not installed", "pip install pycuda, which needs CUDA's nvcc"
        return (
            f"PyCUDA does not import ({line(error)})",
            "install the NVIDIA driver, and build PyCUDA for the CUDA and NumPy that are here",
        )
    try:
        driver.init()
        count = driver.Device.count()
    except driver.Error as error:
        return f"no NVIDIA GPU answers ({line(error)})", "look at what nvidia-smi says"
    if count == 0:
        return "there is no NVIDIA GPU", "use a machine that has one, or onnxruntime-cpu"
    return None


def device() -> Device:
    """The GPU of this process, the first that CUDA_VISIBLE_DEVICES leaves. DeviceError if none."""
    global _device
    with _lock:
        if _device is None:
            reason = missing()
            if reason is not None:
                raise DeviceError(f"The GPU cannot be used: {reason[0]}; {reason[1]}.")
            _device = Device()
        return _device


class Device:
    """A GPU. `capability`: compute capability; `integrated`: its memory is the host's."""

    def __init__(self) -> None:
        import pycuda.driver as driver

        self.driver: Any = driver
        try:
            handle = driver.Device(0)
            self.name: str = handle.name()
            self.capability: tuple[int, int] = tuple(handle.compute_capability())
            attribute = driver.device_attribute
            self.integrated = bool(handle.get_attribute(attribute.INTEGRATED)) and bool(
                handle.get_attribute(attribute.CAN_MAP_HOST_MEMORY)
            )
            # Once for the process: PyCUDA compares contexts by the object, and frees memory only
            # where the object that it was allocated under is current.
            self._context = handle.retain_primary_context()
        except driver.Error as error:
            raise DeviceError(
                f"The GPU does not start ({line(error)}); look at what nvidia-smi says."
            ) from error
        # For good: PyCUDA's destructor would detach the primary context as if it had made it, at
        # exit, under what is still alive then. CUDA releases it when the process ends.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._context))

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the GPU's context current in this thread. What CUDA raises becomes DeviceError."""
        try:
            self._context.push()
            try:
                yield
            finally:
                # A thread that ends with a context on PyCUDA's stack aborts the process.
                self.driver.Context.pop()
        except self.driver.MemoryError as error:
            raise DeviceError(
                f"The memory of {self.name} is used up ({line(error)}); end what else runs there, "
                "or use a smaller profile or precision."
            ) from error
        except self.driver.Error as error:
            raise DeviceError(f"{self.name} failed ({line(error)}).") from error


class Stream:
    """A queue of work on the GPU. Methods are called inside `Device.current()`.

    With `hasty`, kernels go before those of other streams: CUDA gives a stream the lowest priority
    unless another is asked for, so what may wait, the decoder, has an ordinary stream.
    """

    def __init__(self, device: Device, hasty: bool = False) -> None:
        driver = device.driver
        self._driver = driver
        self._stream = driver.Stream(NON_BLOCKING)
        # Waiting sleeps, and does not burn a core of the robot.
        flags = driver.event_flags
        self._done = driver.Event(int(flags.BLOCKING_SYNC) | int(flags.DISABLE_TIMING))
        self._lane: Lane | None = high_priority_lane() if hasty else None

    def launch(self, enqueue: Callable[[int], bool]) -> bool:
        """Have `enqueue` put kernels on a CUDA stream, after what is queued here; its answer."""
        if self._lane is None:
            return enqueue(self._stream.handle)
        return self._lane.launch(enqueue, self._stream.handle)

    def copy_in(self, address: int, source: np.ndarray) -> None:
        """From the host, contiguous and page-locked, to the GPU."""
        self._driver.memcpy_htod_async(address, source, self._stream)

    def copy_out(self, target: np.ndarray, address: int) -> None:
        """From the GPU to the host, contiguous and page-locked."""
        self._driver.memcpy_dtoh_async(target, address, self._stream)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Within the GPU."""
        self._driver.memcpy_dtod_async(target, source, nbytes, self._stream)

    def wait(self) -> None:
        """Return when all that was queued is done."""
        self._done.record(self._stream).synchronize()

    def free(self) -> None:
        """Release the stream."""
        if self._lane is not None:
            self._lane.close()
        self._lane = self._stream = self._done = None


class Buffer:
    """Bytes that the host and the GPU both see: `host`, page-locked uint8, and at `address`.

    On an integrated GPU these are the same memory, and `push` and `pull` have nothing to copy.
    Methods are called inside `Device.current()`.
    """

    def __init__(self, device: Device, nbytes: int) -> None:
        nbytes = max(nbytes, ALIGNMENT)  # CUDA allocates nothing of size 0
        driver = device.driver
        flags = int(driver.host_alloc_flags.DEVICEMAP) if device.integrated else 0
        self.host: np.ndarray = driver.pagelocked_empty(nbytes, np.uint8, mem_flags=flags)
        self._allocation: Any = None
        if device.integrated:
            self.address = int(self.host.base.get_device_pointer())
        else:
            self._allocation = driver.mem_alloc(nbytes)
            self.address = int(self._allocation)

    def push(self, stream: Stream, nbytes: int, offset: int = 0) -> None:
        """Bring bytes of `host` to the GPU, in the order of `stream`."""
        if self._allocation is not None and nbytes:
            stream.copy_in(self.address + offset, self.host[offset : offset + nbytes])

    def pull(self, stream: Stream, nbytes: int) -> None:
        """Bring the first bytes to `host`; they are there when the stream has been waited for."""
        if self._allocation is not None and nbytes:
            stream.copy_out(self.host[:nbytes], self.address)

    def free(self) -> None:
        """Give the memory back."""
        if self._allocation is not None:
            self._allocation.free()
        allocation, self.host = self.host.base, np.empty(0, np.uint8)
        allocation.free()  # type: ignore[union-attr]


def line(error: BaseException) -> str:
    """An error's text on one line, without its full stop."""
    return (" ".join(str(error).split()) or type(error).__name__)[:300].rstrip(".")
