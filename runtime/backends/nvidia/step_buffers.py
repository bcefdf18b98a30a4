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
        held = tuple(host.nbytes for host in self._host) or (0,) * len(self._used)
        sizes = tuple(map(max, self._used, held))
        if sizes != held:
            self._allocate(sizes)
        for host, array in zip(self._host, inputs, strict=False):
            host[: array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)

    def run(self, enqueue: Callable[[], None], output: Shape) -> FloatArray:
        """Copies the staged inputs, calls `enqueue` to start the work, and waits for the output."""
        device, cuda = self._device, self._device.cuda
        *inputs, (output_at, output_host, output_size) = zip(
            self.addresses, self._host, self._used, strict=True
        )
        with device.enqueuing():
            for address, host, size in inputs:
                cuda.copy_in(address, host.ctypes.data, size, device.copies_in)
            cuda.record(self._copied_in, device.copies_in)
            cuda.wait(device.compute, self._copied_in)
            enqueue()
            cuda.record(self._computed, device.compute)
            cuda.wait(device.copies_out, self._computed)
            cuda.copy_out(output_host.ctypes.data, output_at, output_size, device.copies_out)
            cuda.record(self._copied_out, device.copies_out)
        cuda.synchronize_event(self._copied_out)
        return output_host[:output_size].copy().view(np.float32).reshape(output)

    def release(self) -> None:
        self._free()
        self._events.release()

    def _free(self) -> None:
        self._host = self.addresses = ()
        self._memory.release()

    def _allocate(self, sizes: tuple[int, ...]) -> None:
        self._free()
        try:
            self.addresses = tuple(map(self._memory.device, sizes))
            self._host = tuple(map(self._memory.pinned, sizes))
        except BaseException:
            self._free()
            raise
