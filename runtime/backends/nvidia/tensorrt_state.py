"""Streaming state in device memory: two buffers per tensor, which change roles at each step."""

import contextlib
import math
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from wfvae.errors import ResourceError, StreamingError, WFVAEError
from wfvae.runtime.backends.base import Array, BoolArray, Tensor, initial_tensor
from wfvae.runtime.backends.nvidia.device import (
    Allocations,
    Device,
    StepBuffers,
    aligned,
    ignoring_device_errors,
)
from wfvae.runtime.backends.nvidia.tensorrt_engine import Binding, LoadedEngine, Runner
from wfvae.runtime.dlpack import DeviceArray
from wfvae.spec.manifest import GraphSpec
from wfvae.spec.tensorrt_api import Shape


@dataclass(frozen=True)
class _Tensor:
    """Where a state tensor is within a set of buffers."""

    offset: int
    shape: Shape
    dtype: np.dtype[Any]
    """As the host sees it: bfloat16 as bits in uint16."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def row_bytes(self) -> int:
        return self.nbytes // self.shape[0]


@dataclass
class _Entry:
    """One direction of the swap, on one profile."""

    runner: Runner
    binding: Binding
    scratch: tuple[int, int]
    """Address and size. A graph is valid for this binding and this scratch memory only."""
    graph: int | None = None


class GraphCache:
    """CUDA graphs of one state's steady step. Use it with the device's lock held.

    A graph holds addresses, so the two directions of the swap need one each, and each needs an
    execution context that nothing else uses. A step that cannot be captured runs without graphs.
    """

    def __init__(self, engine: LoadedEngine) -> None:
        self._engine = engine
        self._entries: dict[tuple[int, int], _Entry] = {}
        self.fallback: str | None = None
        """Why graphs are no longer used; None while they are."""

    def run(self, parity: int, profile: int, binding: Binding) -> bool:
        """Enqueues a run: plain at first, captured the second time, launched from then on.

        `parity` is the state buffer that is read. Returns False if graphs cannot be used; the
        caller then runs without one.
        """
        if self.fallback is not None:
            return False
        device, key = self._engine.device, (profile, parity)
        entry = self._entries.get(key)
        if entry is not None and (entry.binding, entry.scratch) != (binding, device.scratch.place):
            self._drop(key)
            entry = None
        if entry is None:
            # The first run after a change of shape does work that must not be captured.
            runner = self._engine.new_runner(profile)
            runner.enqueue(binding)
            self._entries[key] = _Entry(runner, binding, device.scratch.place)
            return True
        if entry.graph is None:
            try:
                entry.graph = self._capture(entry.runner)
            except WFVAEError as error:
                self.fallback = str(error)
                self.release()
                return False
        device.cuda.launch(entry.graph, device.compute)
        return True

    def release(self) -> None:
        """Destroys all graphs. No launch may be under way."""
        for key in list(self._entries):
            self._drop(key)

    def _capture(self, runner: Runner) -> int:
        cuda, stream = self._engine.device.cuda, self._engine.device.compute
        cuda.begin_capture(stream)
        try:
            runner.enqueue_again()
        except BaseException:
            with ignoring_device_errors():
                cuda.destroy_graph(cuda.end_capture(stream))
            raise
        return cuda.end_capture(stream)

    def _drop(self, key: tuple[int, int]) -> None:
        device, graph = self._engine.device, self._entries.pop(key).graph
        if graph is not None:
            with ignoring_device_errors():  # a launch may still be under way
                device.cuda.synchronize(device.compute)
            with ignoring_device_errors():
                device.cuda.destroy_graph(graph)


class SavedRow:
    """A copy of one row of a state on the device. Its memory is released when it is dropped."""

    def __init__(self, device: Device, sizes: Mapping[str, int]) -> None:
        """Raises `ResourceError` if the device has no room."""
        memory = Allocations(device.cuda)
        weakref.finalize(self, device.release_when_idle, memory)
        with device.enqueuing():
            address = memory.device(sum(map(aligned, sizes.values())))
        self.addresses: dict[str, int] = {}
        for name, size in sizes.items():
            self.addresses[name] = address
            address += aligned(size)


class TensorRTState:
    """State of a batch of streams. Its memory is released when it is closed or dropped."""

    def __init__(self, engine: LoadedEngine, batch: int, height: int, width: int, cuda_graphs: bool) -> None:
        """Raises `ResourceError` if the device has no room; nothing is then held."""
        self.batch, self.height, self.width = batch, height, width
        self.device = engine.device
        self.graph: GraphSpec = engine.graph
        self._tensors: dict[str, _Tensor] = {}
        total = 0
        for spec in self.graph.states:
            dtype = np.dtype(np.uint16 if spec.dtype == "bfloat16" else spec.dtype)
            tensor = _Tensor(total, spec.resolve(batch, height, width), dtype)
            self._tensors[spec.name] = tensor
            total += aligned(tensor.nbytes)
        self.parity = 0
        """Which set of buffers is current."""
        self._busy = False
        memory = Allocations(self.device.cuda)
        self.buffers = StepBuffers(self.device)
        self.graphs = GraphCache(engine) if cuda_graphs else None
        parts = [part for part in (self.graphs, self.buffers, memory) if part is not None]
        self._finalizer = weakref.finalize(self, self.device.release_when_idle, *parts)
        try:
            with self.device.enqueuing():
                base = memory.device(2 * total)
                self._bases = (base, base + total)
                self._initialize(total)
        except BaseException as error:
            self._finalizer()
            if not isinstance(error, ResourceError):
                raise
            raise ResourceError(
                f"no memory for the state of {batch} {self.graph.direction} stream(s) of {height}x{width} "
                f"({2 * total / (1 << 20):.0f} MiB in two buffers): {error}"
            ) from error

    def close(self) -> None:
        self._finalizer()

    @contextlib.contextmanager
    def stepping(self) -> Iterator[None]:
        """Guards a step: one at a time, and exceptions wait until the buffers are unused."""
        if self._busy:
            raise StreamingError("this state is already in a step; a state belongs to one thread")
        if not self._finalizer.alive:
            raise StreamingError("this state is closed; make a new one")
        self._busy = True
        try:
            with self.device.draining():
                yield
        finally:
            self._busy = False

    def stage(
        self, x: Tensor, start: BoolArray, end: BoolArray, output: Shape, target: DeviceArray | None
    ) -> Binding:
        """Stages a step's input and where its output goes, and returns where it reads and writes.

        It reads the current state buffers and writes the others: TensorRT gives wrong results if
        one buffer is input and output.
        """
        self.buffers.stage((x, start, end), output, target)
        graph, (x_at, start_at, end_at, output_at) = self.graph, self.buffers.addresses
        inputs = {graph.inputs[0].name: (x_at, x.shape), "start": (start_at, start.shape)}
        if graph.has_end:
            inputs["end"] = (end_at, end.shape)
        outputs = {graph.outputs[0].name: (output_at, output)}
        for spec in graph.states:
            shape = (len(x), *self._tensors[spec.name].shape[1:])
            inputs[spec.input] = (self._address(spec.name, self.parity), shape)
            outputs[spec.output] = (self._address(spec.name, 1 - self.parity), shape)
        return Binding(inputs, outputs)

    def swap(self) -> None:
        self.parity = 1 - self.parity

    def read(self) -> dict[str, Array]:
        cuda, stream = self.device.cuda, self.device.copies_out
        arrays = {name: np.empty(tensor.shape, tensor.dtype) for name, tensor in self._tensors.items()}
        with self.stepping(), self.device.enqueuing():
            for name, array in arrays.items():
                cuda.copy_out(array.ctypes.data, self._address(name, self.parity), array.nbytes, stream)
            cuda.synchronize(stream)
        return arrays

    def write(self, tensors: Mapping[str, Array]) -> None:
        with self.stepping(), self.device.enqueuing():
            self._fill(1 - self.parity, tensors)
        # After the copies, so that a failure leaves the state as it was.
        self.swap()

    def save_row(self, row: int) -> SavedRow:
        saved = SavedRow(self.device, {name: tensor.row_bytes for name, tensor in self._tensors.items()})
        self._copy_rows({saved.addresses[name]: self._row(name, row) for name in self._tensors})
        return saved

    def load_row(self, row: int, saved: SavedRow) -> None:
        self._copy_rows({self._row(name, row): saved.addresses[name] for name in self._tensors})

    def copy_row(self, source: int, target: int) -> None:
        self._copy_rows({self._row(name, target): self._row(name, source) for name in self._tensors})

    def _copy_rows(self, sources: Mapping[int, int]) -> None:
        """Copies a row from address to address, given as {target: source} in the tensors' order."""
        cuda, stream = self.device.cuda, self.device.compute
        sizes = [tensor.row_bytes for tensor in self._tensors.values()]
        with self.stepping(), self.device.enqueuing():
            for (target, source), size in zip(sources.items(), sizes, strict=True):
                cuda.copy_within(target, source, size, stream)
            cuda.synchronize(stream)

    def _row(self, name: str, row: int) -> int:
        """Returns the address of a row of the current state."""
        return self._address(name, self.parity) + row * self._tensors[name].row_bytes

    def _initialize(self, total: int) -> None:
        cuda, compute = self.device.cuda, self.device.compute
        cuda.fill_zero(self._bases[0], total, compute)
        cuda.synchronize(compute)
        others = [spec for spec in self.graph.states if spec.initial_value]
        size = (self.batch, self.height, self.width)
        self._fill(0, {spec.name: initial_tensor(spec, *size) for spec in others})

    def _fill(self, which: int, tensors: Mapping[str, Array]) -> None:
        cuda, stream = self.device.cuda, self.device.copies_in
        kept = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
        for name, array in kept.items():
            cuda.copy_in(self._address(name, which), array.ctypes.data, array.nbytes, stream)
        cuda.synchronize(stream)

    def _address(self, name: str, which: int) -> int:
        return self._bases[which] + self._tensors[name].offset
