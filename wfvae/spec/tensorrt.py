"""The part of TensorRT's Python API that is used here, as types, and the one place where TensorRT
is imported.

TensorRT ships no types. The protocols below are what build and runtime are checked against, and
`tests/export/test_tensorrt_contract.py` compares every name, member and parameter in them with the
real bindings of TensorRT 10.13 and 11.4, over empty stub libraries. Nothing here has ever run on a
GPU: TensorRT's libraries are not to be had on the machines that this was written on.

What differs between 10 and 11: 11 has no `BuilderFlag.FP16/BF16/INT8/FP8`, no `EXPLICIT_BATCH`, no
`create_execution_context_without_device_memory`, no `device_memory_size`; `STRONGLY_TYPED` and most
flags have other values. So only names that both have are used, and members are looked up by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from wfvae.errors import BundleError, MissingExtraError, ResourceError, WFVAEError

MEMBERS: dict[str, tuple[str, ...]] = {
    "BuilderFlag": ("EDITABLE_TIMING_CACHE", "ERROR_ON_TIMING_CACHE_MISS", "TF32"),
    "DataType": ("BF16", "BOOL", "FLOAT", "HALF", "INT32"),
    "ExecutionContextAllocationStrategy": ("USER_MANAGED",),
    "MemoryPoolType": ("WORKSPACE",),
    "NetworkDefinitionCreationFlag": ("STRONGLY_TYPED",),
    "TensorIOMode": ("INPUT", "OUTPUT"),
    "TensorLocation": ("DEVICE",),
}
"""Every enum member that is used."""

LISTED = ("TacticSource",)
"""Enums of which all members are read, whatever a version has."""

DATA_TYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "int32": "INT32", "bool": "BOOL"}
"""The manifest's types as members of `DataType`."""


class HostMemory(Protocol):
    """`IHostMemory`: bytes that TensorRT owns. Also a buffer: `memoryview(memory)`."""

    @property
    def nbytes(self) -> int: ...


class TimingCache(Protocol):
    """`ITimingCache`: measured times of kernels."""

    def serialize(self) -> HostMemory: ...


class OptimizationProfile(Protocol):
    """`IOptimizationProfile`: a range of shapes for every input."""

    def set_shape(
        self, input: str, min: tuple[int, ...], opt: tuple[int, ...], max: tuple[int, ...]
    ) -> None: ...


class BuilderConfig(Protocol):
    """`IBuilderConfig`."""

    builder_optimization_level: int
    progress_monitor: Any

    def add_optimization_profile(self, profile: OptimizationProfile) -> int: ...

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None: ...

    def set_flag(self, flag: Any) -> None: ...

    def clear_flag(self, flag: Any) -> None: ...

    def get_flag(self, flag: Any) -> bool: ...

    def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache | None: ...

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool: ...

    def get_timing_cache(self) -> TimingCache | None: ...


class Builder(Protocol):
    """`Builder`."""

    def create_network(self, flags: int) -> Any: ...

    def create_builder_config(self) -> BuilderConfig: ...

    def create_optimization_profile(self) -> OptimizationProfile: ...

    def build_serialized_network(self, network: Any, config: BuilderConfig) -> HostMemory | None: ...


class ParserError(Protocol):
    """`ParserError`."""

    def desc(self) -> str: ...

    def node_name(self) -> str: ...


class OnnxParser(Protocol):
    """`OnnxParser`. It finds external weights by the graph's path."""

    @property
    def num_errors(self) -> int: ...

    def get_error(self, index: int) -> ParserError: ...

    def parse_from_file(self, model: str) -> bool: ...


class ProgressMonitor(Protocol):
    """`IProgressMonitor`, which TensorRT calls while it builds."""

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None: ...

    def step_complete(self, phase_name: str, step: int) -> bool: ...

    def phase_finish(self, phase_name: str) -> None: ...


class ExecutionContext(Protocol):
    """`IExecutionContext`: an engine with shapes and addresses. Not safe to use from several
    threads at once.
    """

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool: ...

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool: ...

    def infer_shapes(self) -> Sequence[str]: ...

    def get_tensor_shape(self, name: str) -> Sequence[int]: ...

    def set_tensor_address(self, name: str, memory: int) -> bool: ...

    def update_device_memory_size_for_shapes(self) -> int: ...

    def set_device_memory(self, memory: int, size: int) -> None: ...

    def execute_async_v3(self, stream_handle: int) -> bool: ...


class Engine(Protocol):
    """`ICudaEngine`: weights and kernels."""

    @property
    def num_io_tensors(self) -> int: ...

    @property
    def num_optimization_profiles(self) -> int: ...

    @property
    def tactic_sources(self) -> int: ...

    def get_tensor_name(self, index: int) -> str: ...

    def get_tensor_mode(self, name: str) -> Any: ...

    def get_tensor_dtype(self, name: str) -> Any: ...

    def get_tensor_location(self, name: str) -> Any: ...

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> Sequence[Sequence[int]]: ...

    def create_execution_context(self, strategy: Any) -> ExecutionContext | None: ...


class Runtime(Protocol):
    """`Runtime`: deserialises engines."""

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None: ...


CONTRACT: dict[type, str] = {
    HostMemory: "IHostMemory",
    TimingCache: "ITimingCache",
    OptimizationProfile: "IOptimizationProfile",
    BuilderConfig: "IBuilderConfig",
    Builder: "Builder",
    ParserError: "ParserError",
    OnnxParser: "OnnxParser",
    ProgressMonitor: "IProgressMonitor",
    ExecutionContext: "IExecutionContext",
    Engine: "ICudaEngine",
    Runtime: "Runtime",
}
"""The protocols, and TensorRT's names of the classes."""

CONSTRUCTED: dict[str, tuple[str, ...]] = {
    "Builder": ("logger",),
    "ILogger": (),
    "IProgressMonitor": (),
    "OnnxParser": ("network", "logger"),
    "Runtime": ("logger",),
}
"""Classes that are made here, and their parameters."""


def load_tensorrt() -> Any:
    """The module `tensorrt`.

    Raises:
        MissingExtraError: it is not installed.
        BundleError: it is installed and does not load, for want of a library for example.
    """
    try:
        import tensorrt
    except ModuleNotFoundError as error:
        raise MissingExtraError("TensorRT", str(error.name), "tensorrt") from error
    except (ImportError, OSError) as error:
        raise BundleError(
            f"TensorRT is installed but does not load: {error}; install it again for this machine's CUDA"
        ) from error
    return tensorrt


def member(trt: Any, enum: str, name: str) -> Any:
    """A member of one of TensorRT's enums. Raises `BundleError` if this version has none of the
    name.
    """
    assert name in MEMBERS[enum], f"{enum}.{name} must be listed in MEMBERS, which is what is checked"
    found = getattr(getattr(trt, enum, None), name, None)
    if found is None:
        raise BundleError(f"TensorRT {trt.__version__} has no {enum}.{name}; versions 10.13 to 11.4 have it")
    return found


def tactic_sources(trt: Any, bits: int) -> tuple[str, ...]:
    """Names of the libraries and generators that an engine's kernels may come from, from its set of
    bits.
    """
    names = {int(value): name for name, value in trt.TacticSource.__members__.items()}
    return tuple(names.get(bit, f"source {bit}") for bit in range(bits.bit_length()) if bits >> bit & 1)


class ErrorLog:
    """Keeps TensorRT's last error messages, which its calls do not return."""

    _KEPT = 3

    def __init__(self) -> None:
        self._messages: list[str] = []

    def add(self, message: str) -> None:
        self._messages = [*self._messages, " ".join(message.split())[:300]][-self._KEPT :]

    def take(self) -> str:
        """The messages since the last call, in one line."""
        text, self._messages = "; ".join(self._messages), []
        return text or "TensorRT gave no reason"


def failure(text: str, reason: str, other: type[WFVAEError]) -> WFVAEError:
    """An error with TensorRT's reason: a `ResourceError` if that is memory, since there is
    something to do about it, else `other`.
    """
    if "memory" in reason.lower() and ("out of" in reason.lower() or "alloc" in reason.lower()):
        return ResourceError(
            f"{text}: out of memory; use a smaller chunk, size or number of streams ({reason})"
        )
    return other(f"{text}: {reason}")


def make_logger(trt: Any, log: ErrorLog) -> Any:
    """A TensorRT logger that passes errors on to `log` and drops the rest. Keep it for as long as
    what was made with it.
    """

    class Logger(trt.ILogger):  # type: ignore[misc]  # a class of a module without types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                log.add(msg)

    return Logger()
