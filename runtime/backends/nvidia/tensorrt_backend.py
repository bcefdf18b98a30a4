"""TensorRT as backend: engines of `wfvae build`, driven through TensorRT's own runtime. State never
leaves the device between steps.

One stream of work runs all engines of a device one after the other, so encoder and decoder share
one scratch area; copies have streams of their own and overlap the runs of other threads' streams of
video. Each state tensor has two buffers whose addresses are swapped, never one buffer for input and
output: TensorRT gives wrong results then.

Nothing here has ever run on a GPU: TensorRT's libraries are not to be had on the machines that this
was written on. The names and signatures are checked against TensorRT's real bindings, and the
bookkeeping against a recording stand-in.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wfvae.errors import BundleError
from wfvae.runtime.backends.base import BoolArray, FloatArray, StreamState, output_shape
from wfvae.runtime.backends.nvidia.cuda import Cuda, CudaBindings
from wfvae.runtime.backends.nvidia.device import Device
from wfvae.runtime.backends.nvidia.tensorrt_engine import Binding, LoadedEngine
from wfvae.runtime.backends.nvidia.tensorrt_state import StepBuffers, TensorRTState, give_back
from wfvae.spec.engines import DIRECT_LATENTS, Target, find_engine, read_engine
from wfvae.spec.manifest import STEP, GraphSpec, Manifest
from wfvae.spec.tensorrt import ErrorLog, Runtime, failure, load_tensorrt, make_logger


@dataclass(frozen=True)
class TensorRTOptions:
    """How engines are run."""

    device_id: int = 0
    """Which GPU."""
    tf32: bool = False
    """Use engines that were built with TF32."""
    cuda_graphs: bool = False
    """Capture the steady step as CUDA graphs, where that works."""


class TensorRTStep:
    """A step graph's engine. Safe to use from several threads, each with its own states."""

    def __init__(self, engine: LoadedEngine, cuda_graphs: bool) -> None:
        self.graph = engine.graph
        self.engine = engine
        self._cuda_graphs = cuda_graphs
        self.fallback: str | None = None
        """Why CUDA graphs are not used although they were asked for; None if they are."""

    def new_state(self, batch: int, height: int, width: int) -> TensorRTState:
        """Raises `InputError` if the engine takes no such batch or size, and `ResourceError` if
        there is no memory.
        """
        self.engine.require_size(batch, height, width)
        return TensorRTState(self.engine, batch, height, width, self._cuda_graphs)

    def step(self, state: StreamState, x: FloatArray, start: BoolArray, end: BoolArray) -> FloatArray:
        assert isinstance(state, TensorRTState)
        engine, buffers = self.engine, state.buffers
        profile = engine.choose(x.shape[0], _latents(self.graph, x), state.height, state.width)
        shape = output_shape(self.graph, x)
        with state.stepping():
            buffers.stage(x, start, end, int(np.prod(shape)) * 4)
            binding = state.binding(x.shape, shape)
            with engine.device.enqueuing():
                buffers.copy_in()
                self._run(state, profile, binding)
                buffers.copy_out()
            result = buffers.output(shape)
            state.swap()
        return result

    def _run(self, state: TensorRTState, profile: int, binding: Binding) -> None:
        if state.graphs is not None and self.engine.record.profiles[profile].steady:
            if state.graphs.run(state.parity, profile, binding):
                return
            self.fallback = state.graphs.fallback
        runner = self.engine.runner(profile)
        runner.bind(binding)
        runner.enqueue()


class TensorRTDirect:
    """A direct graph's engine, for verification. Safe to use from several threads, which wait for
    each other.
    """

    def __init__(self, engine: LoadedEngine) -> None:
        self._graph, self.engine = engine.graph, engine
        self._buffers = StepBuffers(engine.device)
        self._running = threading.Lock()
        self._finalizer = weakref.finalize(self, give_back, engine.device, None, self._buffers, None)

    def run(self, x: FloatArray) -> FloatArray:
        """The graph's output for whole clips.

        An image runs as the head of a clip of equal frames: by itself it would leave tensors
        without frames inside the graph. What comes later in a clip can't change it. (A clip of two
        latents can't be helped so: where time is interpolated linearly, its last frames depend on
        being the last.)

        Raises `InputError` if the engine takes no clip of this length or size.
        """
        if x.shape[1] > 1:
            return self._run(x)
        repeats = (DIRECT_LATENTS - 1) * (
            self._graph.stream.ratio if self._graph.direction == "encoder" else 1
        )
        return self._run(np.concatenate([x, *[x] * repeats], axis=1))[:, :1]

    def _run(self, x: FloatArray) -> FloatArray:
        engine, device, buffers = self.engine, self.engine.device, self._buffers
        height, width = _video_size(self._graph, x)
        profile = engine.choose(x.shape[0], _latents(self._graph, x), height, width)
        shape = output_shape(self._graph, x)
        no_flags = np.zeros(0, np.bool_)
        with self._running:
            device.cuda.activate()
            try:
                buffers.stage(x, no_flags, no_flags, int(np.prod(shape)) * 4)
                source, result = self._graph.inputs[0].name, self._graph.outputs[0].name
                binding = Binding({source: (buffers.x, x.shape)}, {result: (buffers.result, shape)})
                with device.enqueuing():
                    buffers.copy_in()
                    runner = engine.runner(profile)
                    runner.bind(binding)
                    runner.enqueue()
                    buffers.copy_out()
                return buffers.output(shape)
            except BaseException:
                device.drain()
                raise


class TensorRTBackend:
    """Opens a bundle's engines on one GPU."""

    def __init__(
        self,
        bundle: Path,
        manifest: Manifest,
        options: TensorRTOptions,
        *,
        trt: Any = None,
        cuda: Cuda | None = None,
    ) -> None:
        """Takes stand-ins for TensorRT and CUDA, for tests.

        Raises:
            MissingExtraError: TensorRT or cuda-bindings are not installed.
            DeviceError: there is no such GPU.
        """
        self._bundle, self._manifest, self._options = bundle, manifest, options
        self._trt = load_tensorrt() if trt is None else trt
        cuda = CudaBindings(options.device_id) if cuda is None else cuda
        self._device = Device(cuda)
        self._info = cuda.info()
        self._target = target_here(self._trt, cuda)
        self._log = ErrorLog()
        self._logger = make_logger(self._trt, self._log)
        self._runtime: Runtime = self._trt.Runtime(self._logger)
        self._opening = threading.Lock()
        # Not kept alive from here: whoever closes a session gets its memory back.
        self._sessions: weakref.WeakSet[TensorRTStep | TensorRTDirect] = weakref.WeakSet()

    def describe(self) -> dict[str, str]:
        """Tactic sources and the fate of CUDA graphs are those of the sessions that are open."""
        sessions = list(self._sessions)
        fallen = next((s.fallback for s in sessions if isinstance(s, TensorRTStep) and s.fallback), None)
        sources = sorted({source for session in sessions for source in session.engine.tactic_sources})
        return {
            "name": "tensorrt",
            "version": self._target.tensorrt,
            "device": f"cuda:{self._options.device_id}",
            "gpu": self._target.gpu,
            "compute_capability": self._target.compute_capability,
            "driver": self._info.driver,
            "tactic_sources": ", ".join(sources) or ("none" if sessions else "no engine is open"),
            "tf32": str(self._options.tf32).lower(),
            "cuda_graphs": (
                "off" if not self._options.cuda_graphs else f"fell back: {fallen}" if fallen else "on"
            ),
        }

    def open_step(self, graph: GraphSpec) -> TensorRTStep:
        step = TensorRTStep(self._load(graph), self._options.cuda_graphs)
        self._sessions.add(step)
        return step

    def open_direct(self, graph: GraphSpec) -> TensorRTDirect:
        direct = TensorRTDirect(self._load(graph))
        self._sessions.add(direct)
        return direct

    def _load(self, graph: GraphSpec) -> LoadedEngine:
        """Raises `BundleError` unless there is an engine of this graph for this GPU and version,
        with the content that was built.
        """
        [key] = [key for key, found in self._manifest.graphs.items() if found.file == graph.file]
        record = find_engine(self._manifest, self._bundle, key, self._target, self._options.tf32)
        command = record.settings.command(self._bundle)
        content = read_engine(record, self._bundle)
        with self._opening:
            self._device.cuda.activate()
            engine = self._runtime.deserialize_cuda_engine(content)
            if engine is None:
                text = (
                    f"TensorRT {self._target.tensorrt} can't load {record.file} (build it again if it is not"
                    f" for want of memory: {command})"
                )
                raise failure(text, self._log.take(), BundleError)
            return LoadedEngine(
                graph,
                record,
                engine,
                self._trt,
                self._log,
                self._device,
                command,
                (self._runtime, self._logger),
            )


def target_here(trt: Any, cuda: Cuda) -> Target:
    """This machine's TensorRT and GPU."""
    info = cuda.info()
    return Target(str(trt.__version__), info.name, info.compute_capability)


def _latents(graph: GraphSpec, x: FloatArray) -> int:
    """How many latents a step or clip of this input has."""
    count, ratio = int(x.shape[1]), graph.stream.ratio
    if graph.direction == "decoder":
        return count
    return count // ratio if graph.kind == STEP else 1 + (count - 1) // ratio


def _video_size(graph: GraphSpec, x: FloatArray) -> tuple[int, int]:
    scale = 8 if graph.direction == "decoder" else 1
    return int(x.shape[3]) * scale, int(x.shape[4]) * scale
