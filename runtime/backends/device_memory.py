"""Arrays in the memory of a backend's device, where that is not the host's."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from wfvae.runtime.dlpack import Device, DeviceArray, Shape, reading

FLOAT32: np.dtype[Any] = np.dtype(np.float32)


class DeviceMemory(ABC):
    """Allocates and copies on one device. Every call returns when its copies are done.

    A new array holds its memory until the array and all views of it are gone.
    """

    device: Device

    @abstractmethod
    def empty(self, shape: Shape, dtype: np.dtype[Any] = FLOAT32) -> DeviceArray:
        """Returns a new array. Raises `ResourceError` if the device has no room."""

    @abstractmethod
    def borrow(self, producer: Any) -> DeviceArray:
        """Returns a producer's array once the work that fills it is done, or in front of a copy."""

    @abstractmethod
    def copy(self, target: DeviceArray, source: DeviceArray) -> None:
        """Copies between two contiguous arrays of equal size."""

    @abstractmethod
    def read(self, source: DeviceArray, target: npt.NDArray[np.uint8]) -> None:
        """Copies the bytes of a contiguous array to host memory."""

    @abstractmethod
    def write(self, target: DeviceArray, source: npt.NDArray[np.uint8]) -> None:
        """Copies bytes of host memory to a contiguous array."""

    def take(self, data: Any, what: str) -> DeviceArray | None:
        """Returns an array that is on this device, else None. Raises `InputError`, about `what`."""
        if not hasattr(data, "__dlpack__"):
            return None
        with reading(data, what):
            kind, index = data.__dlpack_device__()
            return self.borrow(data) if (int(kind), int(index)) == self.device else None

    def keep(self, array: DeviceArray) -> DeviceArray:
        """Returns a copy of a contiguous array."""
        kept = self.empty(array.shape, array.dtype)
        self.copy(kept, array)
        return kept

    def to_device(self, array: npt.NDArray[Any]) -> DeviceArray:
        """Returns a copy of an array of the host."""
        placed = self.empty(array.shape, array.dtype)
        if array.nbytes:
            self.write(placed, np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        return placed

    def to_host(self, array: DeviceArray) -> npt.NDArray[Any]:
        """Returns a copy on the host, of any strides."""
        if not array.nbytes:
            return np.empty(array.shape, array.dtype)
        held = np.empty(array.span, np.uint8)
        self.read(array.bytes(array.span), held)
        strides = tuple(step * array.dtype.itemsize for step in array.strides)
        return np.ndarray(array.shape, array.dtype, held.data, 0, strides)

    def join(self, parts: Sequence[DeviceArray | npt.NDArray[Any]]) -> DeviceArray:
        """Concatenates along the first axis. Arrays of equal layout stay on the device."""
        first = parts[0]
        alike = [part for part in parts if isinstance(part, DeviceArray)]
        if len(alike) < len(parts) or any(part.strides != alike[0].strides for part in alike):
            copies = [self.to_host(part) if isinstance(part, DeviceArray) else part for part in parts]
            return self.to_device(np.concatenate(copies))
        if len(alike) == 1:
            return alike[0]
        # Entries may be views of larger ones, such as the visible part of padded frames.
        block = alike[0].strides[0]
        whole = self.empty((sum(map(len, alike)), block), first.dtype)
        done = 0
        for part in alike:
            source = part.view(part.address, (len(part), block), (block, 1))
            self.copy(whole[done : done + len(part)], source)
            done += len(part)
        return whole.view(whole.address, (len(whole), *first.shape[1:]), alike[0].strides)

    def stack(self, rows: Sequence[DeviceArray | npt.NDArray[Any]]) -> DeviceArray:
        """Returns arrays of equal shapes as the rows of one."""
        first = rows[0]
        if len(rows) == 1 and isinstance(first, DeviceArray):
            return first.view(
                first.address, (1, *first.shape), (len(first) * first.strides[0], *first.strides)
            )
        whole = self.empty((len(rows), *first.shape), first.dtype)
        for number, row in enumerate(rows):
            self.copy(whole[number], row if isinstance(row, DeviceArray) else self.to_device(row))
        return whole
