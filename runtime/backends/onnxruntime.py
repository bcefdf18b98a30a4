"""ONNX Runtime as backend, on the CPU or CUDA provider. State stays on the device and is never
copied between steps.
"""

from __future__ import annotations

import ctypes
import io
import math
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from wfvae.errors import BundleError, ResourceError
from wfvae.runtime.backends.base import Array, BoolArray, FloatArray, StreamState, output_shape
from wfvae.spec.manifest import GraphSpec, state_input, state_output
from wfvae.spec.stream import StateSpec

NUMPY_TYPES: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "float64": np.float64,
    "int32": np.int32,
}
_ONNX_BFLOAT16 = 16
_SEVERITY_WARNING, _SEVERITY_ERROR, _SEVERITY_FATAL = 2, 3, 4
_NO_CUDA = "check driver, CUDA and cuDNN (pip install 'onnxruntime-gpu[cuda,cudnn]'), or use provider cpu"


@dataclass(frozen=True)
class OnnxRuntimeOptions:
    """How ONNX Runtime is set up."""

    provider: str = "auto"
    """`cpu`, `cuda`, or `auto`: CUDA where this build of ONNX Runtime has it, else the CPU."""
    device_id: int = 0
    """Which GPU."""
    threads: int | None = None
    """Threads that one operator uses; None lets ONNX Runtime take all cores."""
    tf32: bool = False
    """Let CUDA round fp32 products to TF32: faster, and no longer fp32."""
    optimized: bool = True
    """Graph optimisations. Verification turns them off to see every tensor."""


class OnnxRuntimeState:
    """State of a batch of streams as two sets of ONNX Runtime tensors on the session's device."""

    def __init__(self, session: OnnxRuntimeStep, batch: int, height: int, width: int) -> None:
        self.batch, self.height, self.width = batch, height, width
        self.specs = session.graph.states
        self._device = session.device
        # Two buffers per tensor: a step reads one and writes the other, and then they change roles.
        self._buffers = tuple({spec.name: self._allocate(spec) for spec in self.specs} for _ in range(2))
        self._bindings = tuple(session.bind_state(self._buffers[k], self._buffers[1 - k]) for k in range(2))
        self._current = 0

    @property
    def binding(self) -> Any:
        """The binding that reads the current state and writes the other buffers."""
        return self._bindings[self._current]

    def swap(self) -> None:
        """Makes what the last step wrote the current state."""
        self._current = 1 - self._current

    def read(self) -> dict[str, Array]:
        return {spec.name: _to_numpy(self._buffers[self._current][spec.name], spec) for spec in self.specs}

    def write(self, tensors: Mapping[str, Array]) -> None:
        for spec in self.specs:
            _fill(self._buffers[1 - self._current][spec.name], tensors[spec.name], spec)
        # Only now, so that a failure on the way leaves the state as it was.
        self.swap()

    def _allocate(self, spec: StateSpec) -> Any:
        shape = spec.resolve(self.batch, self.height, self.width)
        try:
            if spec.dtype in NUMPY_TYPES:
                filled = np.full(shape, spec.initial_value, NUMPY_TYPES[spec.dtype])
                return ort.OrtValue.ortvalue_from_numpy(filled, *self._device)
            value = ort.OrtValue.ortvalue_from_shape_and_type(shape, _ONNX_BFLOAT16, *self._device)
            _fill(value, np.zeros(shape, np.uint16), spec)  # memory as it is found would get into snapshots
            return value
        except (RuntimeError, MemoryError) as error:
            megabytes = math.prod(shape) * 4 / 2**20
            raise ResourceError(
                f"no memory for the state of {self.batch} streams of {self.height}x{self.width} (at"
                f" {spec.name}, {megabytes:.0f} MB); use a smaller size, fewer streams, or another device"
            ) from error


class OnnxRuntimeStep:
    """A step graph in ONNX Runtime. Thread-safe: ONNX Runtime runs one session from many threads,
    and a state belongs to its caller.
    """

    def __init__(self, graph: GraphSpec, session: Any, device: tuple[str, int]) -> None:
        self.graph = graph
        self.device = device
        self._session = session
        self._x = graph.inputs[0].name
        self._output = graph.outputs[0].name

    def new_state(self, batch: int, height: int, width: int) -> OnnxRuntimeState:
        return OnnxRuntimeState(self, batch, height, width)

    def bind_state(self, current: Mapping[str, Any], following: Mapping[str, Any]) -> Any:
        """A binding with all state inputs and outputs set, once for all steps."""
        binding = self._session.io_binding()
        for spec in self.graph.states:
            binding.bind_ortvalue_input(state_input(spec.name), current[spec.name])
            binding.bind_ortvalue_output(state_output(spec.name), following[spec.name])
        return binding

    def step(self, state: StreamState, x: FloatArray, start: BoolArray, end: BoolArray) -> FloatArray:
        assert isinstance(state, OnnxRuntimeState)
        result = np.empty(output_shape(self.graph, x), np.float32)
        binding = state.binding
        binding.bind_cpu_input(self._x, np.ascontiguousarray(x))
        binding.bind_cpu_input("start", start)
        if self.graph.has_end:
            binding.bind_cpu_input("end", end)
        binding.bind_output(self._output, "cpu", 0, np.float32, result.shape, result.ctypes.data)
        _run(lambda: self._session.run_with_iobinding(binding), self.graph, x)
        state.swap()
        return result


class OnnxRuntimeDirect:
    """A direct graph in ONNX Runtime."""

    def __init__(self, graph: GraphSpec, session: Any) -> None:
        self._graph, self._session = graph, session

    def run(self, x: FloatArray) -> FloatArray:
        feeds = {self._graph.inputs[0].name: np.ascontiguousarray(x)}
        result: FloatArray = _run(lambda: self._session.run(None, feeds), self._graph, x)[0]
        return result


class OnnxRuntimeBackend:
    """Opens a bundle's graphs in ONNX Runtime."""

    def __init__(self, bundle: Path, options: OnnxRuntimeOptions) -> None:
        self._bundle = bundle
        self._options = options
        self._provider = _choose_provider(options.provider, options.device_id)

    def describe(self) -> dict[str, str]:
        details = {"name": "onnxruntime", "version": ort.__version__, "provider": self._provider}
        if self._provider == "CUDAExecutionProvider":
            from wfvae.runtime.backends.nvidia import driver

            facts = {
                "gpu": driver.gpu_name(self._options.device_id),
                "driver": driver.driver_version(),
                "cuda": driver.cuda_version(),
                "cudnn": driver.cudnn_version(),
            }
            details |= {
                "device": f"cuda:{self._options.device_id}",
                **{key: value for key, value in facts.items() if value},
            }
            details["tf32"] = str(self._options.tf32).lower()
        else:
            details |= {"device": "cpu", "threads": str(self._options.threads or "all")}
        return details

    def open_step(self, graph: GraphSpec) -> OnnxRuntimeStep:
        cuda = self._provider == "CUDAExecutionProvider"
        return OnnxRuntimeStep(
            graph, self._session(graph), ("cuda", self._options.device_id) if cuda else ("cpu", 0)
        )

    def open_direct(self, graph: GraphSpec) -> OnnxRuntimeDirect:
        return OnnxRuntimeDirect(graph, self._session(graph))

    def _session(self, graph: GraphSpec) -> Any:
        options = session_options(self._options)
        try:
            # Without fallback: it would print to standard output, and go on with the CPU and state
            # on the GPU.
            session = ort.InferenceSession(
                str(self._bundle / graph.file), options, providers=self._providers(), enable_fallback=0
            )
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise BundleError(
                f"ONNX Runtime {ort.__version__} cannot load {graph.file}: {_one_line(error)}"
            ) from error
        if (
            session.get_providers()[0] != self._provider
        ):  # a provider that cannot be set up is left out without an error
            raise BundleError(
                f"ONNX Runtime {ort.__version__} could not set up {self._provider} for {graph.file};"
                f" {_NO_CUDA}"
            )
        return session

    def _providers(self) -> Sequence[Any]:
        if self._provider != "CUDAExecutionProvider":
            return [self._provider]
        # A fixed algorithm choice: an exhaustive search is slow at first and may choose differently
        # in each process.
        settings = {
            "device_id": self._options.device_id,
            "cudnn_conv_algo_search": "HEURISTIC",
            "use_tf32": int(self._options.tf32),
        }
        return [(self._provider, settings), "CPUExecutionProvider"]


def session_options(options: OnnxRuntimeOptions) -> Any:
    """ONNX Runtime's own options for a session of the runtime, whatever its graph."""
    found = ort.SessionOptions()
    found.log_severity_level = _SEVERITY_ERROR
    # Chunks of several lengths share a session; a memory pattern would be planned anew for each and
    # kept.
    found.enable_mem_pattern = False
    # The default order runs what only the next step needs, the cuts of the new state, last of all,
    # and so keeps every layer's activations alive until then: 2.6 times the memory in a decoder.
    found.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    if options.threads is not None:
        found.intra_op_num_threads = options.threads
    if not options.optimized:
        found.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return found


def _choose_provider(wanted: str, device_id: int) -> str:
    available = ort.get_available_providers()
    names = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
    if wanted == "auto":
        return names["cuda"] if names["cuda"] in available and _cuda_works(device_id) else names["cpu"]
    if wanted not in names:
        raise BundleError(f"provider is {wanted!r}; expected cpu, cuda or auto")
    if names[wanted] not in available:
        raise BundleError(
            "this ONNX Runtime has no CUDA provider; install onnxruntime-gpu (see README), or use provider"
            f" cpu; it has {available}"
        )
    if wanted == "cuda" and not _cuda_works(device_id):
        raise BundleError(f"ONNX Runtime {ort.__version__} cannot use GPU {device_id}; {_NO_CUDA}")
    return names[wanted]


@cache
def _cuda_works(device_id: int) -> bool:
    """Whether a tensor can be made on the GPU. That a build has the provider says nothing of
    driver, libraries or device.
    """
    # CUDA's libraries come as Python packages that no loader finds by itself. What is missing is
    # printed, and that is not ours to print.
    with redirect_stdout(io.StringIO()):
        ort.preload_dlls()
    ort.set_default_logger_severity(_SEVERITY_FATAL)
    try:
        ort.OrtValue.ortvalue_from_numpy(np.zeros(1, np.float32), "cuda", device_id)
    except RuntimeError:
        return False
    finally:
        ort.set_default_logger_severity(_SEVERITY_WARNING)
    return True


def _run(call: Any, graph: GraphSpec, x: FloatArray) -> Any:
    try:
        return call()
    except Exception as error:
        text = _one_line(error)
        where = f"{graph.file} failed on an input of shape {x.shape}"
        if "alloc" in text.lower() or "memory" in text.lower():
            raise ResourceError(
                f"{where}: out of memory; use a smaller chunk, size or batch ({text})"
            ) from error
        raise BundleError(f"{where}: {text}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _to_numpy(value: Any, spec: StateSpec) -> Array:
    if spec.dtype in NUMPY_TYPES:
        array: Array = np.array(value.numpy())
        return array
    if value.device_name() != "cpu":
        host = ort.OrtValue.ortvalue_from_shape_and_type(value.shape(), _ONNX_BFLOAT16)
        host.update_inplace(value)
        value = host
    shape = tuple(value.shape())
    bits = (ctypes.c_uint16 * math.prod(shape)).from_address(value.data_ptr())
    return np.ctypeslib.as_array(bits).reshape(shape).copy()


def _fill(value: Any, array: Array, spec: StateSpec) -> None:
    array = np.ascontiguousarray(array)
    if spec.dtype in NUMPY_TYPES:
        value.update_inplace(array)
    else:
        value.update_inplace(ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _ONNX_BFLOAT16))
