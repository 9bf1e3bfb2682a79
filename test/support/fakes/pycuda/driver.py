"""The part of `pycuda.driver` that the backend uses, on the made-up GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import fakegpu
import numpy as np
from fakegpu import Mark, Queue, Violation, counts, fault, memory, threads


class Error(Exception):
    pass


class MemoryError(Error):
    pass


class LogicError(Error):
    pass


class LaunchError(Error):
    pass


class RuntimeError(Error):
    pass


event_flags = SimpleNamespace(DEFAULT=0, BLOCKING_SYNC=1, DISABLE_TIMING=2)
host_alloc_flags = SimpleNamespace(PORTABLE=1, DEVICEMAP=2, WRITECOMBINED=4)
device_attribute = SimpleNamespace(INTEGRATED=18, CAN_MAP_HOST_MEMORY=19)
_state = SimpleNamespace(ready=False, lost=False)


def init(flags: int = 0) -> None:
    if fakegpu.count() == 0:
        raise RuntimeError("cuInit failed: no CUDA-capable device is detected")
    _state.ready = True


class Device:
    def __init__(self, number: int) -> None:
        if not _state.ready:
            raise LogicError("cuDeviceGet failed: initialization error")
        assert number < fakegpu.count()

    @staticmethod
    def count() -> int:
        return fakegpu.count()

    def name(self) -> str:
        return fakegpu.name()

    def compute_capability(self) -> tuple[int, int]:
        return fakegpu.capability()

    def get_attribute(self, attribute: int) -> int:
        return int(fakegpu.integrated()) if attribute == device_attribute.INTEGRATED else 1

    def retain_primary_context(self) -> Context:
        return Context()


class Context:
    def push(self) -> None:
        _stack().append(self)

    @staticmethod
    def pop() -> None:
        if not _stack():
            raise LogicError("context::pop failed: invalid device context")
        _stack().pop()


def _stack() -> list[Context]:
    if not hasattr(threads, "stack"):
        threads.stack = []
    return threads.stack


def current() -> Context:
    """The context of this thread; also for the fake TensorRT."""
    if not _stack():
        raise LogicError("explicit_context_dependent failed: invalid device context")
    if _state.lost:
        raise LaunchError("cuCtxGetCurrent failed: unspecified launch failure")
    return _stack()[-1]


def _waited() -> None:
    current()
    if fault("lost"):
        _state.lost = True
        raise LaunchError("cuEventSynchronize failed: unspecified launch failure")


class Stream:
    def __init__(self, flags: int = 0) -> None:
        current()
        self._queue = Queue()
        self.handle = self._queue.handle

    def synchronize(self) -> None:
        _waited()
        self._queue.drain()


class Event:
    def __init__(self, flags: int = 0) -> None:
        current()
        self._mark = Mark()

    def record(self, stream: Stream) -> Event:
        current()
        self._mark.record(stream._queue)
        return self

    def synchronize(self) -> Event:
        _waited()
        self._mark.wait()
        return self


class DeviceAllocation:
    def __init__(self, nbytes: int) -> None:
        self._context = current()
        self._address = memory.add(np.full(nbytes, 0xCD, np.uint8))
        self._valid = True

    def __int__(self) -> int:
        return self._address

    def free(self) -> None:
        if not self._valid:
            raise LogicError("device_allocation::free failed: invalid resource handle")
        if current() is not self._context:
            raise Violation("memory is freed under another context object, and leaks")
        self._valid = False
        memory.remove(self._address)


def mem_alloc(nbytes: int) -> DeviceAllocation:
    if nbytes <= 0:
        raise LogicError("cuMemAlloc failed: invalid argument")
    if fault("memory"):
        raise MemoryError("cuMemAlloc failed: out of memory")
    counts["mem_alloc"] += 1
    return DeviceAllocation(nbytes)


class PagelockedHostAllocation:
    """The base of a page-locked array."""

    def __init__(self, nbytes: int, flags: int) -> None:
        self._context = current()
        self._bytes = np.full(nbytes, 0xCD, np.uint8)
        self._flags, self._address, self._valid = flags, 0, True
        _pinned.append(self)

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self._bytes.__array_interface__

    def get_device_pointer(self) -> int:
        if not self._flags & host_alloc_flags.DEVICEMAP:
            raise LogicError("cuMemHostGetDevicePointer failed: invalid argument")
        if not self._address:
            self._address = memory.add(self._bytes)
        return self._address

    def free(self) -> None:
        if not self._valid:
            raise LogicError("pagelocked_host_allocation::free failed: invalid resource handle")
        if current() is not self._context:
            raise Violation("memory is freed under another context object, and leaks")
        self._valid = False
        _pinned.remove(self)
        if self._address:
            memory.remove(self._address)


_pinned: list[PagelockedHostAllocation] = []


def pagelocked_empty(shape: int, dtype: Any, order: str = "C", mem_flags: int = 0) -> np.ndarray:
    if fault("memory"):
        raise MemoryError("cuMemHostAlloc failed: out of memory")
    counts["pagelocked_empty"] += 1
    assert np.dtype(dtype) == np.uint8 and isinstance(shape, int)
    return np.asarray(PagelockedHostAllocation(shape, mem_flags))


def _is_pinned(array: np.ndarray) -> bool:
    return any(np.shares_memory(array, held._bytes) for held in _pinned)


def _address(value: Any) -> int:
    assert type(value) is int or isinstance(value, DeviceAllocation), value
    return int(value)


def _bytes(array: np.ndarray) -> np.ndarray:
    assert array.flags.c_contiguous
    return array.reshape(-1).view(np.uint8)


def memcpy_htod_async(dest: Any, src: np.ndarray, stream: Stream) -> None:
    current()
    counts["htod"] += 1
    counts["htod_bytes"] += src.nbytes
    source = _bytes(src) if _is_pinned(src) else _bytes(src).copy()
    address = _address(dest)

    def copy() -> None:
        memory.view(address, source.nbytes)[:] = source

    stream._queue.put("htod", copy)


def memcpy_dtoh_async(dest: np.ndarray, src: Any, stream: Stream) -> None:
    current()
    counts["dtoh"] += 1
    if not _is_pinned(dest):
        stream.synchronize()
    target, address = _bytes(dest), _address(src)

    def copy() -> None:
        target[:] = memory.view(address, target.nbytes)

    stream._queue.put("dtoh", copy)


def memcpy_dtoh(dest: np.ndarray, src: Any) -> None:
    _waited()
    counts["dtoh"] += 1
    _bytes(dest)[:] = memory.view(_address(src), dest.nbytes)


def memcpy_dtod_async(dest: Any, src: Any, size: int, stream: Stream) -> None:
    current()
    counts["dtod"] += 1
    target, source = _address(dest), _address(src)

    def copy() -> None:
        memory.view(target, size)[:] = memory.view(source, size)

    stream._queue.put("dtod", copy)
