"""Buffers for the input and output of a run, pinned on the host and on the device."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from wfvae.runtime.backends.base import Array, FloatArray
from wfvae.runtime.backends.nvidia.device import Allocations, Device
from wfvae.spec.tensorrt import Shape


class StepBuffers:
    """Input, flags and output of a run. The buffers grow with the longest run, and are reused."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._memory, self._events = Allocations(device.cuda), Allocations(device.cuda)
        self._capacity: tuple[int, ...] = ()
        self._used: tuple[int, ...] = ()
        self._host: tuple[npt.NDArray[np.uint8], ...] = ()
        self.addresses: tuple[int, ...] = ()
        """Device addresses: of each input, then of the output."""
        try:
            self._copied_in, self._computed, self._copied_out = (self._events.event() for _ in range(3))
        except BaseException:
            self._events.release()
            raise

    def stage(self, inputs: tuple[Array, ...], output: Shape) -> None:
        """Makes room and copies the inputs to pinned memory.

        Raises `ResourceError`; the buffers are then empty or as they were.
        """
        self._used = (*(array.nbytes for array in inputs), math.prod(output) * 4)
        if not self._capacity:
            self._grow(self._used)
        elif any(used > held for used, held in zip(self._used, self._capacity, strict=True)):
            self._grow(tuple(map(max, self._used, self._capacity)))
        for host, array in zip(self._host, inputs, strict=False):
            host[: array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)

    def run(self, enqueue: Callable[[], None], output: Shape) -> FloatArray:
        """Copies the staged inputs, calls `enqueue` to start the work, and waits for the output."""
        with self._device.enqueuing():
            self._copy_in()
            enqueue()
            self._copy_out()
        self._device.cuda.synchronize_event(self._copied_out)
        result = np.empty(output, np.float32)
        result.reshape(-1).view(np.uint8)[...] = self._host[-1][: result.nbytes]
        return result

    def free(self) -> None:
        """Frees the buffers, and keeps the events."""
        self._host = self.addresses = self._capacity = ()
        self._memory.release()

    def release(self) -> None:
        """Frees everything."""
        self.free()
        self._events.release()

    def _grow(self, sizes: tuple[int, ...]) -> None:
        self.free()
        try:
            self.addresses = tuple(map(self._memory.device, sizes))
            self._host = tuple(map(self._memory.pinned, sizes))
        except BaseException:
            self.free()
            raise
        self._capacity = sizes

    def _copy_in(self) -> None:
        """The compute stream waits for the copies."""
        cuda, stream = self._device.cuda, self._device.copies_in
        inputs = list(zip(self.addresses, self._host, self._used, strict=True))[:-1]
        for address, host, size in inputs:
            cuda.copy_in(address, host.ctypes.data, size, stream)
        cuda.record(self._copied_in, stream)
        cuda.wait(self._device.compute, self._copied_in)

    def _copy_out(self) -> None:
        """The copy waits for the compute stream."""
        cuda, stream = self._device.cuda, self._device.copies_out
        cuda.record(self._computed, self._device.compute)
        cuda.wait(stream, self._computed)
        cuda.copy_out(self._host[-1].ctypes.data, self.addresses[-1], self._used[-1], stream)
        cuda.record(self._copied_out, stream)
