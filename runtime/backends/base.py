"""What a backend offers: sessions that run a bundle's graphs, and the streaming state they keep on
their device.

To add a backend, write a module with these classes and enter it in `registry.py`: name, options and
opening. Then give it an extra in `pyproject.toml` with a pin in `constraints.txt`, a runner in
`export/parity/backend_search.py`, which finds the first tensor that differs, and its package in
`export/parity/verification.py`, whose versions a certificate lists. If its results are exact, say
so in `wfvae/spec/exactness.py`.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from ml_dtypes import bfloat16

from wfvae.errors import BundleError, ResourceError
from wfvae.machine import limited_memory
from wfvae.runtime.backends.device_memory import DeviceMemory
from wfvae.runtime.dlpack import DeviceArray
from wfvae.spec.frames import SPATIAL_RATIO
from wfvae.spec.manifest import GraphSpec
from wfvae.spec.stream import StateSpec

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]
Tensor = FloatArray | DeviceArray
"""float32 values in host memory, or on the backend's device."""
BoolArray = npt.NDArray[np.bool_]

_LONGEST_MESSAGE = 300
_LOADING_FACTOR, _LOADING_BYTES = 4, 1 << 30
"""Copies of the weights while they are packed, and what a library takes for itself."""


@dataclass(frozen=True)
class BackendOptions:
    """The options of all backends. Each one reads its own; `open_bundle` documents them."""

    provider: str = "auto"
    device_id: int = 0
    threads: int | None = None
    tf32: bool = False
    cuda_graphs: bool = False
    precision_hint: str | None = None


class StreamState(Protocol):
    """The state of a batch of streams, in two buffers per tensor that swap roles at each step.

    Rows stay where they are on the device. A stream that begins takes any row as it is, since
    `start` makes the row ignore its state.
    """

    batch: int
    """Most rows of a step."""
    height: int
    """Padded video height."""
    width: int
    """Padded video width."""

    def read(self) -> dict[str, Array]:
        """Returns copies of the current tensors, batch first; bfloat16 as bits in uint16."""

    def write(self, tensors: Mapping[str, Array]) -> None:
        """Replaces the current tensors. The caller has checked names, shapes and types."""

    def save_row(self, row: int) -> Any:
        """Returns a copy of one row on the device, for `load_row` of any state of this session."""

    def load_row(self, row: int, saved: Any) -> None:
        """Replaces one row by a saved one. If that fails, the row's content is undefined."""

    def copy_row(self, source: int, target: int) -> None:
        """Copies one row over another on the device. If that fails, `target` is undefined."""


class StepSession(Protocol):
    """Runs a step graph. Safe to use from several threads, each with its own states."""

    graph: GraphSpec

    @property
    def memory(self) -> DeviceMemory | None:
        """The device's memory, or None if that is the host's."""

    def new_state(self, batch: int, height: int, width: int) -> StreamState:
        """Returns the initial state of `batch` streams of a padded video size."""

    def step(
        self, state: StreamState, x: Tensor, start: BoolArray, end: BoolArray, on_device: bool = False
    ) -> Tensor:
        """Advances the first rows by `x` (batch first) and returns the graph's output.

        `on_device` returns it in the device's memory, if that is not the host's. An `x` on the
        device is contiguous.

        The rows that `x` does not have are undefined after it. `state` changes only if the step
        succeeds: a failed or interrupted step leaves it as it was.
        """


class DirectSession(Protocol):
    """Runs a direct graph."""

    def run(self, x: FloatArray) -> FloatArray:
        """Returns the graph's output for whole clips."""


class Backend(Protocol):
    """Opens sessions on one device."""

    def describe(self) -> dict[str, str]:
        """Returns name, version, device and settings, for reports and certificates.

        Others read `name`, `version`, `provider` (ONNX Runtime), `device` (`cpu`, `cuda:N`), `gpu`,
        `compute_capability`, and the settings `threads`, `tf32`, `precision_hint` and
        `cpu_precisions`: results and speeds are compared only where they agree.
        """

    def open_step(self, graph: GraphSpec) -> StepSession: ...

    def open_direct(self, graph: GraphSpec) -> DirectSession: ...


def output_shape(graph: GraphSpec, x: Tensor) -> tuple[int, ...]:
    """Returns the shape of a graph's output for the input `x`."""
    batch, count, _, height, width = x.shape
    channels = int(graph.outputs[0].shape[2])
    ratio = graph.stream.ratio
    if graph.stream.direction == "encoder":
        return (batch, -(-count // ratio), channels, height // SPATIAL_RATIO, width // SPATIAL_RATIO)
    frames = ratio * count if graph.kind == "step" else 1 + ratio * (count - 1)
    return (batch, frames, channels, height * SPATIAL_RATIO, width * SPATIAL_RATIO)


def initial_tensor(spec: StateSpec, batch: int, height: int, width: int) -> Array:
    """Returns a state tensor as it is before the first step, bfloat16 as bits in uint16."""
    filled = np.full(spec.resolve(batch, height, width), spec.initial_value, np.dtype(spec.dtype))
    return filled.view(np.uint16) if filled.dtype == bfloat16 else filled


@contextmanager
def run_errors(graph: GraphSpec, x: Array | DeviceArray) -> Iterator[None]:
    """Turns what a library raises while it runs `graph` on `x` into an error on one line."""
    try:
        yield
    except Exception as error:  # libraries' exceptions have no common base
        text = one_line(error)
        where = f"{graph.file} failed on an input of shape {x.shape}"
        if isinstance(error, MemoryError) or "alloc" in text.lower() or "memory" in text.lower():
            raise ResourceError(
                f"{where}: out of memory; use a smaller chunk, size or batch ({text})"
            ) from error
        raise BundleError(f"{where}: {text}") from error


@contextmanager
def loading_memory(declared: int) -> Iterator[None]:
    """Bounds what a library allocates while it loads a graph that declares so many bytes.

    Constants that it computes beforehand may be of any size, whatever the file's own is.
    """
    with limited_memory(_LOADING_FACTOR * declared + _LOADING_BYTES):
        yield


@contextmanager
def allocation_errors(spec: StateSpec, batch: int, height: int, width: int) -> Iterator[None]:
    """Turns a failed allocation of a state tensor into `ResourceError`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        shape = spec.resolve(batch, height, width)
        megabytes = math.prod(shape) * np.dtype(spec.dtype).itemsize / 2**20
        raise ResourceError(
            f"no memory for the state of {batch} streams of {height}x{width} (at {spec.name},"
            f" {megabytes:.0f} MB); use a smaller size, fewer streams, or another device"
        ) from error


def one_line(error: BaseException) -> str:
    """Returns the beginning of an error's message, without line breaks."""
    return " ".join(str(error).split())[:_LONGEST_MESSAGE]
