"""TensorRT and TensorRT-RTX as backend (experimental: not yet run on a GPU): runs the engines of
`wfvae build`, of each graph the one that fits the GPU.

State stays on the device between steps. All engines of a device run on one stream, one after the
other, so encoder and decoder share one scratch area. Copies have streams of their own, and overlap
the runs of other threads' videos.
"""

import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wfvae.errors import MissingExtraError
from wfvae.runtime.backends.base import (
    BackendOptions,
    BoolArray,
    FloatArray,
    StreamState,
    Tensor,
    output_shape,
)
from wfvae.runtime.backends.nvidia.cuda import Cuda, driver_version
from wfvae.runtime.backends.nvidia.device import CudaMemory, Device, StepBuffers
from wfvae.runtime.backends.nvidia.tensorrt_engine import Binding, EngineLoader, LoadedEngine
from wfvae.runtime.backends.nvidia.tensorrt_state import TensorRTState
from wfvae.runtime.dlpack import DeviceArray
from wfvae.spec.frames import SPATIAL_RATIO
from wfvae.spec.manifest import STEP, GraphSpec, Manifest
from wfvae.spec.tensorrt_api import FLAVOURS, TensorRT
from wfvae.spec.tensorrt_engines import DIRECT_LATENTS, Gpu, Target, engine_records, find_engine, read_engine


class TensorRTStep:
    """A step graph's engine. Safe to use from several threads, each with its own states."""

    def __init__(self, engine: LoadedEngine, cuda_graphs: bool, device_id: int) -> None:
        self.graph, self.engine = engine.graph, engine
        self.memory = CudaMemory(engine.device, device_id)
        self._cuda_graphs = cuda_graphs
        self.fallback: str | None = None
        """Why CUDA graphs are not used although they are switched on; None if they are used."""

    def new_state(self, batch: int, height: int, width: int) -> TensorRTState:
        """Raises `InputError` if the engine takes no such batch or size, and `ResourceError`."""
        self.engine.require_size(batch, height, width)
        return TensorRTState(self.engine, batch, height, width, self._cuda_graphs)

    def step(
        self, state: StreamState, x: Tensor, start: BoolArray, end: BoolArray, on_device: bool = False
    ) -> Tensor:
        assert isinstance(state, TensorRTState)
        profile = self.engine.choose(x.shape[0], *_clip_size(self.graph, x))
        shape = output_shape(self.graph, x)
        target = self.memory.empty(shape) if on_device else None
        with state.stepping():
            binding = state.stage(x, start, end, shape, target)
            result = state.buffers.run(lambda: self._enqueue(state, profile, binding), shape)
            state.swap()
        return result

    def _enqueue(self, state: TensorRTState, profile: int, binding: Binding) -> None:
        if state.graphs is not None and self.engine.record.profiles[profile].steady:
            if state.graphs.run(state.parity, profile, binding):
                return
            self.fallback = state.graphs.fallback
        self.engine.enqueue(profile, binding)


class TensorRTDirect:
    """A direct graph's engine, for verification. Threads that use it wait for each other."""

    def __init__(self, engine: LoadedEngine) -> None:
        self._graph, self.engine = engine.graph, engine
        self._buffers = StepBuffers(engine.device)
        self._running = threading.Lock()
        weakref.finalize(self, engine.device.release_when_idle, self._buffers)

    def run(self, x: FloatArray) -> FloatArray:
        """Returns the graph's output for whole clips.

        An image runs as the head of a clip of equal frames, which cannot change it: alone it would
        leave tensors without frames inside the graph. A clip of two latents cannot run so: with
        linear interpolation of time, its last frames depend on being the last.

        Raises `InputError` if the engine takes no clip of this length or size.
        """
        if x.shape[1] > 1:
            return self._run(x)
        ratio = self._graph.stream.ratio if self._graph.direction == "encoder" else 1
        clip = np.repeat(x, 1 + (DIRECT_LATENTS - 1) * ratio, axis=1)
        return self._run(clip)[:, :1]

    def _run(self, x: FloatArray) -> FloatArray:
        engine, buffers = self.engine, self._buffers
        profile = engine.choose(x.shape[0], *_clip_size(self._graph, x))
        shape = output_shape(self._graph, x)

        def enqueue() -> None:
            x_at, output_at = buffers.addresses
            names = self._graph.inputs[0].name, self._graph.outputs[0].name
            binding = Binding({names[0]: (x_at, x.shape)}, {names[1]: (output_at, shape)})
            engine.enqueue(profile, binding)

        with self._running, engine.device.draining():
            buffers.stage((x,), shape)
            result = buffers.run(enqueue, shape)
            assert not isinstance(result, DeviceArray)
            return result


class TensorRTBackend:
    """Opens a bundle's engines on one GPU."""

    def __init__(
        self,
        bundle: Path,
        manifest: Manifest,
        options: BackendOptions,
        *,
        libraries: Sequence[TensorRT] = (),
        cuda: Cuda | None = None,
    ) -> None:
        """Raises `MissingExtraError` without the packages, and `DeviceError` without GPU.

        By default the libraries are those that the bundle's engines were built with.
        """
        self._bundle, self._manifest, self._options = bundle, manifest, options
        libraries = libraries or load_libraries(manifest)
        cuda = cuda or Cuda(options.device_id)
        device = Device(cuda)
        self._loaders = {trt.flavour.name: EngineLoader(trt, device) for trt in libraries}
        self._gpu = gpu_here(cuda)
        # Weak, so that closing a session releases its memory.
        self._sessions: weakref.WeakSet[TensorRTStep | TensorRTDirect] = weakref.WeakSet()

    def describe(self) -> dict[str, str]:
        graphs = "on" if self._options.cuda_graphs else "off"
        used = dict.fromkeys(session.engine.trt for session in list(self._sessions))
        libraries = list(used) or [loader.trt for loader in self._loaders.values()]
        for session in list(self._sessions):
            if isinstance(session, TensorRTStep) and session.fallback:
                graphs = f"fell back: {session.fallback}"
        return {
            "name": "tensorrt",
            "flavour": ", ".join(trt.flavour.name for trt in libraries),
            "version": ", ".join(trt.version for trt in libraries),
            "device": f"cuda:{self._options.device_id}",
            "gpu": self._gpu.name,
            "compute_capability": self._gpu.compute_capability,
            "driver": driver_version() or "unknown",
            "tf32": str(self._options.tf32).lower(),
            "cuda_graphs": graphs,
        }

    def open_step(self, graph: GraphSpec) -> TensorRTStep:
        step = TensorRTStep(self._load(graph), self._options.cuda_graphs, self._options.device_id)
        self._sessions.add(step)
        return step

    def open_direct(self, graph: GraphSpec) -> TensorRTDirect:
        direct = TensorRTDirect(self._load(graph))
        self._sessions.add(direct)
        return direct

    def _load(self, graph: GraphSpec) -> LoadedEngine:
        """Raises `BundleError` unless there is an unchanged engine for graph, GPU and version."""
        [key] = [key for key, found in self._manifest.graphs.items() if found.file == graph.file]
        versions = {name: loader.trt.version for name, loader in self._loaders.items()}
        record = find_engine(self._manifest, self._bundle, key, self._gpu, versions, self._options.tf32)
        content = read_engine(record, self._bundle)
        loader = self._loaders[record.target.flavour]
        return loader.load(graph, record, content, record.command(self._bundle))


def load_libraries(manifest: Manifest) -> list[TensorRT]:
    """Returns the installed ones among the libraries that made the bundle's engines.

    Of a bundle without engines, any one. Raises `MissingExtraError` if none is installed.
    """
    needed = {record.target.flavour for record in engine_records(manifest)}
    found: list[TensorRT] = []
    missing: list[MissingExtraError] = []
    for flavour in FLAVOURS.values():
        if flavour.name in needed or not (needed or found):
            try:
                found.append(TensorRT.load(flavour))
            except MissingExtraError as error:
                missing.append(error)
    if not found:
        raise missing[0]
    return found


def gpu_here(cuda: Cuda) -> Gpu:
    """Returns what this GPU is."""
    return Gpu(*cuda.name_and_capability())


def target_here(trt: TensorRT, cuda: Cuda) -> Target:
    """Returns what TensorRT builds engines for on this machine."""
    gpu = gpu_here(cuda)
    return Target(trt.flavour.name, trt.version, (gpu.compute_capability,), gpu.name)


def _clip_size(graph: GraphSpec, x: Tensor) -> tuple[int, int, int]:
    """Returns latents, height and width of the video that an input stands for."""
    count, _, height, width = x.shape[1:]
    if graph.direction == "decoder":
        return count, height * SPATIAL_RATIO, width * SPATIAL_RATIO
    latents = count // graph.stream.ratio if graph.kind == STEP else 1 + (count - 1) // graph.stream.ratio
    return latents, height, width
