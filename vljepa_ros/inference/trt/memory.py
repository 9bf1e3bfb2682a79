"""What stays on the GPU between two runs: frames that come again, and outputs that are kept.

Invariant: memory that a `TrtResident` lies in is written again only when nobody holds one that
lies there, and a frame's slot only when newer frames took the place of that frame.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from vljepa_ros.errors import DeviceError, EngineError, TensorsLostError

from .cuda import ALIGNMENT, Buffer, Device, Stream


class FrameRing:
    """The frames of the last clips on the GPU; each crosses to it once.

    A frame is known by the identity of its array, which is held so that no other gets the same.
    Methods are called inside `Device.current()`.
    """

    def __init__(self, device: Device, frame_bytes: int, capacity: int) -> None:
        self._bytes = frame_bytes
        self._stride = -(-frame_bytes // ALIGNMENT) * ALIGNMENT
        self._buffer = Buffer(device, self._stride * capacity)
        self._free = list(range(capacity))
        self._slots: OrderedDict[int, tuple[int, np.ndarray]] = OrderedDict()  # oldest first

    def place(self, frames: Sequence[np.ndarray], stream: Stream) -> list[int]:
        """The frames' addresses, in the order of `stream`; those that are new are copied.

        At most as many different frames as the ring has room for.
        """
        for frame in frames:  # what is needed now is not what makes room
            if id(frame) in self._slots:
                self._slots.move_to_end(id(frame))
        return [self._address(frame, stream) for frame in frames]

    def _address(self, frame: np.ndarray, stream: Stream) -> int:
        if id(frame) not in self._slots:
            slot = self._free.pop() if self._free else self._slots.popitem(last=False)[1][0]
            start = slot * self._stride
            target = self._buffer.host[start : start + self._bytes].reshape(frame.shape)
            np.copyto(target, frame)
            self._buffer.push(stream, self._bytes, start)
            self._slots[id(frame)] = slot, frame
        return self._buffer.address + self._slots[id(frame)][0] * self._stride

    def free(self) -> None:
        """Give the memory back."""
        self._slots.clear()
        self._buffer.free()


class Pool:
    """Memory on the GPU for outputs that are kept: one of two sizes, allocated once, used again.

    `usual` and `most`: bytes. Slots of the usual size are there from the start; further ones are
    allocated when more are held at a time than ever before.
    """

    def __init__(self, device: Device, usual: int, most: int, count: int = 2) -> None:
        self.device = device
        self.closed = False
        self._sizes = sorted({max(usual, ALIGNMENT), max(most, ALIGNMENT)})
        self._free: dict[int, list[Any]] = {size: [] for size in self._sizes}
        self._all: list[Any] = []
        self._free[self._sizes[0]] += [self._allocate(self._sizes[0]) for _ in range(count)]

    def _allocate(self, size: int) -> Any:
        allocation = self.device.driver.mem_alloc(size)
        self._all.append(allocation)
        return allocation

    def take(self, nbytes: int) -> Slot:
        """A slot of at least `nbytes`; inside `Device.current()`."""
        fitting = [size for size in self._sizes if size >= nbytes]
        for size in fitting:
            if self._free[size]:
                return Slot(self, size, self._free[size].pop())
        return Slot(self, fitting[0], self._allocate(fitting[0]))

    def give_back(self, size: int, allocation: Any) -> None:
        """Have a slot's memory again; in any thread."""
        self._free[size].append(allocation)

    def free(self) -> None:
        """Give the memory back; what lay in it is lost. Inside `Device.current()`."""
        self.closed = True
        for allocation in self._all:
            allocation.free()
        self._all.clear()


class Slot:
    """A piece of a pool's memory; it goes back when nobody holds the slot any more."""

    def __init__(self, pool: Pool, size: int, allocation: Any) -> None:
        self.pool = pool
        self.address = int(allocation)
        self._size, self._allocation = size, allocation

    def __del__(self) -> None:
        if not self.pool.closed:
            self.pool.give_back(self._size, self._allocation)


class TrtResident:
    """A tensor in a slot on the GPU, or rows of one. It holds the slot."""

    def __init__(
        self, slot: Slot, shape: tuple[int, ...], dtype: np.dtype, offset: int = 0
    ) -> None:
        self.shape, self.dtype = shape, dtype
        self._slot, self._offset = slot, offset

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    @property
    def address(self) -> int:
        """Where it is on the GPU; TensorsLostError where its memory was given back."""
        if self._slot.pool.closed:
            raise TensorsLostError("A tensor went with the engine that made it, which is closed.")
        return self._slot.address + self._offset

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, row: int) -> TrtResident:
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of a tensor of {len(self)} rows")
        rest = self.shape[1:]
        step = int(np.prod(rest)) * self.dtype.itemsize
        return TrtResident(self._slot, rest, self.dtype, self._offset + int(row) % len(self) * step)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        """A copy on the host. TensorsLostError where the device or the engine is gone."""
        if copy is False:
            raise ValueError("a tensor on the GPU cannot be had on the host without a copy")
        array = np.empty(self.shape, self.dtype)
        if array.nbytes:
            device = self._slot.pool.device
            try:
                with device.current():
                    device.driver.memcpy_dtoh(array, self.address)
            except DeviceError as error:
                raise TensorsLostError(f"A tensor went with its device: {error}") from error
        return array if dtype is None else array.astype(dtype, copy=False)


def on_gpu(value: Any) -> bool:
    """Whether a tensor is on the GPU; EngineError where another backend keeps it."""
    if isinstance(value, TrtResident):
        return True
    if isinstance(value, np.ndarray):
        return False
    raise EngineError(f"A {type(value).__name__} is neither an array nor a tensor on this GPU.")
