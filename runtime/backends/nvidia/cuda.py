"""The small part of CUDA that the TensorRT backend uses, and its implementation by NVIDIA's
`cuda-bindings`. No torch.

Nothing here has ever run on a GPU: the tests check names and signatures against the real
`cuda-bindings`, and the backend's logic against a recording stand-in.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from wfvae.errors import MissingExtraError, ResourceError, WFVAEError
from wfvae.runtime.backends.nvidia.driver import driver_version


class DeviceError(WFVAEError):
    """A GPU that is not there, or a call to it that failed."""


@dataclass(frozen=True)
class DeviceInfo:
    """A GPU."""

    name: str
    compute_capability: str
    """Such as 9.0."""
    driver: str
    """The driver's version, such as 580.65.06, or "unknown"."""


class Cuda(Protocol):
    """One GPU. Addresses and handles are integers; sizes are in bytes. Every method may raise
    `DeviceError`.

    Streams run what is given to them in order, and beside each other. A call that takes a stream
    returns before the work is done.
    """

    def activate(self) -> None:
        """Makes this the calling thread's GPU. To be called in each thread before anything else."""

    def info(self) -> DeviceInfo:
        """Which GPU it is."""

    def allocate(self, size: int) -> int:
        """Device memory, aligned to 256 bytes. Raises `ResourceError` if there is not enough."""

    def free(self, address: int) -> None:
        """Gives device memory back."""

    def allocate_pinned(self, size: int) -> int:
        """Host memory that is copied from and to without a detour. Raises `ResourceError` if there
        is not enough.
        """

    def free_pinned(self, address: int) -> None:
        """Gives pinned memory back."""

    def copy_in(self, device: int, host: int, size: int, stream: int) -> None:
        """Copies from host to device."""

    def copy_out(self, host: int, device: int, size: int, stream: int) -> None:
        """Copies from device to host."""

    def fill_zero(self, device: int, size: int, stream: int) -> None:
        """Sets bytes to 0."""

    def create_stream(self) -> int:
        """A stream that does not wait for the default stream."""

    def destroy_stream(self, stream: int) -> None:
        """Ends a stream."""

    def synchronize(self, stream: int) -> None:
        """Waits until a stream's work is done. Failures of that work are raised here."""

    def create_event(self) -> int:
        """A mark in a stream."""

    def destroy_event(self, event: int) -> None:
        """Removes an event."""

    def record(self, event: int, stream: int) -> None:
        """Puts the mark behind what the stream has to do now."""

    def wait(self, stream: int, event: int) -> None:
        """Lets a stream's further work wait for the mark."""

    def synchronize_event(self, event: int) -> None:
        """Waits for the mark. Failures of the work before it are raised here."""

    def begin_capture(self, stream: int) -> None:
        """From here on the stream's work is written down instead of done."""

    def end_capture(self, stream: int) -> int:
        """Ends the writing down and returns it as a graph that can be launched."""

    def launch(self, graph: int, stream: int) -> None:
        """Does a graph's work."""

    def destroy_graph(self, graph: int) -> None:
        """Removes a graph."""


class CudaBindings:
    """`Cuda` by `cuda.bindings.runtime`."""

    def __init__(self, device_id: int = 0) -> None:
        """Raises `MissingExtraError` without the package, and `DeviceError` without such a GPU or
        its driver.
        """
        self._rt = load_cuda()
        self._device_id = device_id
        self._call(self._rt.cudaGetDeviceCount)
        self.activate()

    def activate(self) -> None:
        self._call(self._rt.cudaSetDevice, self._device_id)

    def info(self) -> DeviceInfo:
        properties = self._call(self._rt.cudaGetDeviceProperties, self._device_id)
        name = properties.name.split(b"\0")[0].decode()
        return DeviceInfo(name, f"{properties.major}.{properties.minor}", driver_version() or "unknown")

    def allocate(self, size: int) -> int:
        return int(self._call(self._rt.cudaMalloc, size, wanted=size))

    def free(self, address: int) -> None:
        self._call(self._rt.cudaFree, address)

    def allocate_pinned(self, size: int) -> int:
        try:
            return int(self._call(self._rt.cudaMallocHost, size, wanted=size))
        except ResourceError as error:
            raise ResourceError(
                f"no memory for {size / (1 << 20):.0f} MiB of pinned host memory; use a smaller chunk or size"
            ) from error

    def free_pinned(self, address: int) -> None:
        self._call(self._rt.cudaFreeHost, address)

    def copy_in(self, device: int, host: int, size: int, stream: int) -> None:
        self._call(
            self._rt.cudaMemcpyAsync,
            device,
            host,
            size,
            self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice,
            stream,
        )

    def copy_out(self, host: int, device: int, size: int, stream: int) -> None:
        self._call(
            self._rt.cudaMemcpyAsync,
            host,
            device,
            size,
            self._rt.cudaMemcpyKind.cudaMemcpyDeviceToHost,
            stream,
        )

    def fill_zero(self, device: int, size: int, stream: int) -> None:
        self._call(self._rt.cudaMemsetAsync, device, 0, size, stream)

    def create_stream(self) -> int:
        return int(self._call(self._rt.cudaStreamCreateWithFlags, self._rt.cudaStreamNonBlocking))

    def destroy_stream(self, stream: int) -> None:
        self._call(self._rt.cudaStreamDestroy, stream)

    def synchronize(self, stream: int) -> None:
        self._call(self._rt.cudaStreamSynchronize, stream)

    def create_event(self) -> int:
        return int(self._call(self._rt.cudaEventCreateWithFlags, self._rt.cudaEventDisableTiming))

    def destroy_event(self, event: int) -> None:
        self._call(self._rt.cudaEventDestroy, event)

    def record(self, event: int, stream: int) -> None:
        self._call(self._rt.cudaEventRecord, event, stream)

    def wait(self, stream: int, event: int) -> None:
        self._call(self._rt.cudaStreamWaitEvent, stream, event, 0)

    def synchronize_event(self, event: int) -> None:
        self._call(self._rt.cudaEventSynchronize, event)

    def begin_capture(self, stream: int) -> None:
        # Other threads may allocate meanwhile.
        self._call(
            self._rt.cudaStreamBeginCapture,
            stream,
            self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal,
        )

    def end_capture(self, stream: int) -> int:
        graph = self._call(self._rt.cudaStreamEndCapture, stream)
        try:
            return int(self._call(self._rt.cudaGraphInstantiate, graph, 0))
        finally:
            self._call(self._rt.cudaGraphDestroy, graph)

    def launch(self, graph: int, stream: int) -> None:
        self._call(self._rt.cudaGraphLaunch, graph, stream)

    def destroy_graph(self, graph: int) -> None:
        self._call(self._rt.cudaGraphExecDestroy, graph)

    def _call(self, function: Callable[..., Any], *arguments: Any, wanted: int | None = None) -> Any:
        """Calls and returns the result, or raises by the status that comes before it. `wanted`:
        bytes of an allocation.
        """
        status, *results = function(*arguments)
        if status == self._rt.cudaError_t.cudaSuccess:
            return results[0] if results else None
        self._rt.cudaGetLastError()  # else the next call would report it again
        if status == self._rt.cudaError_t.cudaErrorMemoryAllocation:
            amount = "" if wanted is None else f" for {wanted / (1 << 20):.0f} MiB more"
            raise ResourceError(
                f"GPU {self._device_id} has no memory{amount}; use a smaller chunk, size or number of streams"
            )
        reason = self._rt.cudaGetErrorString(status)[1]
        text = reason.decode() if isinstance(reason, bytes) else str(reason)
        raise DeviceError(f"GPU {self._device_id}: {text} ({status.name}, from {function.__name__})")


@functools.cache
def load_cuda() -> Any:
    """The module `cuda.bindings.runtime`. Raises `MissingExtraError` if it is not installed."""
    try:
        from cuda.bindings import runtime
    except ModuleNotFoundError as error:
        raise MissingExtraError("driving a GPU", "cuda-bindings", "tensorrt") from error
    except (ImportError, OSError) as error:
        raise DeviceError(
            f"cuda-bindings is installed but does not load: {error}; install it again for this machine's"
            " driver"
        ) from error
    return runtime
