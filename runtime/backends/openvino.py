"""OpenVINO as backend, on the CPU. State stays in two sets of buffers that change roles at each
step; none of it is copied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wfvae.errors import BundleError, InputError, MissingExtraError, ResourceError
from wfvae.runtime.backends.base import Array, BoolArray, FloatArray, StreamState, output_shape
from wfvae.runtime.backends.bfloat16 import narrow, widen
from wfvae.runtime.backends.openvino_norms import norm_without_turning
from wfvae.runtime.backends.signal_stack import kept_signal_stack
from wfvae.spec.manifest import GraphSpec, state_input, state_output
from wfvae.spec.stream import StateSpec

PRECISION_HINTS = ("fp32", "bf16")
_DEVICE = "CPU"
_OV_HINTS = {"fp32": "f32", "bf16": "bf16"}
_CAPABILITIES = {"fp32": "FP32", "bf16": "BF16"}
"""How OpenVINO lists what a device can compute in."""


@dataclass(frozen=True)
class OpenVinoOptions:
    """How OpenVINO is set up."""

    precision_hint: str = "fp32"
    """`fp32` or `bf16`: what is computed in. With bf16, a float32 state is held in bfloat16, too.
    Video and latents stay float32.
    """
    threads: int | None = None
    """CPU threads; None takes all cores."""


class OpenVinoState:
    """State of a batch of streams, in two sets of tensors, each of which belongs to an inference
    request that writes it.

    A request reads what the other one wrote. With shapes that are not fixed OpenVINO copies
    whatever is written to a tensor of the caller's, but not what it writes to its own and reads
    from another request's.
    """

    def __init__(self, session: OpenVinoStep, batch: int, height: int, width: int) -> None:
        self.batch, self.height, self.width = batch, height, width
        self.specs = session.graph.states
        self._types = session.state_types
        self._requests = tuple(session.new_request() for _ in range(2))
        self._tensors = {spec.name: self._allocate(spec) for spec in self.specs}
        self._next = 0

    @property
    def request(self) -> Any:
        """The request that reads the current state and writes the other tensors."""
        request = self._requests[self._next]
        for spec in self.specs:
            request.set_tensor(state_input(spec.name), self._tensors[spec.name])
        return request

    def swap(self) -> None:
        """Makes what the last step wrote the current state."""
        request = self._requests[self._next]
        self._tensors = {spec.name: request.get_tensor(state_output(spec.name)) for spec in self.specs}
        self._next = 1 - self._next

    def read(self) -> dict[str, Array]:
        return {spec.name: _read(self._tensors[spec.name], spec) for spec in self.specs}

    def write(self, tensors: Mapping[str, Array]) -> None:
        for spec in self.specs:
            _fill(self._tensors[spec.name], tensors[spec.name], spec)

    def _allocate(self, spec: StateSpec) -> Any:
        shape = spec.resolve(self.batch, self.height, self.width)
        ov = load_openvino()
        try:
            tensor = ov.Tensor(self._types[spec.name], ov.Shape(list(shape)))
        except (RuntimeError, MemoryError) as error:
            raise ResourceError(
                f"no memory for the state of {self.batch} streams of {self.height}x{self.width} (at"
                f" {spec.name}, shape {shape}); use a smaller size or fewer streams"
            ) from error
        _bits(tensor)[...] = (
            narrow(np.array(spec.initial_value, np.float32)) if _is_bfloat16(tensor) else spec.initial_value
        )
        return tensor


class OpenVinoStep:
    """A step graph in OpenVINO, compiled once for all streams. Safe to use from several threads,
    each with its own states.
    """

    def __init__(self, graph: GraphSpec, model: Any) -> None:
        self.graph = graph
        self.state_types = {
            spec.name: model.input(state_input(spec.name)).get_element_type() for spec in graph.states
        }
        """What each state tensor is held in, which with the bf16 hint is not what the bundle says."""
        self._model = model
        self._x = graph.inputs[0].name
        self._output = graph.outputs[0].name

    def new_state(self, batch: int, height: int, width: int) -> OpenVinoState:
        return OpenVinoState(self, batch, height, width)

    def new_request(self) -> Any:
        """An inference request. Requests of one model share its weights and the memory of its
        activations.
        """
        return self._model.create_infer_request()

    def step(self, state: StreamState, x: FloatArray, start: BoolArray, end: BoolArray) -> FloatArray:
        assert isinstance(state, OpenVinoState)
        result = np.empty(output_shape(self.graph, x), np.float32)
        feeds = {self._x: x, "start": start, **({"end": end} if self.graph.has_end else {})}
        request = state.request
        _infer(request, feeds, self._output, result, self.graph)
        state.swap()
        return result


class OpenVinoDirect:
    """A direct graph in OpenVINO."""

    def __init__(self, graph: GraphSpec, model: Any) -> None:
        self._graph, self._model = graph, model

    def run(self, x: FloatArray) -> FloatArray:
        result = np.empty(output_shape(self._graph, x), np.float32)
        _infer(
            self._model.create_infer_request(),
            {self._graph.inputs[0].name: x},
            self._graph.outputs[0].name,
            result,
            self._graph,
        )
        return result


class OpenVinoBackend:
    """Opens a bundle's graphs in OpenVINO."""

    def __init__(self, bundle: Path, options: OpenVinoOptions) -> None:
        """Raises `InputError` if there is no such precision hint, and `BundleError` if this CPU
        does not compute in it.
        """
        self._bundle = bundle
        self._options = options
        self._core = open_core()
        self._version = str(load_openvino().get_version()).partition("-")[0]
        self._device = str(self._core.get_property(_DEVICE, "FULL_DEVICE_NAME"))
        capabilities = self._core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
        require_precision(options.precision_hint, capabilities, self._device)
        self._cpu_precisions = [
            precision for precision, name in _CAPABILITIES.items() if name in capabilities
        ]

    def describe(self) -> dict[str, str]:
        return {
            "name": "openvino",
            "version": self._version,
            "device": self._device,
            "precision_hint": self._options.precision_hint,
            # What OpenVINO lists, whatever the hint: where bf16 is missing, bundles in it are
            # computed in fp32.
            "cpu_precisions": ", ".join(self._cpu_precisions),
            "threads": str(self._options.threads or "all"),
        }

    def open_step(self, graph: GraphSpec) -> OpenVinoStep:
        return OpenVinoStep(graph, self._compile(graph))

    def open_direct(self, graph: GraphSpec) -> OpenVinoDirect:
        return OpenVinoDirect(graph, self._compile(graph))

    def _compile(self, graph: GraphSpec) -> Any:
        try:
            model = self._core.read_model(str(self._bundle / graph.file))
            norm_without_turning(model, coarse=self._options.precision_hint == "bf16")
            if self._options.precision_hint == "bf16":
                model = _with_bfloat16_state(model, graph)
            return self._core.compile_model(model, _DEVICE, compile_settings(self._options))
        except (RuntimeError, MemoryError) as error:
            raise BundleError(
                f"OpenVINO {self._version} cannot load {graph.file}: {_one_line(error)}"
            ) from error


def compile_settings(options: OpenVinoOptions) -> dict[str, Any]:
    """OpenVINO's own settings for a model of the runtime, whatever its graph."""
    return {
        # Never left to OpenVINO: on a CPU that has bf16 its default is bf16.
        "INFERENCE_PRECISION_HINT": _OV_HINTS[options.precision_hint],
        # One step at a time with all threads. Each further stream of OpenVINO's would hold
        # activations of its own.
        "NUM_STREAMS": 1,
        # Pinned to the first cores, programs that run side by side would share these and leave the
        # others idle.
        "ENABLE_CPU_PINNING": False,
        **({} if options.threads is None else {"INFERENCE_NUM_THREADS": options.threads}),
    }


def open_core() -> Any:
    """OpenVINO with its CPU plugin loaded, and signals handled as before. Raises
    `MissingExtraError` if it is not installed.
    """
    core = load_openvino().Core()
    with kept_signal_stack():
        core.get_property(_DEVICE, "FULL_DEVICE_NAME")  # the first question loads the plugin
    return core


def load_openvino() -> Any:
    """The package openvino. Raises `MissingExtraError` if it is not installed."""
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise MissingExtraError("the backend openvino", "openvino", "openvino") from error
    return openvino


def require_precision(hint: str, capabilities: Sequence[str], device: str) -> None:
    """Raises unless a device that lists these capabilities computes in the precision asked for."""
    if hint not in PRECISION_HINTS:
        raise InputError(f"the precision hint is {hint!r}; expected {' or '.join(PRECISION_HINTS)}")
    if _CAPABILITIES[hint] not in capabilities:
        raise BundleError(
            f"this CPU ({device}) does not compute in {hint} with OpenVINO, which lists"
            f" {', '.join(capabilities)}; use the precision hint fp32"
        )


def _with_bfloat16_state(model: Any, graph: GraphSpec) -> Any:
    """The model with float32 state taken and given as bfloat16.

    OpenVINO keeps in float32 whatever lies between a float32 output and the convolutions before it.
    State leaves the network everywhere, so a step would compute nearly all but the convolutions in
    float32: slower, and with other roundings than the direct graph, which has no state.
    """
    from openvino.preprocess import PrePostProcessor

    bf16 = load_openvino().Type.bf16
    processor = PrePostProcessor(model)
    for spec in graph.states:
        if spec.dtype == "float32":
            processor.input(state_input(spec.name)).tensor().set_element_type(bf16)
            processor.output(state_output(spec.name)).tensor().set_element_type(bf16)
    return processor.build()


def _infer(
    request: Any, feeds: Mapping[str, Array], output: str, result: FloatArray, graph: GraphSpec
) -> None:
    """Runs a request. It reads `feeds` and writes `result` where they are; they are not touched
    after the call.
    """
    ov = load_openvino()
    held = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
    try:
        for name, array in held.items():
            request.set_tensor(name, ov.Tensor(array, shared_memory=True))
        request.set_tensor(output, ov.Tensor(result, shared_memory=True))
        request.infer()
    except (RuntimeError, MemoryError) as error:
        text = _one_line(error)
        where = f"{graph.file} failed on an input of shape {next(iter(held.values())).shape}"
        if isinstance(error, MemoryError) or "alloc" in text.lower() or "memory" in text.lower():
            raise ResourceError(
                f"{where}: out of memory; use a smaller chunk, size or batch ({text})"
            ) from error
        raise BundleError(f"{where}: {text}") from error


def _is_bfloat16(tensor: Any) -> bool:
    return bool(tensor.get_element_type() == load_openvino().Type.bf16)


def _bits(tensor: Any) -> Array:
    """A tensor's memory; of bfloat16, which numpy has not, its bits in uint16."""
    array: Array = tensor.data
    return array.view(np.uint16) if _is_bfloat16(tensor) else array


def _read(tensor: Any, spec: StateSpec) -> Array:
    """A copy in the bundle's type, bfloat16 as its bits."""
    array = _bits(tensor)
    return widen(array) if _is_bfloat16(tensor) and spec.dtype == "float32" else array.copy()


def _fill(tensor: Any, array: Array, spec: StateSpec) -> None:
    _bits(tensor)[...] = narrow(array) if _is_bfloat16(tensor) and spec.dtype == "float32" else array


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
