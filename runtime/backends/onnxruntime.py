"""ONNX Runtime as backend, on the CPU or CUDA provider. State stays on the device and is never
copied between steps.
"""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from wfvae.errors import BundleError, ResourceError
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
from wfvae.runtime.backends.device_memory import FLOAT32, DeviceMemory
from wfvae.runtime.backends.session_cache import current_cache
from wfvae.runtime.dlpack import CPU, CUDA, DeviceArray, Shape, borrow, device_name
from wfvae.spec.manifest import WEIGHTS_NAME, GraphSpec
from wfvae.spec.onnx_file import check_graph
from wfvae.spec.stream import StateSpec

_ONNX_TYPES = {"float32": 1, "float16": 10, "float64": 11, "int32": 6, "bfloat16": 16}
"""ONNX's numbers of data types. A number and not a numpy type, since ONNX Runtime takes no bfloat16
arrays.
"""
_LEGACY_STREAM = 1
"""DLPack's number of CUDA's default stream."""
_TYPE_NAMES = {"tensor(float)": "float32"} | {
    f"tensor({name})": name for name in ("float16", "bfloat16", "int32", "bool")
}
"""Types of the manifest by ONNX Runtime's names."""
_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_PROVIDERS = {"cpu": _CPU, "cuda": _CUDA}
_SEVERITY_WARNING, _SEVERITY_FATAL = 2, 4
_NO_CUDA = "check driver, CUDA and cuDNN (pip install 'onnxruntime-gpu[cuda,cudnn]'), or use provider cpu"


class OnnxRuntimeState:
    """State of a batch of streams as two sets of ONNX Runtime tensors on the session's device."""

    def __init__(self, session: OnnxRuntimeStep, batch: int, height: int, width: int) -> None:
        self.batch, self.height, self.width = batch, height, width
        self.specs = session.graph.states
        self._device = session.device
        self._bind = session.bind_state
        # A step reads one set and writes the other, and then they swap roles.
        self._buffers = tuple({spec.name: self._allocate(spec) for spec in self.specs} for _ in range(2))
        self._bindings = self._bind_rows(batch)
        self._bound_rows = batch
        self._current = 0

    def binding(self, rows: int) -> Any:
        """Returns the binding that reads the first rows of the current state and writes them in the
        other buffers.
        """
        if rows != self._bound_rows:
            self._bindings, self._bound_rows = self._bind_rows(rows), rows
        return self._bindings[self._current]

    def swap(self) -> None:
        """Makes the result of the last step the current state."""
        self._current = 1 - self._current

    def read(self) -> dict[str, Array]:
        return {spec.name: _read(self._buffers[self._current][spec.name], spec) for spec in self.specs}

    def write(self, tensors: Mapping[str, Array]) -> None:
        for spec in self.specs:
            _write(self._buffers[1 - self._current][spec.name], tensors[spec.name], spec)
        self.swap()  # only here, so that a failure leaves the state as it was

    def save_row(self, row: int) -> dict[str, Any]:
        saved = {spec.name: self._empty(spec, 1) for spec in self.specs}
        for spec in self.specs:
            saved[spec.name].update_inplace(self._row(spec, row))
        self._wait()
        return saved

    def load_row(self, row: int, saved: Mapping[str, Any]) -> None:
        for spec in self.specs:
            self._row(spec, row).update_inplace(saved[spec.name])
        self._wait()

    def copy_row(self, source: int, target: int) -> None:
        for spec in self.specs:
            self._row(spec, target).update_inplace(self._row(spec, source))
        self._wait()

    def _wait(self) -> None:
        _wait_for_copies(self._buffers[self._current][self.specs[0].name])

    def _row(self, spec: StateSpec, row: int) -> Any:
        return _rows(self._buffers[self._current][spec.name], spec, row, 1)

    def _bind_rows(self, rows: int) -> tuple[Any, Any]:
        """Returns the bindings of both directions of the swap, for the first rows."""
        first, second = (
            {spec.name: _rows(buffers[spec.name], spec, 0, rows) for spec in self.specs}
            for buffers in self._buffers
        )
        return self._bind(first, second), self._bind(second, first)

    def _allocate(self, spec: StateSpec) -> Any:
        value = self._empty(spec, self.batch)
        with allocation_errors(spec, self.batch, self.height, self.width):
            _write(value, initial_tensor(spec, self.batch, self.height, self.width), spec)
        return value

    def _empty(self, spec: StateSpec, rows: int) -> Any:
        with allocation_errors(spec, rows, self.height, self.width):
            shape = spec.resolve(rows, self.height, self.width)
            return ort.OrtValue.ortvalue_from_shape_and_type(shape, _ONNX_TYPES[spec.dtype], *self._device)


class OnnxRuntimeMemory(DeviceMemory):
    """Memory of ONNX Runtime's own allocators, with its own copies."""

    def __init__(self, name: str, device_id: int) -> None:
        self._place = name, device_id
        self.device = (CUDA, device_id) if name == "cuda" else CPU

    def empty(self, shape: Shape, dtype: np.dtype[Any] = FLOAT32) -> DeviceArray:
        if 0 in shape:
            return DeviceArray.contiguous(0, shape, dtype, self.device, None)
        try:
            value = ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype.type, *self._place)
        except RuntimeError as error:
            megabytes = math.prod(shape) * dtype.itemsize / 2**20
            raise ResourceError(
                f"no memory on {device_name(self.device)} for an array of {megabytes:.0f} MB; use smaller"
                f" chunks, or fewer streams ({one_line(error)})"
            ) from error
        return DeviceArray.contiguous(value.data_ptr(), shape, dtype, self.device, value)

    def borrow(self, producer: Any) -> DeviceArray:
        # ONNX Runtime copies on the legacy default stream, which the producer lets wait.
        return borrow(producer, **({"stream": _LEGACY_STREAM} if self.device != CPU else {}))

    def copy(self, target: DeviceArray, source: DeviceArray) -> None:
        if target.nbytes:
            value = ort.OrtValue.from_dlpack(target)
            value.update_inplace(ort.OrtValue.from_dlpack(source))
            _wait_for_copies(value)

    def read(self, source: DeviceArray, target: npt.NDArray[np.uint8]) -> None:
        ort.OrtValue.ortvalue_from_numpy(target).update_inplace(ort.OrtValue.from_dlpack(source))

    def write(self, target: DeviceArray, source: npt.NDArray[np.uint8]) -> None:
        whole = target.bytes(target.nbytes)
        ort.OrtValue.from_dlpack(whole).update_inplace(ort.OrtValue.ortvalue_from_numpy(source))


class OnnxRuntimeStep:
    """A step graph in ONNX Runtime. Thread-safe, since a state belongs to its caller."""

    def __init__(self, graph: GraphSpec, session: Any, device: tuple[str, int]) -> None:
        self.graph = graph
        self.device = device
        self.memory: DeviceMemory | None = None if device[0] == "cpu" else OnnxRuntimeMemory(*device)
        self._session = session
        self._x = graph.inputs[0].name
        self._output = graph.outputs[0].name

    def new_state(self, batch: int, height: int, width: int) -> OnnxRuntimeState:
        return OnnxRuntimeState(self, batch, height, width)

    def bind_state(self, current: Mapping[str, Any], following: Mapping[str, Any]) -> Any:
        """Returns a binding with all state inputs and outputs set, once for all steps."""
        binding = self._session.io_binding()
        for spec in self.graph.states:
            binding.bind_ortvalue_input(spec.input, current[spec.name])
            binding.bind_ortvalue_output(spec.output, following[spec.name])
        return binding

    def step(
        self, state: StreamState, x: Tensor, start: BoolArray, end: BoolArray, on_device: bool = False
    ) -> Tensor:
        assert isinstance(state, OnnxRuntimeState)
        shape = output_shape(self.graph, x)
        binding = state.binding(len(x))
        if isinstance(x, DeviceArray):
            binding.bind_ortvalue_input(self._x, ort.OrtValue.from_dlpack(x))
        else:
            binding.bind_cpu_input(self._x, np.ascontiguousarray(x))
        binding.bind_cpu_input("start", start)
        if self.graph.has_end:
            binding.bind_cpu_input("end", end)
        result: Tensor
        if on_device and self.memory is not None:
            result = self.memory.empty(shape)
            binding.bind_ortvalue_output(self._output, ort.OrtValue.from_dlpack(result))
        else:
            result = np.empty(shape, np.float32)
            binding.bind_output(self._output, "cpu", 0, np.float32, shape, result.ctypes.data)
        with run_errors(self.graph, x):
            self._session.run_with_iobinding(binding)
        state.swap()
        return result


class OnnxRuntimeDirect:
    """A direct graph in ONNX Runtime."""

    def __init__(self, graph: GraphSpec, session: Any) -> None:
        self._graph, self._session = graph, session

    def run(self, x: FloatArray) -> FloatArray:
        feeds = {self._graph.inputs[0].name: np.ascontiguousarray(x)}
        with run_errors(self._graph, x):
            result: FloatArray = self._session.run(None, feeds)[0]
        return result


class OnnxRuntimeBackend:
    """Opens a bundle's graphs in ONNX Runtime."""

    def __init__(self, bundle: Path, files: Collection[str], options: BackendOptions) -> None:
        self._bundle, self._files = bundle, files
        self._options = options
        self._provider = choose_provider(options.provider, options.device_id)
        self._cache = current_cache()

    def describe(self) -> dict[str, str]:
        details = {"name": "onnxruntime", "version": ort.__version__, "provider": self._provider}
        if self._provider == _CPU:
            return details | {"device": "cpu", "threads": str(self._options.threads or "all")}
        from wfvae.runtime.backends.nvidia import cuda

        facts = {
            "device": f"cuda:{self._options.device_id}",
            "gpu": cuda.gpu_name(self._options.device_id),
            "driver": cuda.driver_version(),
            "tf32": str(self._options.tf32).lower(),
        }
        return details | {key: value for key, value in facts.items() if value}

    def open_step(self, graph: GraphSpec) -> OnnxRuntimeStep:
        device = ("cpu", 0) if self._provider == _CPU else ("cuda", self._options.device_id)
        return OnnxRuntimeStep(graph, self._session(graph), device)

    def open_direct(self, graph: GraphSpec) -> OnnxRuntimeDirect:
        return OnnxRuntimeDirect(graph, self._session(graph))

    def _session(self, graph: GraphSpec) -> Any:
        if self._cache is None or self._provider != _CPU:
            session = self._open_session(graph)
        else:
            files = (self._bundle / graph.file, self._bundle / WEIGHTS_NAME)
            session = self._cache.get(files, self._options, lambda: self._open_session(graph))
        # Another manifest may lie beside the same files.
        _check_interface(session, graph)
        return session

    def _open_session(self, graph: GraphSpec) -> Any:
        path, options = self._bundle / graph.file, session_options(self._options.threads)
        declared = check_graph(path, self._files)
        guard = loading_memory(declared) if self._provider == _CPU else nullcontext()
        try:
            # Fallback would print to standard output, and use the CPU with state on the GPU.
            given = {"providers": self.providers(), "enable_fallback": 0}
            with guard:
                session = ort.InferenceSession(str(path), options, **given)
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise BundleError(
                f"ONNX Runtime {ort.__version__} cannot load {graph.file}: {one_line(error)}"
            ) from error
        # A provider that cannot be set up is left out without an error.
        if session.get_providers()[0] != self._provider:
            raise BundleError(
                f"ONNX Runtime {ort.__version__} could not set up {self._provider} for {graph.file};"
                f" {_NO_CUDA}"
            )
        return session

    def providers(self) -> Sequence[Any]:
        """Returns the providers of sessions, with their settings."""
        if self._provider == _CPU:
            return [_CPU]
        settings = {
            "device_id": self._options.device_id,
            # An exhaustive search is slow at first, and may choose differently in each process.
            "cudnn_conv_algo_search": "HEURISTIC",
            "use_tf32": int(self._options.tf32),
        }
        return [(_CUDA, settings), _CPU]


def _check_interface(session: Any, graph: GraphSpec) -> None:
    """Raises `BundleError` unless a session has the inputs and outputs of the manifest."""
    inputs: dict[str, str] = {tensor.name: tensor.dtype for tensor in graph.inputs}
    outputs: dict[str, str] = {tensor.name: tensor.dtype for tensor in graph.outputs}
    inputs |= {state.input: state.dtype for state in graph.states}
    outputs |= {state.output: state.dtype for state in graph.states}
    for kind, expected, nodes in (
        ("input", inputs, session.get_inputs()),
        ("output", outputs, session.get_outputs()),
    ):
        found = {node.name: _TYPE_NAMES.get(node.type, node.type) for node in nodes}
        wrong = sorted(name for name in expected | found if expected.get(name) != found.get(name))
        if wrong:
            name = wrong[0]
            stated = f"{expected.get(name, 'none')} in the manifest and {found.get(name, 'none')} in the file"
            problem = f"its {kind} {name} is {stated}"
            raise BundleError(f"cannot load {graph.file}: {problem}; export the bundle anew")


def session_options(threads: int | None) -> Any:
    """Returns ONNX Runtime's own options for any session of the runtime."""
    found = ort.SessionOptions()
    # What goes wrong is raised; a log line would stand beside the error on a terminal.
    found.log_severity_level = _SEVERITY_FATAL
    # Chunks of several lengths share a session, and each would get a memory pattern that is kept.
    found.enable_mem_pattern = False
    # To reuse a dead buffer, ONNX Runtime's planner compares each result's shape with those of all
    # dead buffers. Unknown sizes match none, so the search takes most of the time to open a session
    # and finds little. The arena takes dead buffers back in any case.
    found.enable_mem_reuse = False
    # The default order runs what only the next step needs, the cuts of the new state, last of all,
    # and so keeps every layer's activations alive until then: 2.6 times the memory in a decoder.
    found.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    if threads is not None:
        found.intra_op_num_threads = threads
    return found


def choose_provider(wanted: str, device_id: int) -> str:
    """Returns ONNX Runtime's name of a provider. Raises `BundleError` if it does not work here."""
    available = ort.get_available_providers()
    if wanted == "auto":
        return _CUDA if _CUDA in available and _cuda_works(device_id) else _CPU
    if wanted not in _PROVIDERS:
        raise BundleError(f"provider is {wanted!r}; expected cpu, cuda or auto")
    if _PROVIDERS[wanted] not in available:
        raise BundleError(
            "this ONNX Runtime has no CUDA provider; install onnxruntime-gpu (see README), or use provider"
            f" cpu; it has {available}"
        )
    if wanted == "cuda" and not _cuda_works(device_id):
        raise BundleError(f"ONNX Runtime {ort.__version__} cannot use GPU {device_id}; {_NO_CUDA}")
    return _PROVIDERS[wanted]


@cache
def _cuda_works(device_id: int) -> bool:
    """Whether the GPU can hold a tensor: a build with the provider may lack driver or device."""
    # CUDA's libraries come as Python packages that no loader finds by itself. `preload_dlls` prints
    # what is missing.
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


def _rows(value: Any, spec: StateSpec, first: int, count: int) -> Any:
    """Returns rows of a state tensor as a tensor in the same memory, which it keeps."""
    shape = tuple(value.shape())
    if (first, count) == (0, shape[0]):
        return value
    device, dtype = value.__dlpack_device__(), np.dtype(spec.dtype)
    whole = DeviceArray.contiguous(value.data_ptr(), shape, dtype, device, value)
    return ort.OrtValue.from_dlpack(whole[first : first + count])


def _wait_for_copies(value: Any) -> None:
    """Waits for the copies within the device so far.

    ONNX Runtime does not promise that they are done when the call returns, and a session's run does
    not wait for them. A copy to the host follows them on the same stream, and is waited for.
    """
    array = DeviceArray(value.data_ptr(), (1,), (1,), np.dtype(np.uint8), value.__dlpack_device__(), value)
    ort.OrtValue.ortvalue_from_numpy(np.empty(1, np.uint8)).update_inplace(ort.OrtValue.from_dlpack(array))


def _read(value: Any, spec: StateSpec) -> Array:
    result = np.empty(value.shape(), np.uint16 if spec.dtype == "bfloat16" else np.dtype(spec.dtype))
    _over(result, spec).update_inplace(value)
    return result


def _write(value: Any, array: Array, spec: StateSpec) -> None:
    value.update_inplace(_over(np.ascontiguousarray(array), spec))


def _over(array: Array, spec: StateSpec) -> Any:
    """Returns a tensor in the memory of `array`, which must outlive it."""
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _ONNX_TYPES[spec.dtype])
