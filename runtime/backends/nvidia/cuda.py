"""The part of CUDA that the TensorRT backend uses, through NVIDIA's `cuda-bindings`. No torch."""

import ctypes
import functools
from collections.abc import Callable
from typing import Any

from wfvae.errors import MissingExtraError, ResourceError, WFVAEError

_MEBIBYTE = 1 << 20
_TEXT = 256


class DeviceError(WFVAEError):
    """A GPU that does not exist, or a call to it that failed."""


class Cuda:
    """One GPU. Addresses and handles are integers; sizes are in bytes.

    A stream runs its work in order, and beside other streams. Methods that take a stream return
    before the work is done. Every method may raise `DeviceError`.
    """

    def __init__(self, device_id: int = 0) -> None:
        """Raises `MissingExtraError` without the package, `DeviceError` without GPU or driver."""
        self._rt = load_cuda()
        self._device_id = device_id
        self._call(self._rt.cudaGetDeviceCount)
        self.activate()

    def activate(self) -> None:
        """Makes this the calling thread's GPU. Call it in each thread before any other method."""
        self._call(self._rt.cudaSetDevice, self._device_id)

    def name_and_capability(self) -> tuple[str, str]:
        """Returns the GPU's name and compute capability, such as 9.0."""
        properties = self._call(self._rt.cudaGetDeviceProperties, self._device_id)
        name = properties.name.split(b"\0")[0].decode()
        return name, f"{properties.major}.{properties.minor}"

    def allocate(self, size: int) -> int:
        """Returns device memory, aligned to 256 bytes. Raises `ResourceError`."""
        text = f"GPU {self._device_id} has no memory for {size / _MEBIBYTE:.0f} MiB more"
        return int(self._call(self._rt.cudaMalloc, size, no_memory=text))

    def free(self, address: int) -> None:
        self._call(self._rt.cudaFree, address)

    def allocate_pinned(self, size: int) -> int:
        """Returns page-locked host memory. Raises `ResourceError`."""
        text = f"no memory for {size / _MEBIBYTE:.0f} MiB of pinned host memory"
        return int(self._call(self._rt.cudaMallocHost, size, no_memory=text))

    def free_pinned(self, address: int) -> None:
        self._call(self._rt.cudaFreeHost, address)

    def copy_in(self, device: int, host: int, size: int, stream: int) -> None:
        kind = self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call(self._rt.cudaMemcpyAsync, device, host, size, kind, stream)

    def copy_out(self, host: int, device: int, size: int, stream: int) -> None:
        kind = self._rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call(self._rt.cudaMemcpyAsync, host, device, size, kind, stream)

    def copy_within(self, target: int, source: int, size: int, stream: int) -> None:
        """Copies device memory to device memory. The areas must not overlap."""
        kind = self._rt.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call(self._rt.cudaMemcpyAsync, target, source, size, kind, stream)

    def fill_zero(self, device: int, size: int, stream: int) -> None:
        self._call(self._rt.cudaMemsetAsync, device, 0, size, stream)

    def create_stream(self) -> int:
        """Returns a stream that does not wait for the default stream."""
        return int(self._call(self._rt.cudaStreamCreateWithFlags, self._rt.cudaStreamNonBlocking))

    def destroy_stream(self, stream: int) -> None:
        self._call(self._rt.cudaStreamDestroy, stream)

    def synchronize(self, stream: int) -> None:
        """Waits until a stream's work is done, and raises if that work failed."""
        self._call(self._rt.cudaStreamSynchronize, stream)

    def create_event(self) -> int:
        return int(self._call(self._rt.cudaEventCreateWithFlags, self._rt.cudaEventDisableTiming))

    def destroy_event(self, event: int) -> None:
        self._call(self._rt.cudaEventDestroy, event)

    def record(self, event: int, stream: int) -> None:
        """Puts the event behind the stream's present work."""
        self._call(self._rt.cudaEventRecord, event, stream)

    def wait(self, stream: int, event: int) -> None:
        """Lets a stream's further work wait for the event."""
        self._call(self._rt.cudaStreamWaitEvent, stream, event, 0)

    def synchronize_event(self, event: int) -> None:
        """Waits for the event, and raises if the work before it failed."""
        self._call(self._rt.cudaEventSynchronize, event)

    def begin_capture(self, stream: int) -> None:
        """Records the stream's further work instead of running it. Other threads may allocate."""
        mode = self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call(self._rt.cudaStreamBeginCapture, stream, mode)

    def end_capture(self, stream: int) -> int:
        """Ends the recording and returns it as an executable graph."""
        graph = self._call(self._rt.cudaStreamEndCapture, stream)
        try:
            return int(self._call(self._rt.cudaGraphInstantiate, graph, 0))
        finally:
            self._call(self._rt.cudaGraphDestroy, graph)

    def launch(self, graph: int, stream: int) -> None:
        self._call(self._rt.cudaGraphLaunch, graph, stream)

    def destroy_graph(self, graph: int) -> None:
        self._call(self._rt.cudaGraphExecDestroy, graph)

    def _call(self, function: Callable[..., Any], *arguments: Any, no_memory: str | None = None) -> Any:
        """Returns a result, or raises by the status. `no_memory`: text of that error."""
        status, *results = function(*arguments)
        if status == self._rt.cudaError_t.cudaSuccess:
            return results[0] if results else None
        self._rt.cudaGetLastError()  # else the next call would report it again
        if status == self._rt.cudaError_t.cudaErrorMemoryAllocation:
            text = no_memory or f"GPU {self._device_id} has no memory"
            raise ResourceError(f"{text}; use a smaller chunk, size or number of streams")
        reason = self._rt.cudaGetErrorString(status)[1]
        text = reason.decode() if isinstance(reason, bytes) else str(reason)
        raise DeviceError(f"GPU {self._device_id}: {text} ({status.name}, from {function.__name__})")


@functools.cache
def load_cuda() -> Any:
    """Imports `cuda.bindings.runtime`. Raises `MissingExtraError` if it is not installed."""
    try:
        from cuda.bindings import runtime
    except ModuleNotFoundError as error:
        raise MissingExtraError("driving a GPU", "cuda-bindings", "tensorrt") from error
    except (ImportError, OSError) as error:
        text = f"cuda-bindings is installed but does not load: {error}"
        raise DeviceError(f"{text}; install it again for this machine's driver") from error
    return runtime


def driver_version() -> str | None:
    """Returns the driver's version, such as 580.65.06, from NVML. None without a driver."""
    nvml = _library("libnvidia-ml.so.1")
    if nvml is None or nvml.nvmlInit_v2() != 0:
        return None
    text = ctypes.create_string_buffer(_TEXT)
    status = nvml.nvmlSystemGetDriverVersion(text, ctypes.c_uint(_TEXT))
    nvml.nvmlShutdown()
    return None if status else text.value.decode()


def gpu_name(index: int) -> str | None:
    """Returns the name of the GPU with this index in CUDA programs, or None."""
    cuda = _library("libcuda.so.1")
    device, text = ctypes.c_int(), ctypes.create_string_buffer(_TEXT)
    found = (
        cuda is not None
        and cuda.cuInit(0) == 0
        and cuda.cuDeviceGet(ctypes.byref(device), index) == 0
        and cuda.cuDeviceGetName(text, _TEXT, device) == 0
    )
    return text.value.decode() if found else None


def _library(name: str) -> Any:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None
