"""A loaded TensorRT engine, and runs of it: shapes and addresses are set where they changed, and
the work is given to a stream.

Nothing here has ever run on a GPU: TensorRT's libraries are not to be had on the machines that this
was written on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wfvae.errors import BundleError, InputError, ResourceError
from wfvae.runtime.backends.nvidia.cuda import DeviceError
from wfvae.runtime.backends.nvidia.device import Device
from wfvae.spec.engines import EngineRecord, Profile
from wfvae.spec.manifest import GraphSpec, state_input, state_output
from wfvae.spec.tensorrt import (
    DATA_TYPES,
    Engine,
    ErrorLog,
    ExecutionContext,
    failure,
    member,
    tactic_sources,
)

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Binding:
    """Where a run finds its inputs and puts its outputs."""

    inputs: Mapping[str, tuple[int, Shape]]
    """Address and shape by name."""
    outputs: Mapping[str, tuple[int, Shape]]


class LoadedEngine:
    """One engine with all that its runs share. Its weights are on the device once, however many
    contexts it has.
    """

    def __init__(
        self,
        graph: GraphSpec,
        record: EngineRecord,
        engine: Engine,
        trt: Any,
        log: ErrorLog,
        device: Device,
        command: str,
        owners: Any,
    ) -> None:
        """Raises `BundleError` if the engine is not of this graph and these profiles.

        Args:
            command: builds the engine anew.
            owners: what must live as long as the engine.
        """
        self.graph, self.record, self.device, self.log = graph, record, device, log
        self.command = command
        self._engine, self._trt, self._owners = engine, trt, owners
        self._check()
        self._runners: dict[int, Runner] = {}

    def choose(self, batch: int, latents: int, height: int, width: int) -> int:
        """The profile for an input: one for exactly this number of latents if there is, else the
        narrowest.

        Raises `InputError` saying what the engine takes.
        """
        profiles = self.record.profiles
        fitting = [k for k, profile in enumerate(profiles) if profile.admits(batch, latents, height, width)]
        if not fitting:
            takes = "; ".join(
                f"batch {p.batch}, latents {p.latents}, height {p.height}, width {p.width}" for p in profiles
            )
            raise InputError(
                f"the TensorRT engine for {self.graph.file} takes {takes} (MIN:OPT:MAX), and this is batch"
                f" {batch}, latents {latents}, {height}x{width}; use another chunk, or build an engine for"
                f" it: {self.command} with --batch, --chunk, --height, --width"
            )
        return min(fitting, key=lambda k: (not profiles[k].steady, profiles[k].latents.high))

    def require_size(self, batch: int, height: int, width: int) -> None:
        """Raises `InputError` if no number of latents of this batch and size would be taken."""
        if not any(p.admits(batch, p.latents.low, height, width) for p in self.record.profiles):
            self.choose(batch, self.record.profiles[0].latents.low, height, width)

    @property
    def tactic_sources(self) -> tuple[str, ...]:
        """Where its kernels may come from."""
        return tactic_sources(self._trt, int(self._engine.tactic_sources))

    def runner(self, profile: int) -> Runner:
        """The context of a profile that all states share. With the device's lock held."""
        if profile not in self._runners:
            self._runners[profile] = self.new_runner(profile)
        return self._runners[profile]

    def new_runner(self, profile: int) -> Runner:
        """A context of its own, as each captured graph needs. With the device's lock held."""
        strategy = member(self._trt, "ExecutionContextAllocationStrategy", "USER_MANAGED")
        context = self._engine.create_execution_context(strategy)
        if context is None:
            raise ResourceError(
                f"TensorRT could not make a context for {self.graph.file}: {self.log.take()}; is the GPU's"
                " memory full?"
            )
        stream = self.device.compute
        try:
            accepted = context.set_optimization_profile_async(profile, stream)
        except RuntimeError:  # some versions raise, some return False
            accepted = False
        if not accepted:
            raise BundleError(
                f"TensorRT refused profile {profile} of {self.record.file}: {self.log.take()}; build it"
                f" again: {self.command}"
            )
        self.device.cuda.synchronize(stream)
        return Runner(self, context, profile)

    def _check(self) -> None:
        engine, trt = self._engine, self._trt
        inputs = {t.name: t.dtype for t in self.graph.inputs} | {
            state_input(s.name): s.dtype for s in self.graph.states
        }
        outputs = {t.name: t.dtype for t in self.graph.outputs} | {
            state_output(s.name): s.dtype for s in self.graph.states
        }
        names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
        problems = [f"has no {name}" for name in (*inputs, *outputs) if name not in names]
        problems += [f"has an unknown {name}" for name in sorted(names - {*inputs, *outputs})]
        for kinds, mode in (
            (inputs, member(trt, "TensorIOMode", "INPUT")),
            (outputs, member(trt, "TensorIOMode", "OUTPUT")),
        ):
            for name, dtype in kinds.items():
                if name not in names:
                    continue
                if engine.get_tensor_location(name) != member(trt, "TensorLocation", "DEVICE"):
                    problems.append(f"wants {name} in host memory")
                if engine.get_tensor_mode(name) != mode:
                    problems.append(f"has {name} on the other side")
                if dtype not in DATA_TYPES or engine.get_tensor_dtype(name) != member(
                    trt, "DataType", DATA_TYPES[dtype]
                ):
                    problems.append(f"has {name} as {engine.get_tensor_dtype(name)} instead of {dtype}")
        if engine.num_optimization_profiles != len(self.record.profiles):
            problems.append(
                f"has {engine.num_optimization_profiles} profiles instead of {len(self.record.profiles)}"
            )
        elif not problems:
            problems += [
                p
                for k, profile in enumerate(self.record.profiles)
                for p in self._profile_problems(k, profile)
            ]
        if problems:
            shown = [*problems[:3], *([f"{len(problems) - 3} more"] if len(problems) > 3 else [])]
            raise BundleError(
                f"{self.record.file} is not the engine that the manifest describes: it {'; '.join(shown)};"
                f" {self.command}"
            )

    def _profile_problems(self, index: int, profile: Profile) -> list[str]:
        problems = []
        for name, wanted in profile.shapes(self.graph).items():
            found = tuple(tuple(shape) for shape in self._engine.get_tensor_profile_shape(name, index))
            if found != wanted:
                problems.append(f"has {name} of {found} in profile {index} instead of {wanted}")
        return problems


class Runner:
    """One execution context on one profile. Use it with the device's lock held."""

    def __init__(self, engine: LoadedEngine, context: ExecutionContext, profile: int) -> None:
        self._engine, self._context = engine, context
        self.profile = profile
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}
        self._need: int | None = None
        """Bytes of scratch memory for the present shapes; None while these have not been checked."""
        self._scratch = (0, 0)

    def bind(self, binding: Binding) -> None:
        """Tells the context what has changed since the last run, and gives it scratch memory.

        Raises `BundleError` if it refuses, or means to write outputs of other shapes than there is
        room for; `ResourceError` if there is not enough memory.
        """
        context, scratch = self._context, self._engine.device.scratch
        for name, (_, shape) in binding.inputs.items():
            if self._shapes.get(name) != shape:
                self._shapes.pop(name, None)
                self._need = None
                self._require(context.set_input_shape(name, shape), f"the shape {shape} of {name}")
                self._shapes[name] = shape
        for name, (address, _) in (*binding.inputs.items(), *binding.outputs.items()):
            if self._addresses.get(name) != address:
                self._addresses.pop(name, None)
                self._require(context.set_tensor_address(name, address), f"the address of {name}")
                self._addresses[name] = address
        if self._need is None:
            self._check_outputs(binding)
            # For these shapes, not for the largest of a profile: ranges may be wide.
            self._need = int(context.update_device_memory_size_for_shapes())
            self._scratch = (0, 0)  # the context has divided its memory anew
        address = scratch.require(self._need)
        if self._scratch != scratch.place:
            context.set_device_memory(address, scratch.size)
            self._scratch = scratch.place

    def enqueue(self) -> None:
        """Gives the run to the compute stream. Raises `DeviceError`, or `ResourceError` for want of
        memory, if TensorRT refuses.
        """
        if not self._context.execute_async_v3(self._engine.device.compute):
            raise failure(
                f"TensorRT could not run {self._engine.graph.file}", self._engine.log.take(), DeviceError
            )

    def _check_outputs(self, binding: Binding) -> None:
        try:
            missing = self._context.infer_shapes()
        except RuntimeError as error:
            raise BundleError(
                f"TensorRT can't work out the shapes of {self._engine.record.file}: {self._engine.log.take()}"
                f" ({error})"
            ) from error
        if missing:
            raise BundleError(
                f"TensorRT knows no shape of {', '.join(missing)} in {self._engine.record.file};"
                f" {self._engine.command}"
            )
        for name, (_, wanted) in binding.outputs.items():
            found = tuple(self._context.get_tensor_shape(name))
            if found != wanted:
                raise BundleError(
                    f"{self._engine.record.file} gives {name} of shape {found} where {wanted} is expected;"
                    f" {self._engine.command}"
                )

    def _require(self, accepted: bool, what: str) -> None:
        if not accepted:
            raise BundleError(
                f"TensorRT refused {what} for {self._engine.record.file}: {self._engine.log.take()}"
            )
