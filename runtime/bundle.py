"""An opened bundle: streams, pools, whole arrays and whole files through its graphs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import numpy as np

from wfvae.errors import BundleError, InputError
from wfvae.runtime.backends.base import Backend, DirectSession, FloatArray, StepSession
from wfvae.runtime.decoder_feed import DecoderFeed, PixelType
from wfvae.runtime.encoder_feed import EncoderFeed
from wfvae.runtime.pixels import Frames
from wfvae.runtime.pool import StreamPool
from wfvae.runtime.snapshot import Snapshot
from wfvae.runtime.stream import DEFAULT_CHUNK, DecoderStream, EncoderStream
from wfvae.spec.frames import padded_size, video_frames
from wfvae.spec.manifest import Manifest
from wfvae.spec.memory import MemoryPlan, plan_memory
from wfvae.spec.stream import Direction
from wfvae.spec.tuning import Setting, TunedChunk, Tuning

BACKENDS = ("auto", "onnxruntime", "tensorrt", "openvino")


def open_bundle(
    path: str | Path,
    backend: str = "auto",
    *,
    provider: str = "auto",
    device_id: int = 0,
    threads: int | None = None,
    tf32: bool = False,
    cuda_graphs: bool = False,
    precision_hint: str | None = None,
    memory_limit: int | None = None,
    verify: bool = True,
) -> Bundle:
    """Opens a bundle.

    Args:
        path: the bundle's directory.
        backend: `onnxruntime`; `openvino` (CPU); `tensorrt`, which needs engines made on this GPU
            by `wfvae build`; or `auto`, which is `onnxruntime`.
        provider: ONNX Runtime's `cpu` or `cuda`; `auto` takes CUDA where this build of ONNX Runtime
            has it.
        device_id: which GPU.
        threads: CPU threads; None takes all cores.
        tf32: let CUDA round fp32 products to TF32. With `tensorrt`: use engines that were built so.
        cuda_graphs: with `tensorrt`, launch the steady step as a CUDA graph where it can be
            captured.
        precision_hint: with `openvino`, what convolutions and matrix products are computed in:
            `fp32` (None means that), or `bf16`, which is faster where the CPU has it and rounds to
            8 bits.
        memory_limit: bytes; a stream that would not fit is refused with the number before anything
            is allocated.
        verify: check the hash of every file (reads the weights once). `tensorrt` always checks,
            since an engine is code.

    Raises:
        BundleError: the bundle is missing, damaged or changed, or cannot run here.
        InputError: an option that the backend does not have.
        MissingExtraError: the backend is not installed.
    """
    if backend not in BACKENDS:
        raise BundleError(f"backend is {backend!r}; this version has {', '.join(BACKENDS)}")
    if precision_hint is not None and backend != "openvino":
        raise InputError(
            f"the precision hint {precision_hint} was given for the backend {backend}; only openvino has one"
        )
    if provider == "cuda" and backend == "openvino":
        raise InputError(
            "the provider cuda was given for the backend openvino, which runs on the CPU; leave it out, or"
            " use onnxruntime"
        )
    path = Path(path)
    manifest = Manifest.read(path)
    if verify or backend == "tensorrt":
        manifest.verify_files(path)
    if backend == "tensorrt":
        from wfvae.runtime.backends.nvidia.tensorrt_backend import TensorRTBackend, TensorRTOptions

        return Bundle(
            path,
            manifest,
            TensorRTBackend(path, manifest, TensorRTOptions(device_id, tf32, cuda_graphs)),
            memory_limit,
        )
    if backend == "openvino":
        from wfvae.runtime.backends.openvino import OpenVinoBackend, OpenVinoOptions

        return Bundle(
            path,
            manifest,
            OpenVinoBackend(path, OpenVinoOptions(precision_hint or "fp32", threads)),
            memory_limit,
        )
    from wfvae.runtime.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeOptions

    options = OnnxRuntimeOptions(provider=provider, device_id=device_id, threads=threads, tf32=tf32)
    return Bundle(path, manifest, OnnxRuntimeBackend(path, options), memory_limit)


class Bundle:
    """An opened bundle. Its methods may be called from several threads; the streams they return
    belong to one thread each.
    """

    def __init__(
        self, path: Path, manifest: Manifest, backend: Backend, memory_limit: int | None = None
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.backend = backend
        self.memory_limit = memory_limit
        self._steps: dict[Direction, StepSession] = {}
        self._directs: dict[Direction, DirectSession] = {}
        self._tuning: Tuning | None = None
        self._opening = threading.Lock()  # two threads that came first together would load the weights twice

    def __enter__(self) -> Bundle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Releases the sessions. Streams that are still open keep theirs."""
        self._steps.clear()
        self._directs.clear()

    @property
    def identity(self) -> str:
        """The bundle's hash, which latents and snapshots name."""
        return self.manifest.identity

    @property
    def ratio(self) -> int:
        """Video frames per latent."""
        return self.manifest.graphs["encoder"].stream.ratio

    # Streams --------------------------------------------------------------------------------------

    def encoder(self, *, height: int, width: int, chunk: int | None = None) -> EncoderStream:
        """Opens a stream for video of height x width (any size >= 1x1), advancing by at most
        `chunk` latents per step.

        Without `chunk`, here and elsewhere, it is `default_chunk`; results do not depend on it.
        """
        chunk = self._admit("encoder", height, width, 1, chunk)
        feed = EncoderFeed(self.manifest.graphs["encoder"], height, width)
        return EncoderStream(self.step_session("encoder"), feed, chunk, self.identity)

    def decoder(
        self,
        *,
        height: int,
        width: int,
        frames: int | None = None,
        chunk: int | None = None,
        pixels: PixelType = "uint8",
    ) -> DecoderStream:
        """Opens a stream that gives video of height x width.

        Args:
            frames: the video's true T, if known; else it is 1 + r n, or what `finish(frames=T)`
                says.
            pixels: `uint8`, or `float32` in about [-1, 1], not clamped.
        """
        chunk = self._admit("decoder", height, width, 1, chunk)
        feed = DecoderFeed(self.manifest.graphs["decoder"], height, width, frames, pixels)
        return DecoderStream(self.step_session("decoder"), feed, chunk, self.identity)

    def encoder_pool(
        self, *, height: int, width: int, rows: int, chunk: int | None = None
    ) -> StreamPool[EncoderFeed]:
        """A pool that encodes unrelated videos of one size, `rows` at a time."""
        chunk = self._admit("encoder", height, width, rows, chunk)
        graph = self.manifest.graphs["encoder"]
        return StreamPool(
            self.step_session("encoder"),
            height,
            width,
            rows,
            chunk,
            lambda: EncoderFeed(graph, height, width),
        )

    def decoder_pool(
        self, *, height: int, width: int, rows: int, chunk: int | None = None
    ) -> StreamPool[DecoderFeed]:
        """A pool that decodes unrelated latents of one size, `rows` at a time."""
        chunk = self._admit("decoder", height, width, rows, chunk)
        graph = self.manifest.graphs["decoder"]

        def new_feed(frames: int | None = None, pixels: PixelType = "uint8") -> DecoderFeed:
            return DecoderFeed(graph, height, width, frames, pixels)

        return StreamPool(self.step_session("decoder"), height, width, rows, chunk, new_feed)

    def restore(
        self, snapshot: bytes | bytearray | memoryview | str | Path, *, chunk: int | None = None
    ) -> EncoderStream | DecoderStream:
        """Opens the stream that a snapshot (its bytes, or its file) was taken of."""
        content = (
            Snapshot.from_bytes(snapshot)
            if isinstance(snapshot, (bytes, bytearray, memoryview))
            else Snapshot.read(snapshot)
        )
        open_stream: Callable[..., EncoderStream | DecoderStream] = (
            self.encoder if content.direction == "encoder" else self.decoder
        )
        stream = open_stream(height=content.height, width=content.width, chunk=chunk)
        stream.restore(content)
        return stream

    # Whole arrays --------------------------------------------------------------------------------

    def encode(self, frames: Frames, *, chunk: int | None = None) -> FloatArray:
        """Latents (1 + ceil((T-1)/r), D, h, w) float32 of a video (T, H, W, 3), uint8 or floating
        point in [-1, 1], T >= 1.
        """
        array = np.asarray(frames)
        if array.ndim != 4:
            raise InputError(f"frames have shape {array.shape}; expected (T, H, W, 3)")
        with self.encoder(height=array.shape[1], width=array.shape[2], chunk=chunk) as stream:
            return np.concatenate([stream.push(array), stream.finish()])

    def decode(
        self,
        latents: FloatArray,
        *,
        frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        chunk: int | None = None,
        pixels: PixelType = "uint8",
    ) -> Frames:
        """Video (T, H, W, 3) of unscaled latents (t, D, h, w). T, H, W default to the most that the
        latents hold.
        """
        array = np.asarray(latents)
        if array.ndim != 4:
            raise InputError(f"latents have shape {array.shape}; expected (t, D, h, w)")
        frames = frames if frames is not None or not len(array) else video_frames(len(array), self.ratio)
        size = {"height": height or 8 * array.shape[2], "width": width or 8 * array.shape[3]}
        with self.decoder(**size, frames=frames, chunk=chunk, pixels=pixels) as stream:
            result: Frames = np.concatenate([stream.push(array), stream.finish()])
            return result

    # Facts ----------------------------------------------------------------------------------------

    def plan(
        self, direction: Direction, *, height: int, width: int, streams: int = 1, chunk: int | None = None
    ) -> MemoryPlan:
        """Bytes that streams would hold, before anything is allocated."""
        chunk = self.default_chunk(direction, height=height, width=width) if chunk is None else chunk
        return plan_memory(self.manifest, direction, height, width, streams, chunk)

    def default_chunk(self, direction: Direction, *, height: int, width: int) -> int:
        """Latents per step where nothing else is asked for: what `wfvae bench --tune` chose for
        this size, backend and machine, else 4.

        It is 4, too, where the choice would not fit the memory limit. Raises `BundleError` if the
        file of these choices is damaged.
        """
        if self._tuning is None:
            self._tuning = Tuning.read(self.path, self.identity)
        if not self._tuning.entries:
            return DEFAULT_CHUNK
        entry = self._tuning.find(
            direction, *padded_size(height, width), Setting.here(self.backend.describe())
        )
        if entry is None:
            return DEFAULT_CHUNK
        planned = plan_memory(self.manifest, direction, height, width, 1, entry.chunk)
        return (
            entry.chunk
            if self.memory_limit is None or planned.total_bytes <= self.memory_limit
            else DEFAULT_CHUNK
        )

    def store_tuning(self, *entries: TunedChunk) -> None:
        """Keeps choices of the chunk length in the bundle's folder, for all who open it. The
        bundle's identity stays as it is.

        Raises `ResourceError` if the folder cannot be written.
        """
        self._tuning = Tuning.store(self.path, self.identity, *entries)

    def step_session(self, direction: Direction) -> StepSession:
        """The session of a direction's step graph, opened at first use and shared by all streams."""
        with self._opening:
            if direction not in self._steps:
                self._steps[direction] = self.backend.open_step(self.manifest.graphs[direction])
            return self._steps[direction]

    def direct_session(self, direction: Direction) -> DirectSession:
        """The session of a direction's whole-clip graph. Raises `BundleError` if the bundle has
        none.
        """
        key = f"{direction}.direct"
        if key not in self.manifest.graphs:
            raise BundleError(f"the bundle has no {key} graph; export it with --direct")
        with self._opening:
            if direction not in self._directs:
                self._directs[direction] = self.backend.open_direct(self.manifest.graphs[key])
            return self._directs[direction]

    def _admit(self, direction: Direction, height: int, width: int, streams: int, chunk: int | None) -> int:
        """Refuses what can't run or would not fit, before anything is allocated. Returns the chunk."""
        if chunk is not None and chunk < 1:
            raise InputError(f"chunk is {chunk}; expected at least 1 latent per step")
        size = padded_size(height, width)
        fixed = self.manifest.size
        if fixed is not None and size != fixed:
            raise InputError(
                f"this bundle was exported for {fixed[0]}x{fixed[1]} only, and the video is {height}x{width};"
                " export another one with --size, or --size dynamic"
            )
        if chunk is None:
            chunk = self.default_chunk(direction, height=height, width=width)
        if self.memory_limit is not None:
            self.plan(direction, height=height, width=width, streams=streams, chunk=chunk).require(
                self.memory_limit
            )
        return chunk
