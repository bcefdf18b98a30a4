"""What is used of TensorRT's Python API, as types and tables, and the one place that imports it.

TensorRT ships no types. `tests/export/test_tensorrt_contract.py` compares every name in this file
with the real bindings of TensorRT 10.13 and 11.4. Enum members are looked up by name, since their
values differ between versions, and only names that both versions have are used.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from wfvae.errors import BundleError, MissingExtraError, ResourceError, WFVAEError

Shape = tuple[int, ...]

MEMBERS: dict[str, tuple[str, ...]] = {
    "BuilderFlag": ("EDITABLE_TIMING_CACHE", "ERROR_ON_TIMING_CACHE_MISS", "TF32"),
    "ExecutionContextAllocationStrategy": ("USER_MANAGED",),
    "MemoryPoolType": ("WORKSPACE",),
    "NetworkDefinitionCreationFlag": ("STRONGLY_TYPED",),
}
"""Every enum member that is used."""

CONSTRUCTED: dict[str, tuple[str, ...]] = {
    "Builder": ("logger",),
    "ILogger": (),
    "IProgressMonitor": (),
    "OnnxParser": ("network", "logger"),
    "Runtime": ("logger",),
}
"""Classes that are instantiated or subclassed, and the parameters of their constructors."""


@dataclass(frozen=True)
class Flavour:
    """A library with TensorRT's API. Whatever differs between flavours is a field here."""

    title: str
    module: str
    extra: str
    """The extra of this package that installs it."""
    versions: str
    """Versions that have every name in this file."""


TENSORRT = Flavour("TensorRT", "tensorrt", "tensorrt", "10.13 to 11.4")


# TensorRT's classes under their own names: only the methods and attributes that are used.


class ITimingCache(Protocol):
    def serialize(self) -> Any: ...


class IOptimizationProfile(Protocol):
    """A range of shapes for every input."""

    def set_shape(self, input: str, min: Shape, opt: Shape, max: Shape) -> None: ...


class IBuilderConfig(Protocol):
    builder_optimization_level: int
    progress_monitor: Any

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int: ...
    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None: ...
    def set_flag(self, flag: Any) -> None: ...
    def clear_flag(self, flag: Any) -> None: ...
    def get_flag(self, flag: Any) -> bool: ...
    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None: ...
    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool: ...
    def get_timing_cache(self) -> ITimingCache | None: ...


class Builder(Protocol):
    def create_network(self, flags: int) -> Any: ...
    def create_builder_config(self) -> IBuilderConfig: ...
    def create_optimization_profile(self) -> IOptimizationProfile: ...
    def build_serialized_network(self, network: Any, config: IBuilderConfig) -> Any: ...


class ParserError(Protocol):
    def desc(self) -> str: ...
    def node_name(self) -> str: ...


class OnnxParser(Protocol):
    """Reads a graph, and finds external weights by the graph's path."""

    @property
    def num_errors(self) -> int: ...
    def get_error(self, index: int) -> ParserError: ...
    def parse_from_file(self, model: str) -> bool: ...


class IProgressMonitor(Protocol):
    """What TensorRT calls while it builds."""

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None: ...
    def step_complete(self, phase_name: str, step: int) -> bool: ...
    def phase_finish(self, phase_name: str) -> None: ...


class IExecutionContext(Protocol):
    """An engine with shapes and addresses, for one thread at a time."""

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool: ...
    def set_input_shape(self, name: str, shape: Shape) -> bool: ...
    def infer_shapes(self) -> Sequence[str]: ...
    def get_tensor_shape(self, name: str) -> Sequence[int]: ...
    def set_tensor_address(self, name: str, memory: int) -> bool: ...
    def update_device_memory_size_for_shapes(self) -> int: ...
    def set_device_memory(self, memory: int, size: int) -> None: ...
    def execute_async_v3(self, stream_handle: int) -> bool: ...


class ICudaEngine(Protocol):
    """Weights and kernels."""

    def create_execution_context(self, strategy: Any) -> IExecutionContext | None: ...


class Runtime(Protocol):
    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None: ...


class TensorRT:
    """The module of one flavour; nothing else reads its attributes."""

    def __init__(self, module: Any, flavour: Flavour = TENSORRT) -> None:
        self._module, self.flavour = module, flavour
        self.version = str(module.__version__)

    @classmethod
    def load(cls, flavour: Flavour = TENSORRT) -> TensorRT:
        """Imports it. Raises `MissingExtraError`, or `BundleError` if it does not load."""
        try:
            return cls(importlib.import_module(flavour.module), flavour)
        except ModuleNotFoundError as error:
            raise MissingExtraError(flavour.title, str(error.name), flavour.extra) from error
        except (ImportError, OSError) as error:
            text = f"{flavour.title} is installed but does not load: {error}"
            raise BundleError(f"{text}; install it again for this machine's CUDA") from error

    def __str__(self) -> str:
        return f"{self.flavour.title} {self.version}"

    def member(self, enum: str, name: str) -> Any:
        """Returns a member of an enum. Raises `BundleError` if this version does not have it."""
        assert name in MEMBERS[enum], f"{enum}.{name} must be listed in MEMBERS, which the tests check"
        found = getattr(getattr(self._module, enum, None), name, None)
        if found is None:
            raise BundleError(f"{self} has no {enum}.{name}; versions {self.flavour.versions} have it")
        return found

    def interface(self, name: str) -> Any:
        """Returns one of the classes in `CONSTRUCTED`."""
        assert name in CONSTRUCTED, f"{name} must be listed in CONSTRUCTED, which the tests check"
        return getattr(self._module, name)

    def logger(self, log: ErrorLog) -> Any:
        """Returns a logger that adds errors to `log`. It must outlive what is made with it."""

        class Logger(self.interface("ILogger")):  # type: ignore[misc]  # no types
            def __init__(self) -> None:
                super().__init__()  # which TensorRT's classes demand

            def log(self, severity: Any, msg: str) -> None:
                if severity in (self.ERROR, self.INTERNAL_ERROR):
                    log.add(msg)

        return Logger()


class ErrorLog:
    """Keeps TensorRT's last error messages, which its calls do not return."""

    def __init__(self) -> None:
        self._messages: deque[str] = deque(maxlen=3)

    def add(self, message: str) -> None:
        self._messages.append(" ".join(message.split())[:300])

    def take(self) -> str:
        """Removes the messages and returns them on one line."""
        text = "; ".join(self._messages)
        self._messages.clear()
        return text or "TensorRT gave no reason"


def failure(text: str, reason: str, other: type[WFVAEError]) -> WFVAEError:
    """Returns `ResourceError` if TensorRT's reason is a lack of memory, else an `other`."""
    lowered = reason.lower()
    if "memory" in lowered and ("out of" in lowered or "alloc" in lowered):
        advice = "out of memory; use a smaller chunk, size or number of streams"
        return ResourceError(f"{text}: {advice} ({reason})")
    return other(f"{text}: {reason}")
