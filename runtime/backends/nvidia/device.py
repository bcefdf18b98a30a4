"""A GPU of the TensorRT backend: streams, memory, a scratch area for all engines, step buffers."""

import contextlib
import ctypes
import math
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from wfvae.errors import ResourceError
from wfvae.runtime.backends.base import Array, Tensor
from wfvae.runtime.backends.device_memory import FLOAT32, DeviceMemory
from wfvae.runtime.backends.nvidia.cuda import Cuda, DeviceError
from wfvae.runtime.dlpack import CUDA, DeviceArray, borrow
from wfvae.spec.tensorrt_api import Shape

ALIGNMENT = 256
"""Of device addresses, in bytes: what CUDA's allocations have, and what TensorRT demands."""


def aligned(size: int) -> int:
    """Returns `size` rounded up to whole units of `ALIGNMENT`, at least one: no buffer is empty."""
    return -(-max(size, 1) // ALIGNMENT) * ALIGNMENT


def ignoring_device_errors() -> contextlib.suppress:
    """Suppresses errors of the device, for cleaning up while another error is on its way."""
    return contextlib.suppress(DeviceError, ResourceError)


class Releasable(Protocol):
    def release(self) -> None: ...


class Allocations:
    """Memory, events and streams that are released together."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._held: list[tuple[Callable[[int], None], int]] = []

    def device(self, size: int) -> int:
        """Returns the address of `size` bytes on the device. Raises `ResourceError`."""
        return self._keep(self._cuda.allocate(aligned(size)), self._cuda.free)

    def pinned(self, size: int) -> npt.NDArray[np.uint8]:
        """Returns pinned host memory, valid until `release`. Raises `ResourceError`."""
        address = self._keep(self._cuda.allocate_pinned(aligned(size)), self._cuda.free_pinned)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def event(self) -> int:
        return self._keep(self._cuda.create_event(), self._cuda.destroy_event)

    def stream(self) -> int:
        return self._keep(self._cuda.create_stream(), self._cuda.destroy_stream)

    def release(self) -> None:
        """Frees everything, once. Never raises."""
        while self._held:
            free, handle = self._held.pop()
            with ignoring_device_errors():
                free(handle)

    def _keep(self, handle: int, free: Callable[[int], None]) -> int:
        self._held.append((free, handle))
        return handle


class Scratch:
    """Memory for activations, shared by all engines: their runs follow each other on one stream."""

    def __init__(self, cuda: Cuda, stream: int) -> None:
        self._cuda, self._stream = cuda, stream
        self._memory = Allocations(cuda)
        self.place = (0, 0)
        """Address and size."""

    def require(self, size: int) -> None:
        """Makes room for at least `size` bytes. Call it with the device's lock held.

        Raises `ResourceError`; there is then no scratch memory, and the next call allocates it.
        """
        address, held = self.place
        if size > held or not address:
            self._cuda.synchronize(self._stream)
            # The former area is freed first: both together may not fit where the new one does.
            self.release()
            self.place = self._memory.device(size), aligned(size)

    def release(self) -> None:
        self._memory.release()
        self.place = (0, 0)


class Device:
    """A GPU with its streams. Engines run one by one on `compute`; copies run beside them."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        # Reentrant: the garbage collector may release a state while the same thread holds the lock.
        self.lock = threading.RLock()
        """Held while work is enqueued, and while waiting for it only after a failure."""
        streams = Allocations(cuda)
        # Runs also at the interpreter's end, and if the lines below raise.
        weakref.finalize(self, streams.release)
        self.compute, self.copies_in, self.copies_out = (streams.stream() for _ in range(3))
        self.scratch = Scratch(cuda, self.compute)
        weakref.finalize(self, self.scratch.release)
        self._enqueuing = 0
        self._waiting: list[Callable[[], None]] = []

    @contextlib.contextmanager
    def enqueuing(self) -> Iterator[None]:
        """Holds the lock, with this GPU as the thread's own."""
        with self.lock:
            self._enqueuing += 1
            try:
                self.cuda.activate()
                yield
            finally:
                self._enqueuing -= 1
                while not self._enqueuing and self._waiting:
                    self._waiting.pop()()

    def when_idle(self, release: Callable[[], None]) -> None:
        """Calls `release` now or, if this thread is enqueuing, after that.

        The garbage collector may release a state at any place, also while a CUDA graph is captured,
        which waiting and freeing would invalidate.
        """
        with self.lock:
            if self._enqueuing:
                self._waiting.append(release)
            else:
                release()

    @contextlib.contextmanager
    def draining(self) -> Iterator[None]:
        """Makes the GPU the thread's own; an exception waits until no buffer is in use."""
        self.cuda.activate()
        try:
            yield
        except BaseException:
            self.drain()
            raise

    def release_when_idle(self, *parts: Releasable) -> None:
        """Releases parts once no work on the device is under way."""

        def release() -> None:
            with ignoring_device_errors():
                self.cuda.activate()
            self.drain()
            for part in parts:
                part.release()

        self.when_idle(release)

    def drain(self) -> None:
        """Waits for all enqueued work, failed or not: after this no buffer is in use."""
        with self.lock:  # waiting for a stream would invalidate another thread's capture on it
            for stream in (self.compute, self.copies_in, self.copies_out):
                with ignoring_device_errors():
                    self.cuda.synchronize(stream)


class StepBuffers:
    """Input, flags and output of a run. The buffers grow with the longest run, and are reused."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._memory, self._events = Allocations(device.cuda), Allocations(device.cuda)
        self._used: tuple[int, ...] = ()
        self._host: tuple[npt.NDArray[np.uint8], ...] = ()
        self._held: tuple[tuple[int, ...], ...] = ()
        """Sizes of the buffers on the device and of those on the host."""
        self._inputs: tuple[Array | DeviceArray, ...] = ()
        self._target: DeviceArray | None = None
        self.addresses: tuple[int, ...] = ()
        """Device addresses: of each input, then of the output. They stay the same while the runs do
        not get longer, which captured graphs need; arrays on the device are copied to them.
        """
        try:
            self._copied_in, self._computed, self._copied_out = (self._events.event() for _ in range(3))
        except BaseException:
            self._events.release()
            raise

    def stage(
        self, inputs: tuple[Array | DeviceArray, ...], output: Shape, target: DeviceArray | None = None
    ) -> None:
        """Makes room and copies the inputs of the host to pinned memory.

        The output is for the host, or for `target` on the device. Raises `ResourceError`; the
        buffers are then empty or as they were.
        """
        self._inputs, self._target = inputs, target
        self._used = (*(array.nbytes for array in inputs), math.prod(output) * 4)
        pinned = (*(0 if isinstance(array, DeviceArray) else array.nbytes for array in inputs),)
        pinned = (*pinned, 0 if target is not None else self._used[-1])
        held = self._held or ((0,) * len(self._used),) * 2
        sizes = tuple(map(max, self._used, held[0])), tuple(map(max, pinned, held[1]))
        if sizes != held:
            self._allocate(*sizes)
        for host, array in zip(self._host, inputs, strict=False):
            if not isinstance(array, DeviceArray):
                host[: array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)

    def run(self, enqueue: Callable[[], None], output: Shape) -> Tensor:
        """Copies the staged inputs, calls `enqueue` to start the work, and waits for the output."""
        device, cuda = self._device, self._device.cuda
        *addresses, output_at = self.addresses
        *hosts, output_host = self._host
        output_size, target = self._used[-1], self._target
        with device.enqueuing():
            for address, host, array in zip(addresses, hosts, self._inputs, strict=True):
                if isinstance(array, DeviceArray):
                    cuda.copy_within(address, array.address, array.nbytes, device.copies_in)
                else:
                    cuda.copy_in(address, host.ctypes.data, array.nbytes, device.copies_in)
            cuda.record(self._copied_in, device.copies_in)
            cuda.wait(device.compute, self._copied_in)
            enqueue()
            cuda.record(self._computed, device.compute)
            cuda.wait(device.copies_out, self._computed)
            if target is not None:
                cuda.copy_within(target.address, output_at, output_size, device.copies_out)
            else:
                cuda.copy_out(output_host.ctypes.data, output_at, output_size, device.copies_out)
            cuda.record(self._copied_out, device.copies_out)
        cuda.synchronize_event(self._copied_out)
        self._inputs, self._target = (), None
        if target is not None:
            return target
        return output_host[:output_size].copy().view(np.float32).reshape(output)

    def release(self) -> None:
        self._free()
        self._events.release()

    def _free(self) -> None:
        self._host = self.addresses = self._held = ()
        self._memory.release()

    def _allocate(self, sizes: tuple[int, ...], pinned: tuple[int, ...]) -> None:
        self._free()
        try:
            self.addresses = tuple(map(self._memory.device, sizes))
            self._host = tuple(map(self._memory.pinned, pinned))
            self._held = sizes, pinned
        except BaseException:
            self._free()
            raise


class CudaMemory(DeviceMemory):
    """Memory of a GPU. Copies run on its stream for inputs, beside the engines."""

    def __init__(self, device: Device, device_id: int) -> None:
        self.device = CUDA, device_id
        self._gpu = device

    def empty(self, shape: Shape, dtype: np.dtype[Any] = FLOAT32) -> DeviceArray:
        if 0 in shape:
            return DeviceArray.contiguous(0, shape, dtype, self.device, None)
        block = _Block(self._gpu, math.prod(shape) * dtype.itemsize)
        return DeviceArray.contiguous(block.address, shape, dtype, self.device, block)

    def borrow(self, producer: Any) -> DeviceArray:
        return borrow(producer, stream=self._gpu.copies_in)

    def copy(self, target: DeviceArray, source: DeviceArray) -> None:
        self._copy(
            lambda cuda, stream: cuda.copy_within(target.address, source.address, target.nbytes, stream)
        )

    def read(self, source: DeviceArray, target: npt.NDArray[np.uint8]) -> None:
        self._copy(
            lambda cuda, stream: cuda.copy_out(target.ctypes.data, source.address, target.nbytes, stream)
        )

    def write(self, target: DeviceArray, source: npt.NDArray[np.uint8]) -> None:
        self._copy(
            lambda cuda, stream: cuda.copy_in(target.address, source.ctypes.data, source.nbytes, stream)
        )

    def _copy(self, enqueue: Callable[[Cuda, int], None]) -> None:
        gpu = self._gpu
        with gpu.draining():
            with gpu.enqueuing():
                enqueue(gpu.cuda, gpu.copies_in)
            gpu.cuda.synchronize(gpu.copies_in)


class _Block:
    """Memory on the device, released when it is dropped."""

    def __init__(self, device: Device, size: int) -> None:
        memory = Allocations(device.cuda)
        weakref.finalize(self, device.release_when_idle, memory)
        with device.enqueuing():
            self.address = memory.device(size)
