"""What is used of TensorRT's Python API, as types and tables, and the one place that imports it.

TensorRT-RTX has the same API under another module name. What differs between the two flavours is
stated here: the fields of `Flavour`, `ONLY_RTX`, the classes whose names end in RTX, and the
methods of `TensorRT`.

TensorRT ships no types. `tests/export/test_tensorrt_contract.py` compares every name in this file
with the real bindings of TensorRT 10.13 and 11.4 and of TensorRT-RTX. Enum members are looked up by
name, since their values differ between versions, and only names that all versions have are used.
"""

from __future__ import annotations

import functools
import importlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from wfvae.errors import BundleError, MissingExtraError, ResourceError, WFVAEError

Shape = tuple[int, ...]

MEMBERS: dict[str, tuple[str, ...]] = {
    "BuilderFlag": ("EDITABLE_TIMING_CACHE", "ERROR_ON_TIMING_CACHE_MISS", "TF32"),
    "ExecutionContextAllocationStrategy": ("USER_MANAGED",),
    "MemoryPoolType": ("WORKSPACE",),
    "NetworkDefinitionCreationFlag": ("STRONGLY_TYPED",),
}
"""Every enum member that is used."""

ONLY_RTX: dict[str, tuple[str, ...]] = {
    "ComputeCapability": ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121"),
    "DynamicShapesKernelSpecializationStrategy": ("EAGER",),
}
"""Further members, of enums that only TensorRT-RTX needs."""

CONSTRUCTED: dict[str, tuple[str, ...]] = {
    "Builder": ("logger",),
    "ILogger": (),
    "IProgressMonitor": (),
    "OnnxParser": ("network", "logger"),
    "Runtime": ("logger",),
}
"""Classes that are instantiated or subclassed, and the parameters of their constructors."""


FlavourName = Literal["tensorrt", "rtx"]


@dataclass(frozen=True)
class Flavour:
    """A library with TensorRT's API."""

    name: FlavourName
    """In the command line and in the records of engines."""
    title: str
    module: str
    extra: str
    """The extra of this package that installs it."""
    versions: str
    """Versions that have every name in this file."""
    supported: tuple[str, ...] = ()
    """Compute capabilities that it can build for, without a GPU. If there are none, it builds for
    the GPU at hand."""
    default: tuple[str, ...] = ()
    """Those that it builds for unless others are chosen."""
    largest_tensor: int | None = None
    """Most values that a tensor of a network may have, if the builder states a limit."""
    largest_workspace: int | None = None
    """Limit of scratch memory to set in place of the builder's own, if that is too small."""

    @property
    def portable(self) -> bool:
        """Whether an engine is for several GPUs, and is built without any."""
        return bool(self.supported)


TENSORRT = Flavour("tensorrt", "TensorRT", "tensorrt", "tensorrt", "10.13 to 11.4")
RTX = Flavour(
    "rtx",
    "TensorRT-RTX",
    "tensorrt_rtx",
    "rtx",
    "1.7",
    supported=("7.5", "8.0", "8.6", "8.9", "12.0", "12.1"),
    default=("8.0", "8.6", "8.9", "12.0"),
    # "tensor volume exceeds 1099511627776"
    largest_tensor=1 << 40,
    # Without a GPU the builder's own is 64 GiB, which attention in large frames exceeds.
    largest_workspace=1 << 44,
)
FLAVOURS: Mapping[FlavourName, Flavour] = {flavour.name: flavour for flavour in (TENSORRT, RTX)}
"""By name. An engine of the first is preferred, since it was timed on its GPU."""


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


class IBuilderConfigRTX(IBuilderConfig, Protocol):
    num_compute_capabilities: int

    def set_compute_capability(self, compute_capability: Any, index: int) -> bool: ...


class ITensor(Protocol):
    shape: Shape

    @property
    def name(self) -> str: ...


class ILayer(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def num_outputs(self) -> int: ...
    def get_output(self, index: int) -> ITensor | None: ...


class INetworkDefinition(Protocol):
    """A parsed graph. Setting an input's shape changes the shapes of all tensors."""

    @property
    def num_inputs(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    def get_input(self, index: int) -> ITensor: ...
    def get_layer(self, index: int) -> ILayer: ...


class Builder(Protocol):
    def create_network(self, flags: int) -> INetworkDefinition: ...
    def create_builder_config(self) -> IBuilderConfig: ...
    def create_optimization_profile(self) -> IOptimizationProfile: ...
    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> Any: ...


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


class IRuntimeConfigRTX(Protocol):
    dynamic_shapes_kernel_specialization_strategy: Any

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None: ...


class ICudaEngineRTX(Protocol):
    def create_runtime_config(self) -> IRuntimeConfigRTX: ...
    def create_execution_context(self, runtime_config: Any) -> IExecutionContext | None: ...


class Runtime(Protocol):
    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None: ...


class TensorRT:
    """The module of one flavour; nothing else reads its attributes."""

    def __init__(self, module: Any, flavour: Flavour = TENSORRT) -> None:
        self._module, self.flavour = module, flavour
        self.version = str(module.__version__)
        self.log = MessageLog()
        """Messages of all builders and runtimes of this object."""
        self.logger = self._make_logger()
        """Their logger. TensorRT uses a process's first one while anything made with it exists."""

    @classmethod
    def load(cls, flavour: Flavour = TENSORRT) -> TensorRT:
        """Imports it, once. Raises `MissingExtraError`, or `BundleError` if it does not load."""
        return _load(flavour)

    def __str__(self) -> str:
        return f"{self.flavour.title} {self.version}"

    def member(self, enum: str, name: str) -> Any:
        """Returns a member of an enum. Raises `BundleError` if this version does not have it."""
        assert name in (MEMBERS | ONLY_RTX)[enum], f"{enum}.{name} must be listed, which the tests check"
        found = getattr(getattr(self._module, enum, None), name, None)
        if found is None:
            raise BundleError(f"{self} has no {enum}.{name}; versions {self.flavour.versions} have it")
        return found

    def interface(self, name: str) -> Any:
        """Returns one of the classes in `CONSTRUCTED`."""
        assert name in CONSTRUCTED, f"{name} must be listed in CONSTRUCTED, which the tests check"
        return getattr(self._module, name)

    def set_target(self, config: Any, compute_capabilities: Sequence[str]) -> None:
        """Sets what a portable engine is built for. The default is the builder's own."""
        if not self.flavour.portable or tuple(compute_capabilities) == self.flavour.default:
            return
        config.num_compute_capabilities = len(compute_capabilities)
        for index, capability in enumerate(compute_capabilities):
            member = self.member("ComputeCapability", f"SM{capability.replace('.', '')}")
            if not config.set_compute_capability(member, index):
                raise BundleError(
                    f"{self} can't build for compute capability {capability}: {self.log.take()}"
                )

    def create_context(self, engine: Any) -> IExecutionContext | None:
        """Returns a context whose scratch memory the caller sets, or None."""
        strategy = self.member("ExecutionContextAllocationStrategy", "USER_MANAGED")
        context: IExecutionContext | None
        if self.flavour is not RTX:
            context = engine.create_execution_context(strategy)
            return context
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        # TensorRT-RTX compiles kernels for the shapes that it meets. By default it does so in the
        # background, and so two equal steps could run different kernels.
        eager = self.member("DynamicShapesKernelSpecializationStrategy", "EAGER")
        config.dynamic_shapes_kernel_specialization_strategy = eager
        context = engine.create_execution_context(config)
        return context

    def _make_logger(self) -> Any:
        class Logger(self.interface("ILogger")):  # type: ignore[misc]  # no types
            def __init__(self, log: MessageLog) -> None:
                super().__init__()  # which TensorRT's classes demand
                self._messages = log

            def log(self, severity: Any, msg: str) -> None:
                if severity in (self.ERROR, self.INTERNAL_ERROR):
                    self._messages.add(msg)
                elif severity == self.WARNING:
                    self._messages.warn(msg)

        return Logger(self.log)


@functools.cache
def _load(flavour: Flavour) -> TensorRT:
    try:
        return TensorRT(importlib.import_module(flavour.module), flavour)
    except ModuleNotFoundError as error:
        raise MissingExtraError(flavour.title, str(error.name), flavour.extra) from error
    except (ImportError, OSError) as error:
        text = f"{flavour.title} is installed but does not load: {error}"
        raise BundleError(f"{text}; install it again for this machine's CUDA") from error


class MessageLog:
    """Keeps TensorRT's last errors, which its calls do not return, and each warning once."""

    def __init__(self) -> None:
        self._errors: deque[str] = deque(maxlen=3)
        self._warnings: dict[str, None] = {}

    def add(self, message: str) -> None:
        """Adds an error."""
        self._errors.append(_one_line(message))

    def warn(self, message: str) -> None:
        """Adds a warning."""
        self._warnings[_one_line(message)] = None

    def take(self) -> str:
        """Removes the errors and returns them on one line."""
        text = "; ".join(self._errors)
        self._errors.clear()
        return text or "TensorRT gave no reason"

    def take_warnings(self) -> list[str]:
        """Removes the warnings and returns them."""
        found = list(self._warnings)
        self._warnings.clear()
        return found


def _one_line(message: str) -> str:
    return " ".join(message.split())[:300]


def failure(text: str, reason: str, other: type[WFVAEError]) -> WFVAEError:
    """Returns `ResourceError` if TensorRT's reason is a lack of memory, else an `other`."""
    lowered = reason.lower()
    if "memory" in lowered and ("out of" in lowered or "alloc" in lowered):
        advice = "out of memory; use a smaller chunk, size or number of streams"
        return ResourceError(f"{text}: {advice} ({reason})")
    return other(f"{text}: {reason}")
