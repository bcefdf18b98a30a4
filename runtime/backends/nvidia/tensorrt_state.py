"""Streaming state in device memory: two buffers per tensor, which change roles at each step, and
the buffers of input and output.

Nothing here has ever run on a GPU; see `wfvae/runtime/backends/nvidia/tensorrt_backend.py`.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from wfvae.errors import ResourceError, StreamingError
from wfvae.runtime.backends.base import Array, BoolArray, FloatArray
from wfvae.runtime.backends.nvidia.cuda import DeviceError
from wfvae.runtime.backends.nvidia.cuda_graphs import GraphCache
from wfvae.runtime.backends.nvidia.device import Allocations, Device, aligned
from wfvae.runtime.backends.nvidia.tensorrt_engine import Binding, LoadedEngine, Shape
from wfvae.spec.manifest import GraphSpec, state_input, state_output
from wfvae.spec.stream import DTYPE_BYTES, StateSpec

NUMPY_TYPES: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "int32": np.int32,
    "bfloat16": np.uint16,
}
"""bfloat16 leaves the device as its bits, since numpy has no such type."""


class StepBuffers:
    """Input, flags and output of a step, pinned on the host and on the device. They grow with the
    longest step and are then reused.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._events = Allocations(device.cuda)
        self._sizes = (0, 0, 0)
        try:
            self.copied_in, self.computed, self.copied_out = (self._events.event() for _ in range(3))
        except BaseException:
            self._events.release()
            raise
        self._arrays = Allocations(device.cuda)
        self._host: tuple[npt.NDArray[np.uint8], ...] = ()
        self._addresses: tuple[int, ...] = ()
        self._used = (0, 0, 0, 0)

    def stage(self, x: FloatArray, start: BoolArray, end: BoolArray, output_bytes: int) -> None:
        """Makes room and puts the input into pinned memory. Raises `ResourceError`; the buffers are
        then empty or as they were.
        """
        sizes = (x.nbytes, start.nbytes, output_bytes)
        if not self._addresses or any(size > held for size, held in zip(sizes, self._sizes, strict=True)):
            self._grow(tuple(max(pair) for pair in zip(sizes, self._sizes, strict=True)))
        for target, array in zip(self._host, (x, start, end), strict=False):
            target[: array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._used = (x.nbytes, start.nbytes, end.nbytes, output_bytes)

    def _grow(self, sizes: tuple[int, ...]) -> None:
        self.free()
        x, flags, output = sizes
        try:
            self._addresses = tuple(self._arrays.device(size) for size in (x, flags, flags, output))
            self._host = tuple(self._arrays.pinned(size) for size in (x, flags, flags, output))
        except BaseException:
            self.free()
            raise
        self._sizes = (x, flags, output)

    def copy_in(self) -> None:
        """Starts copying what was staged; the compute stream waits for it."""
        cuda, stream = self._device.cuda, self._device.copies_in
        for address, host, size in zip(self._addresses[:3], self._host[:3], self._used[:3], strict=True):
            cuda.copy_in(address, host.ctypes.data, size, stream)
        cuda.record(self.copied_in, stream)
        cuda.wait(self._device.compute, self.copied_in)

    def copy_out(self) -> None:
        """Starts copying the output to pinned memory when the compute stream has made it."""
        cuda, stream = self._device.cuda, self._device.copies_out
        cuda.record(self.computed, self._device.compute)
        cuda.wait(stream, self.computed)
        cuda.copy_out(self._host[3].ctypes.data, self._addresses[3], self._used[3], stream)
        cuda.record(self.copied_out, stream)

    def output(self, shape: Shape) -> FloatArray:
        """Waits for the output and returns a copy of it."""
        self._device.cuda.synchronize_event(self.copied_out)
        result = np.empty(shape, np.float32)
        result.reshape(-1).view(np.uint8)[...] = self._host[3][: result.nbytes]
        return result

    @property
    def x(self) -> int:
        """Device address of the input."""
        return self._addresses[0]

    @property
    def flags(self) -> tuple[int, int]:
        """Device addresses of `start` and `end`."""
        return self._addresses[1], self._addresses[2]

    @property
    def result(self) -> int:
        """Device address of the output."""
        return self._addresses[3]

    def free(self) -> None:
        """Gives the buffers back, keeping the events."""
        self._host, self._addresses, self._sizes = (), (), (0, 0, 0)
        self._arrays.release()

    def release(self) -> None:
        """Gives everything back."""
        self.free()
        self._events.release()


class TensorRTState:
    """State of a batch of streams. What it holds is given back when it is dropped."""

    def __init__(self, engine: LoadedEngine, batch: int, height: int, width: int, cuda_graphs: bool) -> None:
        """Raises `ResourceError` if the device has no room; nothing is then held."""
        self.batch, self.height, self.width = batch, height, width
        self.device = engine.device
        self.graph: GraphSpec = engine.graph
        self._shapes = {spec.name: spec.resolve(batch, height, width) for spec in self.graph.states}
        self._offsets: dict[str, int] = {}
        total = 0
        for spec in self.graph.states:
            self._offsets[spec.name] = total
            total += aligned(self._bytes(spec.name))
        self._current = 0
        self._busy = False
        memory = Allocations(self.device.cuda)
        self.buffers = StepBuffers(self.device)
        self.graphs = GraphCache(engine) if cuda_graphs else None
        self._finalizer = weakref.finalize(self, give_back, self.device, memory, self.buffers, self.graphs)
        try:
            with self.device.enqueuing():
                base = memory.device(2 * total)
                self._bases = (base, base + total)
                self._initialize(total)
        except ResourceError as error:
            self._finalizer()
            raise ResourceError(
                f"no memory for the state of {batch} {self.graph.direction} stream(s) of {height}x{width} "
                f"({2 * total / (1 << 20):.0f} MiB in two buffers): {error}"
            ) from error
        except BaseException:
            self._finalizer()
            raise

    @property
    def parity(self) -> int:
        """Which set of buffers is current."""
        return self._current

    def close(self) -> None:
        """Gives the memory back now. The state can't be used any more."""
        self._finalizer()

    @contextlib.contextmanager
    def stepping(self) -> Iterator[None]:
        """Guards a step: one at a time, and whatever ends it early, no work on the buffers is left
        under way.
        """
        if self._busy:
            raise StreamingError("this state is already in a step; a state belongs to one thread")
        if not self._finalizer.alive:
            raise StreamingError("this state is closed; make a new one")
        self._busy = True
        try:
            self.device.cuda.activate()
            yield
        except BaseException:
            self.device.drain()
            raise
        finally:
            self._busy = False

    def binding(self, x: Shape, output: Shape) -> Binding:
        """Places of all inputs and outputs of the next step: it reads the current buffers and
        writes the others.
        """
        graph, flags = self.graph, (self.batch,)
        inputs = {graph.inputs[0].name: (self.buffers.x, x), "start": (self.buffers.flags[0], flags)}
        if graph.has_end:
            inputs["end"] = (self.buffers.flags[1], flags)
        outputs = {graph.outputs[0].name: (self.buffers.result, output)}
        for name, shape in self._shapes.items():
            inputs[state_input(name)] = (self._address(name, self._current), shape)
            outputs[state_output(name)] = (self._address(name, 1 - self._current), shape)
        return Binding(inputs, outputs)

    def swap(self) -> None:
        """Makes what the last step wrote the current state."""
        self._current = 1 - self._current

    def read(self) -> dict[str, Array]:
        with self.stepping(), self.device.enqueuing():
            tensors = {
                spec.name: np.empty(self._shapes[spec.name], NUMPY_TYPES[spec.dtype])
                for spec in self.graph.states
            }
            for name, array in tensors.items():
                self.device.cuda.copy_out(
                    array.ctypes.data,
                    self._address(name, self._current),
                    array.nbytes,
                    self.device.copies_out,
                )
            self.device.cuda.synchronize(self.device.copies_out)
        return tensors

    def write(self, tensors: Mapping[str, Array]) -> None:
        with self.stepping(), self.device.enqueuing():
            self._fill(1 - self._current, tensors)
        # Only now, so that a failure on the way leaves the state as it was.
        self.swap()

    def _initialize(self, total: int) -> None:
        cuda, compute = self.device.cuda, self.device.compute
        cuda.fill_zero(self._bases[0], total, compute)
        cuda.synchronize(compute)
        self._fill(
            0,
            {
                spec.name: _initial(spec, self._shapes[spec.name])
                for spec in self.graph.states
                if spec.initial_value
            },
        )

    def _fill(self, which: int, tensors: Mapping[str, Array]) -> None:
        kept = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
        for name, array in kept.items():
            self.device.cuda.copy_in(
                self._address(name, which), array.ctypes.data, array.nbytes, self.device.copies_in
            )
        self.device.cuda.synchronize(self.device.copies_in)

    def _address(self, name: str, which: int) -> int:
        return self._bases[which] + self._offsets[name]

    def _bytes(self, name: str) -> int:
        [spec] = [spec for spec in self.graph.states if spec.name == name]
        return math.prod(self._shapes[name]) * DTYPE_BYTES[spec.dtype]


def give_back(
    device: Device, memory: Allocations | None, buffers: StepBuffers, graphs: GraphCache | None
) -> None:
    """Gives back what a state or session held, when no work on it is under way any more."""

    def release() -> None:
        with contextlib.suppress(DeviceError, ResourceError):
            device.cuda.activate()
        device.drain()
        if graphs is not None:
            graphs.release()
        buffers.release()
        if memory is not None:
            memory.release()

    device.when_idle(release)


def _initial(spec: StateSpec, shape: Shape) -> Array:
    if spec.dtype != "bfloat16":
        return np.full(shape, spec.initial_value, NUMPY_TYPES[spec.dtype])
    # The upper half of a float32 is the bfloat16, cut off; initial values are whole numbers.
    bits = np.full(shape, spec.initial_value, np.float32).view(np.uint32) >> 16
    return bits.astype(np.uint16)
