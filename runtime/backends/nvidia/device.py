"""A GPU as the TensorRT backend holds it: three streams, memory that is given back as a whole, and
one scratch area for all engines.

Nothing here has ever run on a GPU; see `wfvae/runtime/backends/nvidia/cuda.py`.
"""

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
"""Of device addresses, in bytes; what CUDA allocates is aligned so, and TensorRT wants it of
scratch memory.
"""


def aligned(size: int) -> int:
    """`size` bytes rounded up to whole units of `ALIGNMENT`, at least one: no buffer is empty."""
    return -(-max(size, 1) // ALIGNMENT) * ALIGNMENT


class Allocations:
    """Device memory, pinned memory and events that live and end together."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._device: list[int] = []
        self._pinned: list[int] = []
        self._events: list[int] = []

    def device(self, size: int) -> int:
        """Address of `size` bytes on the device. Raises `ResourceError`."""
        self._device.append(self._cuda.allocate(aligned(size)))
        return self._device[-1]

    def pinned(self, size: int) -> npt.NDArray[np.uint8]:
        """`size` bytes of pinned host memory. The array is a view: it ends with this object's
        `release`. Raises `ResourceError`.
        """
        self._pinned.append(self._cuda.allocate_pinned(aligned(size)))
        buffer = (ctypes.c_uint8 * size).from_address(self._pinned[-1])
        return np.ctypeslib.as_array(buffer)

    def event(self) -> int:
        """A new event."""
        self._events.append(self._cuda.create_event())
        return self._events[-1]

    def release(self) -> None:
        """Gives everything back, once; never raises, since it also runs while something else is
        failing.
        """
        for give_back, held in (
            (self._cuda.free, self._device),
            (self._cuda.free_pinned, self._pinned),
            (self._cuda.destroy_event, self._events),
        ):
            while held:
                with contextlib.suppress(DeviceError, ResourceError):
                    give_back(held.pop())


class Scratch:
    """Memory for activations that all engines of a device share. Right because their runs follow
    each other on one stream.
    """

    def __init__(self, cuda: Cuda, stream: int) -> None:
        self._cuda, self._stream = cuda, stream
        self._memory = Allocations(cuda)
        self.address = 0
        self.size = 0

    @property
    def place(self) -> tuple[int, int]:
        """Address and size."""
        return self.address, self.size

    def require(self, size: int) -> int:
        """The address of at least `size` bytes; it stays until more is required. To be called with
        the device's lock held.

        Raises `ResourceError`; what was there before is then kept if it can be.
        """
        if size <= self.size and self.address:
            return self.address
        former = self.size
        self._cuda.synchronize(self._stream)
        # The old area goes first: the two together may not fit where the new one alone does.
        self.release()
        try:
            self._take(size)
        except ResourceError:
            if former:
                with contextlib.suppress(ResourceError):
                    self._take(former)
            raise
        return self.address

    def release(self) -> None:
        """Gives the memory back."""
        self._memory.release()
        self.address = self.size = 0

    def _take(self, size: int) -> None:
        self.address, self.size = self._memory.device(size), aligned(size)


class Device:
    """A GPU with its streams. Engines run on `compute` one after the other; copies run beside them
    on streams of their own.
    """

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.lock = (
            threading.RLock()
        )  # again by the same thread, when the garbage collector ends a state in the midst of it
        """Held while work is given to the streams, and while waiting for it only after a failure:
        so copies overlap another's compute.
        """
        streams: list[int] = []
        # Also at the interpreter's end, and for a device whose making fails half-way.
        self._finalizer = weakref.finalize(self, _destroy_streams, cuda, streams)
        for _ in range(3):
            streams.append(cuda.create_stream())
        self._streams = streams
        self.compute, self.copies_in, self.copies_out = streams
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
        """Calls `release` now or, if this thread is giving work to the streams, after that.

        The garbage collector may end a state at any place, also while a CUDA graph is captured,
        which waiting and freeing would spoil.
        """
        with self.lock:
            if self._enqueuing:
                self._waiting.append(release)
            else:
                release()

    def drain(self) -> None:
        """Waits for all work that was given, whatever becomes of it: after this no buffer is in
        use.
        """
        with self.lock:  # waiting for a stream would spoil another thread's capture on it
            for stream in self._streams:
                with contextlib.suppress(DeviceError, ResourceError):
                    self.cuda.synchronize(stream)


def _destroy_streams(cuda: Cuda, streams: list[int]) -> None:
    while streams:
        with contextlib.suppress(DeviceError, ResourceError):
            cuda.destroy_stream(streams.pop())
