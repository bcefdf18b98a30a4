"""OpenVINO as backend, on the CPU. State stays in two sets of buffers that swap roles at each step;
none of it is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from wfvae.errors import BundleError, InputError, MissingExtraError
from wfvae.runtime.backends.base import (
    Array,
    BackendOptions,
    BoolArray,
    FloatArray,
    StreamState,
    Tensor,
    allocation_errors,
    initial_tensor,
    loading_memory,
    one_line,
    output_shape,
    run_errors,
)
from wfvae.runtime.backends.openvino_convolutions import split_time_taps
from wfvae.runtime.backends.openvino_norms import rewrite_norms
from wfvae.runtime.backends.openvino_state import HeldState, bits, hold_states
from wfvae.runtime.backends.signal_stack import preserved_signal_stack
from wfvae.runtime.dlpack import DeviceArray
from wfvae.spec.frames import SPATIAL_RATIO
from wfvae.spec.manifest import GraphSpec
from wfvae.spec.onnx_file import check_graph
from wfvae.spec.stream import StateSpec

PRECISION_HINTS = {"fp32": "f32", "bf16": "bf16"}
"""What to compute in, and OpenVINO's name for it. A device lists it in upper case."""
_DEVICE = "CPU"


SMALL_SIDE = 2 * SPATIAL_RATIO
"""Frames whose height or width is at most this are computed in fp32 with the bf16 hint, too. AMX's
convolutions of so few positions sum in an order that depends on how many frames share a call.
"""


class Compiled(NamedTuple):
    """A graph in OpenVINO."""

    model: Any
    held: Mapping[str, HeldState]
    """How each state tensor is held, by name."""


class CompiledSizes:
    """A graph in OpenVINO for frames of any size. Thread-safe.

    Args:
        compile_in: compiles the graph in a precision of `PRECISION_HINTS`.
    """

    def __init__(self, compile_in: Callable[[str], Compiled], hint: str) -> None:
        self._compile_in, self._usual = compile_in, compile_in(hint)
        self._small: Compiled | None = self._usual if hint == "fp32" else None
        self._lock = Lock()

    def of(self, height: int, width: int) -> Compiled:
        """Returns the graph for a video size."""
        if min(height, width) > SMALL_SIDE:
            return self._usual
        with self._lock:
            if self._small is None:
                self._small = self._compile_in("fp32")
            return self._small


class OpenVinoState:
    """State of a batch of streams: two sets of tensors, each written by its own inference request.

    A request reads the tensors that the other one wrote. With symbolic shapes, OpenVINO copies what
    it writes to a tensor of the caller, but not what it writes to its own tensors.
    """

    def __init__(self, graph: GraphSpec, compiled: Compiled, batch: int, height: int, width: int) -> None:
        self.batch, self.height, self.width = batch, height, width
        self.specs = graph.states
        self._held = compiled.held
        # Requests of one model share its weights and the memory of activations.
        self._requests = tuple(compiled.model.create_infer_request() for _ in range(2))
        self._tensors = {spec.name: self._allocate(spec, batch) for spec in self.specs}
        self._next = 0

    def request(self, rows: int) -> Any:
        """Returns the request that reads the first rows of the current state, and writes the other
        tensors.
        """
        self._require_rows(rows)
        request = self._requests[self._next]
        for spec in self.specs:
            request.set_tensor(spec.input, _first_rows(self._tensors[spec.name], rows))
        return request

    def swap(self) -> None:
        """Makes the result of the last step the current state."""
        request = self._requests[self._next]
        self._tensors = {spec.name: request.get_tensor(spec.output) for spec in self.specs}
        self._next = 1 - self._next

    def read(self) -> dict[str, Array]:
        return {spec.name: self._held[spec.name].read(self._tensors[spec.name]) for spec in self.specs}

    def write(self, tensors: Mapping[str, Array]) -> None:
        self._require_rows(self.batch)
        for spec in self.specs:
            self._held[spec.name].write(self._tensors[spec.name], tensors[spec.name])

    def save_row(self, row: int) -> dict[str, Array]:
        return {name: bits(tensor)[row : row + 1].copy() for name, tensor in self._tensors.items()}

    def load_row(self, row: int, saved: Mapping[str, Array]) -> None:
        self._require_rows(row + 1)
        for name, tensor in self._tensors.items():
            bits(tensor)[row : row + 1] = saved[name]

    def copy_row(self, source: int, target: int) -> None:
        for tensor in self._tensors.values():
            bits(tensor)[target] = bits(tensor)[source]

    def _require_rows(self, rows: int) -> None:
        """Makes room for `rows` rows: a step of fewer rows leaves tensors of fewer rows."""
        held = self._tensors[self.specs[0].name].shape[0]
        if held < rows:
            self.grow(held, rows)

    def grow(self, held: int, rows: int) -> None:
        """Copies the `held` rows to tensors of more rows, the others as undefined as new ones."""
        grown = {spec.name: self._allocate(spec, rows) for spec in self.specs}
        for name, tensor in grown.items():
            bits(tensor)[:held] = bits(self._tensors[name])
        self._tensors = grown

    def _allocate(self, spec: StateSpec, rows: int) -> Any:
        initial = initial_tensor(spec, rows, self.height, self.width)
        with allocation_errors(spec, rows, self.height, self.width):
            return self._held[spec.name].allocate(initial)


class OpenVinoStep:
    """A step graph in OpenVINO. Thread-safe, since a state belongs to its caller."""

    def __init__(self, graph: GraphSpec, compiled: CompiledSizes) -> None:
        self.graph = graph
        self.memory = None
        self._compiled = compiled
        self._x = graph.inputs[0].name
        self._output = graph.outputs[0].name

    def new_state(self, batch: int, height: int, width: int) -> OpenVinoState:
        return OpenVinoState(self.graph, self._compiled.of(height, width), batch, height, width)

    def step(
        self, state: StreamState, x: Tensor, start: BoolArray, end: BoolArray, on_device: bool = False
    ) -> FloatArray:
        assert isinstance(state, OpenVinoState) and not isinstance(x, DeviceArray)
        result = np.empty(output_shape(self.graph, x), np.float32)
        feeds = {self._x: x, "start": start, **({"end": end} if self.graph.has_end else {})}
        _infer(state.request(len(x)), feeds, self._output, result, self.graph)
        state.swap()
        return result


class OpenVinoDirect:
    """A direct graph in OpenVINO."""

    def __init__(self, graph: GraphSpec, compiled: CompiledSizes) -> None:
        self._graph, self._compiled = graph, compiled

    def run(self, x: FloatArray) -> FloatArray:
        shape = output_shape(self._graph, x)
        result = np.empty(shape, np.float32)
        height, width = max(x.shape[-2:], shape[-2:])  # video is larger than its latents
        feeds, output = {self._graph.inputs[0].name: x}, self._graph.outputs[0].name
        request = self._compiled.of(height, width).model.create_infer_request()
        _infer(request, feeds, output, result, self._graph)
        return result


class OpenVinoBackend:
    """Opens a bundle's graphs in OpenVINO."""

    def __init__(self, bundle: Path, files: Collection[str], options: BackendOptions) -> None:
        """Raises `InputError` for an unknown precision hint, `BundleError` if the CPU lacks it."""
        self._bundle, self._files = bundle, files
        self._hint, self._threads = options.precision_hint or "fp32", options.threads
        self._core = open_core()
        self._version = str(load_openvino().get_version()).partition("-")[0]
        self._device = str(self._core.get_property(_DEVICE, "FULL_DEVICE_NAME"))
        capabilities = self._core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
        require_precision(self._hint, capabilities, self._device)
        self._precisions = [hint for hint in PRECISION_HINTS if hint.upper() in capabilities]

    def describe(self) -> dict[str, str]:
        return {
            "name": "openvino",
            "version": self._version,
            "device": self._device,
            "precision_hint": self._hint,
            # Where bf16 is missing, bundles in bf16 are computed in fp32.
            "cpu_precisions": ", ".join(self._precisions),
            "threads": str(self._threads or "all"),
        }

    def open_step(self, graph: GraphSpec) -> OpenVinoStep:
        return OpenVinoStep(graph, CompiledSizes(partial(self._compile, graph), self._hint))

    def open_direct(self, graph: GraphSpec) -> OpenVinoDirect:
        return OpenVinoDirect(graph, CompiledSizes(partial(self._compile, graph), self._hint))

    def _compile(self, graph: GraphSpec, hint: str) -> Compiled:
        from openvino.frontend import FrontEndManager

        path = self._bundle / graph.file
        declared = check_graph(path, self._files)
        try:
            with loading_memory(declared):
                # The core would ask other frontends, too, which write lines of their own.
                onnx = FrontEndManager().load_by_framework("onnx")
                model = onnx.convert(onnx.load(str(path)))
                rewrite_norms(model, coarse=hint == "bf16")
                if hint == "fp32":
                    split_time_taps(model)
                model, held = hold_states(model, graph, narrow=hint == "bf16")
                settings = compile_settings(hint, self._threads)
                return Compiled(self._core.compile_model(model, _DEVICE, settings), held)
        except Exception as error:  # the exceptions of its frontends have no common base
            problem = f"OpenVINO {self._version} cannot load {graph.file}: {one_line(error)}"
            raise BundleError(problem) from error


def compile_settings(hint: str, threads: int | None) -> dict[str, Any]:
    """Returns OpenVINO's own settings for any model of the runtime."""
    return {
        # OpenVINO's default is bf16 on a CPU that has it.
        "INFERENCE_PRECISION_HINT": PRECISION_HINTS[hint],
        # One step at a time with all threads: each further stream of OpenVINO holds its own
        # activations.
        "NUM_STREAMS": 1,
        # Programs that run side by side would all be pinned to the first cores.
        "ENABLE_CPU_PINNING": False,
        **({} if threads is None else {"INFERENCE_NUM_THREADS": threads}),
    }


def open_core() -> Any:
    """Loads OpenVINO and its CPU plugin. Raises `MissingExtraError` if it is not installed."""
    core = load_openvino().Core()
    with preserved_signal_stack():
        core.get_property(_DEVICE, "FULL_DEVICE_NAME")  # loads the plugin
    return core


def load_openvino() -> Any:
    """Imports the package openvino. Raises `MissingExtraError` if it is not installed."""
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise MissingExtraError("the backend openvino", "openvino", "openvino") from error
    return openvino


def require_precision(hint: str, capabilities: Sequence[str], device: str) -> None:
    """Raises unless a device with these capabilities computes in the precision `hint`."""
    if hint not in PRECISION_HINTS:
        raise InputError(f"the precision hint is {hint!r}; expected {' or '.join(PRECISION_HINTS)}")
    if hint.upper() not in capabilities:
        raise BundleError(
            f"this CPU ({device}) does not compute in {hint} with OpenVINO, which lists"
            f" {', '.join(capabilities)}; use the precision hint fp32"
        )


def _infer(
    request: Any, feeds: Mapping[str, Array], output: str, result: FloatArray, graph: GraphSpec
) -> None:
    """Runs a request. It reads `feeds` and writes `result` in place, and not after the call."""
    ov = load_openvino()
    held = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
    with run_errors(graph, next(iter(held.values()))):
        for name, array in held.items():
            request.set_tensor(name, ov.Tensor(array, shared_memory=True))
        request.set_tensor(output, ov.Tensor(result, shared_memory=True))
        request.infer()


def _first_rows(tensor: Any, rows: int) -> Any:
    """Returns the first rows of a tensor, in the same memory."""
    shape = list(tensor.shape)
    if shape[0] == rows:
        return tensor
    return load_openvino().Tensor(tensor, [0] * len(shape), [rows, *shape[1:]])
