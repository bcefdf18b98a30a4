"""Loaded TensorRT engines and their runs: shapes and addresses are set where they changed, then the
work is enqueued on a stream.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

from wfvae.errors import BundleError, InputError, ResourceError
from wfvae.runtime.backends.nvidia.cuda import DeviceError
from wfvae.runtime.backends.nvidia.device import Device
from wfvae.spec.manifest import GraphSpec
from wfvae.spec.tensorrt_api import ICudaEngine, IExecutionContext, Runtime, Shape, TensorRT, failure
from wfvae.spec.tensorrt_engines import EngineRecord


@dataclass(frozen=True)
class Binding:
    """Where a run reads its inputs and writes its outputs."""

    inputs: Mapping[str, tuple[int, Shape]]
    """Address and shape by name."""
    outputs: Mapping[str, tuple[int, Shape]]


class EngineLoader:
    """TensorRT on one device: loads engines, and lives as long as they do."""

    def __init__(self, trt: TensorRT, device: Device) -> None:
        self.trt, self.device, self.log = trt, device, trt.log
        self._runtime: Runtime = trt.interface("Runtime")(trt.logger)
        self._opening = threading.Lock()

    def load(self, graph: GraphSpec, record: EngineRecord, content: bytes, command: str) -> LoadedEngine:
        """Deserialises an engine, whose content has been verified; `command` builds it again.

        Raises `BundleError` if it is not the graph's engine or does not load, and `ResourceError`.
        """
        with self._opening:
            self.device.cuda.activate()
            engine = self._runtime.deserialize_cuda_engine(content)
            if engine is None:
                again = f"unless memory is the reason, build it again: {command}"
                raise failure(f"{self.trt} cannot load {record.file} ({again})", self.log.take(), BundleError)
            return LoadedEngine(self, graph, record, engine, command)


class LoadedEngine:
    """One engine with all that its runs share. Its contexts share the weights."""

    def __init__(
        self, loader: EngineLoader, graph: GraphSpec, record: EngineRecord, engine: ICudaEngine, command: str
    ) -> None:
        self.graph, self.record, self.command = graph, record, command
        self.trt, self.device, self.log = loader.trt, loader.device, loader.log
        self._loader, self._engine = loader, engine  # the loader must outlive the engine
        self._runners: dict[int, Runner] = {}

    def choose(self, batch: int, latents: int, height: int, width: int) -> int:
        """Returns the index of the best profile: one for exactly this length, else the narrowest.

        Raises `InputError` if no profile takes the input.
        """
        profiles = self.record.profiles
        fitting = [k for k, profile in enumerate(profiles) if profile.admits(batch, latents, height, width)]
        if fitting:
            return min(fitting, key=lambda k: (not profiles[k].steady, profiles[k].latents.high))
        takes = "; ".join(
            f"batch {p.batch}, latents {p.latents}, height {p.height}, width {p.width}" for p in profiles
        )
        raise InputError(
            f"the {self.trt.flavour.title} engine for {self.graph.file} takes {takes} (MIN:OPT:MAX), and this"
            f" is batch {batch}, latents {latents}, {height}x{width}; use another chunk, or build an engine"
            f" for it: {self.command} with --batch, --chunk, --height, --width"
        )

    def require_size(self, batch: int, height: int, width: int) -> None:
        """Raises `InputError` unless some number of latents is possible for this batch and size."""
        if not any(p.admits(batch, p.latents.low, height, width) for p in self.record.profiles):
            self.choose(batch, self.record.profiles[0].latents.low, height, width)

    def enqueue(self, profile: int, binding: Binding) -> None:
        """Enqueues a run in a profile's shared context. Hold the device's lock."""
        if profile not in self._runners:
            self._runners[profile] = self.new_runner(profile)
        self._runners[profile].enqueue(binding)

    def new_runner(self, profile: int) -> Runner:
        """Returns a new context, as each captured graph needs. Hold the device's lock."""
        context = self.trt.create_context(self._engine)
        if context is None:
            text = f"{self.trt} could not make a context for {self.graph.file}: {self.log.take()}"
            raise ResourceError(f"{text}; is the GPU's memory full?")
        stream = self.device.compute
        try:
            accepted = context.set_optimization_profile_async(profile, stream)
        except RuntimeError:  # some versions raise, some return False
            accepted = False
        if not accepted:
            text = f"{self.trt} refused profile {profile} of {self.record.file}: {self.log.take()}"
            raise BundleError(f"{text}; build it again: {self.command}")
        self.device.cuda.synchronize(stream)
        return Runner(self, context)


class Runner:
    """One execution context on one profile. Use it with the device's lock held."""

    def __init__(self, engine: LoadedEngine, context: IExecutionContext) -> None:
        self._engine, self._context = engine, context
        self._shapes: dict[str, Shape] = {}
        """The input shapes that the context has; empty while they are being changed."""
        self._need = 0
        """Bytes of scratch memory for these shapes, not for the largest of the profile."""
        self._scratch = (0, 0)

    def enqueue(self, binding: Binding) -> None:
        """Sets what changed of shapes, addresses and scratch memory, and enqueues the run."""
        context, scratch = self._context, self._engine.device.scratch
        shapes = {name: shape for name, (_, shape) in binding.inputs.items()}
        if shapes != self._shapes:
            self._shapes = {}
            for name, shape in shapes.items():
                self._require(context.set_input_shape(name, shape), f"the shape {shape} of {name}")
            self._check_outputs(binding)
            self._need = int(context.update_device_memory_size_for_shapes())
            self._shapes, self._scratch = shapes, (0, 0)  # the context divides its memory anew
        for name, (address, _) in (*binding.inputs.items(), *binding.outputs.items()):
            self._require(context.set_tensor_address(name, address), f"the address of {name}")
        scratch.require(self._need)
        if self._scratch != scratch.place:
            context.set_device_memory(*scratch.place)
            self._scratch = scratch.place
        self.enqueue_again()

    def enqueue_again(self) -> None:
        if not self._context.execute_async_v3(self._engine.device.compute):
            text = f"{self._engine.trt} could not run {self._engine.graph.file}"
            raise failure(text, self._engine.log.take(), DeviceError)

    def _require(self, accepted: bool, what: str) -> None:
        if not accepted:
            text = f"{self._engine.trt} refused {what} for {self._engine.record.file}"
            raise BundleError(f"{text}: {self._engine.log.take()}")

    def _check_outputs(self, binding: Binding) -> None:
        trt, file = self._engine.trt, self._engine.record.file
        again = f"build it again: {self._engine.command}"
        try:
            self._context.infer_shapes()
        except RuntimeError as error:
            reason = f"{self._engine.log.take()} ({error})"
            raise BundleError(f"{trt} cannot infer the shapes of {file}: {reason}") from error
        for name, (_, wanted) in binding.outputs.items():
            found = tuple(self._context.get_tensor_shape(name))
            if found != wanted:
                text = f"{file} gives {name} of shape {found} where {wanted} is expected"
                raise BundleError(f"{text}; {again}")
