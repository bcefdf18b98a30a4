"""A GPU of the TensorRT backend: three streams, memory, and one scratch area for all engines."""

from __future__ import annotations

import contextlib
import ctypes
import threading
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from wfvae.errors import ResourceError
from wfvae.runtime.backends.nvidia.cuda import Cuda, DeviceError

ALIGNMENT = 256
"""Of device addresses, in bytes: what CUDA's allocations have, and what TensorRT demands."""


def aligned(size: int) -> int:
    """Returns `size` rounded up to whole units of `ALIGNMENT`, at least one: no buffer is empty."""
    return -(-max(size, 1) // ALIGNMENT) * ALIGNMENT


def ignoring_device_errors() -> contextlib.suppress:
    """Suppresses errors of the device, for cleaning up while another error is on its way."""
    return contextlib.suppress(DeviceError, ResourceError)


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

    def drain(self) -> None:
        """Waits for all enqueued work, failed or not: after this no buffer is in use."""
        with self.lock:  # waiting for a stream would invalidate another thread's capture on it
            for stream in (self.compute, self.copies_in, self.copies_out):
                with ignoring_device_errors():
                    self.cuda.synchronize(stream)
