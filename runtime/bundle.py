"""An opened bundle: streams, pools and whole arrays through its graphs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from wfvae.errors import BundleError, InputError
from wfvae.runtime.backends.base import Backend, BackendOptions, DirectSession, StepSession
from wfvae.runtime.backends.registry import check_backend, open_backend
from wfvae.runtime.closing import Closing
from wfvae.runtime.dlpack import shape_of
from wfvae.runtime.feed import Output
from wfvae.runtime.feeds import DecoderFeed, EncoderFeed, PixelType
from wfvae.runtime.file_check import FileCheck
from wfvae.runtime.pool import StreamPool
from wfvae.runtime.snapshot import Snapshot
from wfvae.runtime.stream import DecoderStream, EncoderStream
from wfvae.runtime.whole_clip import SHARE_OF_FREE_MEMORY, run_clip
from wfvae.spec.exactness import clips_are_exact
from wfvae.spec.frames import DEFAULT_CHUNK, SPATIAL_RATIO, latent_frames, padded_size, video_frames
from wfvae.spec.manifest import DIRECT, GraphSpec, Manifest
from wfvae.spec.memory import MemoryPlan, plan_memory
from wfvae.spec.onnx_file import has_volumes
from wfvae.spec.stream import Direction
from wfvae.spec.tuning import Setting, TunedChunk, Tuning


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
        backend: `onnxruntime`; `openvino` (CPU); `tensorrt`, which needs engines built on this GPU
            by `wfvae build`; or `auto`, which is `onnxruntime`.
        provider: ONNX Runtime's `cpu` or `cuda`; `auto` uses CUDA where it works.
        device_id: which GPU.
        threads: CPU threads; None uses all cores.
        tf32: let CUDA round fp32 products to TF32. With `tensorrt`: use engines that were built so.
        cuda_graphs: with `tensorrt`, launch the steady step as a CUDA graph where it can be
            captured.
        precision_hint: with `openvino`, the precision of convolutions and matrix products: `fp32`
            (the default), or `bf16`, which is faster on CPUs that have it, and rounds to 8 bits.
        memory_limit: bytes; a stream that needs more raises `ResourceError` before anything is
            allocated. None takes what the machine has available, and no limit on a GPU.
        verify: check the hash of every file. That of the weights is computed while the first
            session loads them, and what differs is raised there. `tensorrt` always checks, and
            before anything is loaded, since an engine is code.

    Raises:
        BundleError: the bundle is missing, damaged or changed, or cannot run here.
        InputError: an option that the backend does not have.
        MissingExtraError: the backend is not installed.

    Example:
        >>> import numpy as np
        >>> from wfvae.export.bundle import export_bundle
        >>> from wfvae.model.vae import WFVAE
        >>> _ = export_bundle(WFVAE.from_pretrained("tiny"), Path("bundle"))
        >>> with open_bundle("bundle") as bundle:
        ...     latents = bundle.encode(np.zeros((5, 16, 24, 3), np.uint8))
        ...     video = bundle.decode(latents)
        >>> latents.shape, video.shape
        ((2, 16, 2, 3), (5, 16, 24, 3))
    """
    options = BackendOptions(provider, device_id, threads, tf32, cuda_graphs, precision_hint)
    check_backend(backend, options)
    path = Path(path)
    manifest = Manifest.read(path)
    check = FileCheck(path, manifest) if verify or backend == "tensorrt" else None
    if backend == "tensorrt" and check is not None:
        check.wait()
    return Bundle(path, manifest, open_backend(backend, path, manifest, options), memory_limit, check)


S = TypeVar("S")


class Bundle(Closing):
    """An opened bundle. Its methods may be called from several threads; the streams they return
    belong to one thread each.

    In all methods, `height` and `width` are the video's, any size >= 1x1, and `chunk` is the
    latents per step: by default `default_chunk`. Results do not depend on it.

    `output` says where results are: `host` returns numpy arrays, `device` arrays in the memory of
    the backend's device, with `__dlpack__`: see `docs/arrays.md`.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        backend: Backend,
        memory_limit: int | None = None,
        check: FileCheck | None = None,
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.backend = backend
        self.memory_limit = memory_limit
        self._steps: dict[Direction, StepSession] = {}
        self._directs: dict[Direction, DirectSession] = {}
        self._check = check
        self._tuning: Tuning | None = None
        self._opening = threading.Lock()  # two threads at once would load the weights twice

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

    @cached_property
    def has_volumes(self) -> bool:
        """Whether the graphs' convolutions are 3-D. Raises `BundleError` if a file is damaged."""
        return has_volumes(self.path / self.manifest.graphs["encoder"].file)

    def encoder(
        self, *, height: int, width: int, chunk: int | None = None, output: Output = "host"
    ) -> EncoderStream:
        """Opens a stream of video to latents."""
        chunk = self._admit("encoder", height, width, 1, chunk)
        session = self.step_session("encoder")
        feed = EncoderFeed(session.graph, height, width, session.memory, output)
        return EncoderStream(session, feed, chunk, self.identity)

    def decoder(
        self,
        *,
        height: int,
        width: int,
        frames: int | None = None,
        chunk: int | None = None,
        pixels: PixelType = "uint8",
        output: Output = "host",
    ) -> DecoderStream:
        """Opens a stream of latents to video.

        Args:
            frames: the video's true T, if known; else it is 1 + r n, or what is passed to
                `finish(frames=T)`.
            pixels: `uint8`, or `float32` in about [-1, 1], not clamped.

        Raises `InputError` for uint8 frames with `output="device"` on a GPU.
        """
        chunk = self._admit("decoder", height, width, 1, chunk)
        session = self.step_session("decoder")
        feed = DecoderFeed(session.graph, height, width, frames, pixels, session.memory, output)
        return DecoderStream(session, feed, chunk, self.identity)

    def encoder_pool(
        self, *, height: int, width: int, rows: int, chunk: int | None = None
    ) -> StreamPool[EncoderFeed]:
        """Opens a pool that encodes unrelated videos of one size, `rows` at a time."""
        chunk = self._admit("encoder", height, width, rows, chunk)
        session = self.step_session("encoder")
        new_feed = partial(EncoderFeed, session.graph, height, width, session.memory)
        return StreamPool(session, (height, width), rows, chunk, new_feed)

    def decoder_pool(
        self, *, height: int, width: int, rows: int, chunk: int | None = None
    ) -> StreamPool[DecoderFeed]:
        """Opens a pool that decodes unrelated latents of one size, `rows` at a time."""
        chunk = self._admit("decoder", height, width, rows, chunk)
        session = self.step_session("decoder")
        new_feed = partial(DecoderFeed, session.graph, height, width, memory=session.memory)
        return StreamPool(session, (height, width), rows, chunk, new_feed)

    def restore(
        self, snapshot: bytes | bytearray | memoryview | str | Path, *, chunk: int | None = None
    ) -> EncoderStream | DecoderStream:
        """Opens a stream in the state of a snapshot, given as bytes or as its file."""
        content = (
            Snapshot.read(snapshot) if isinstance(snapshot, (str, Path)) else Snapshot.from_bytes(snapshot)
        )
        open_stream = self.encoder if content.direction == "encoder" else self.decoder
        stream = open_stream(height=content.height, width=content.width, chunk=chunk)
        stream.restore(content)
        return stream

    def encode(self, frames: Any, *, chunk: int | None = None, output: Output = "host") -> Any:
        """Encodes a video (T, H, W, 3), uint8 or floating point in [-1, 1], T >= 1.

        With `chunk`, in steps. Without, whole by the direct graph where that gives a stream's bits
        (`wfvae.spec.exactness`) and fits `memory_limit`, by default half of the free memory.

        Returns:
            Latents (1 + ceil((T-1)/r), D, h, w) float32.
        """
        shape = shape_of(frames, "frames")
        if len(shape) != 4:
            raise InputError(f"frames have shape {shape}; expected (T, H, W, 3)")
        count, height, width, _ = shape
        if chunk is None and (session := self._clip_session("encoder", count, height, width)) is not None:
            feed = EncoderFeed(self.manifest.graphs["encoder"], height, width, output=output)
            return run_clip(session, feed, frames)
        with self.encoder(height=height, width=width, chunk=chunk, output=output) as stream:
            return stream.run(frames)

    def decode(
        self,
        latents: Any,
        *,
        frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        chunk: int | None = None,
        pixels: PixelType = "uint8",
        output: Output = "host",
    ) -> Any:
        """Decodes unscaled latents (t, D, h, w) to a video (T, H, W, 3).

        T (`frames`), H and W are at most what the latents hold, and by default that. `chunk` is
        as in `encode`.
        """
        shape = shape_of(latents, "latents")
        if len(shape) != 4:
            raise InputError(f"latents have shape {shape}; expected (t, D, h, w)")
        if frames is None and shape[0]:
            frames = video_frames(shape[0], self.ratio)
        height, width = height or SPATIAL_RATIO * shape[2], width or SPATIAL_RATIO * shape[3]
        if (
            chunk is None
            and (session := self._clip_session("decoder", frames or 0, height, width)) is not None
        ):
            graph = self.manifest.graphs["decoder"]
            feed = DecoderFeed(graph, height, width, frames, pixels, output=output)
            return run_clip(session, feed, latents)
        size = {"height": height, "width": width}
        with self.decoder(**size, frames=frames, chunk=chunk, pixels=pixels, output=output) as stream:
            return stream.run(latents)

    def _clip_session(
        self, direction: Direction, frames: int, height: int, width: int
    ) -> DirectSession | None:
        """Returns the session that computes a video of T frames whole, if it gives the stream's
        bits and the video fits.
        """
        if frames < 1 or f"{direction}.{DIRECT}" not in self.manifest.graphs:
            return None
        self._require_size(height, width)
        exact = clips_are_exact(self.backend.describe(), self.manifest.precision, volumes=self.has_volumes)
        latents = latent_frames(frames, self.ratio)
        plan = plan_memory(self.manifest, direction, height, width, 1, latents, whole_clip=True)
        if not exact or not plan.fits(self.memory_limit, SHARE_OF_FREE_MEMORY):
            return None
        return self.direct_session(direction)

    def plan(
        self, direction: Direction, *, height: int, width: int, streams: int = 1, chunk: int | None = None
    ) -> MemoryPlan:
        """Returns the bytes that streams would hold, before anything is allocated."""
        chunk = self.default_chunk(direction, height=height, width=width) if chunk is None else chunk
        return plan_memory(self.manifest, direction, height, width, streams, chunk)

    def default_chunk(self, direction: Direction, *, height: int, width: int) -> int:
        """Returns what `wfvae bench --tune` chose for this size, backend and machine, else 4.

        Where that does not fit the memory limit, it is the largest of 4, 2 and 1 that does. Raises
        `BundleError` if the file of these choices is damaged.
        """
        if self._tuning is None:
            self._tuning = Tuning.read(self.path, self.identity)
        chunks = [DEFAULT_CHUNK, DEFAULT_CHUNK // 2, 1]
        if self._tuning.entries:
            setting = Setting.here(self.backend.describe())
            entry = self._tuning.find(direction, *padded_size(height, width), setting)
            chunks = [entry.chunk, *chunks] if entry else chunks
        size = {"height": height, "width": width}
        return next((chunk for chunk in chunks if self.fits(direction, **size, streams=1, chunk=chunk)), 1)

    def fits(
        self, direction: Direction, *, height: int, width: int, streams: int, chunk: int, share: float = 1.0
    ) -> bool:
        """Whether streams fit the memory limit, or without one `share` of the free memory."""
        plan = plan_memory(self.manifest, direction, height, width, streams, chunk)
        return not self._has_limit or plan.fits(self.memory_limit, share)

    def store_tuning(self, *entries: TunedChunk) -> None:
        """Stores chosen chunk lengths in the bundle's folder; its identity does not change.

        Raises `ResourceError` if the folder cannot be written.
        """
        self._tuning = Tuning.store(self.path, self.identity, *entries)

    def step_session(self, direction: Direction) -> StepSession:
        """Returns the session of a step graph, opened at first use and shared by all streams."""
        with self._opening:
            if direction not in self._steps:
                self._steps[direction] = self._checked(self.backend.open_step, direction)
            return self._steps[direction]

    def direct_session(self, direction: Direction) -> DirectSession:
        """Returns the session of a whole-clip graph. Raises `BundleError` if there is none."""
        key = f"{direction}.direct"
        if key not in self.manifest.graphs:
            raise BundleError(f"the bundle has no {key} graph; export it without --no-direct")
        with self._opening:
            if direction not in self._directs:
                self._directs[direction] = self._checked(self.backend.open_direct, key)
            return self._directs[direction]

    def _checked(self, open_graph: Callable[[GraphSpec], S], key: str) -> S:
        """Opens a graph while the weights are checked. Returns its session if they are whole."""
        try:
            return open_graph(self.manifest.graphs[key])
        finally:
            if self._check is not None:
                self._check.wait()  # what it raises says more than a library that read the same file

    def admit_direct(self, direction: Direction, *, height: int, width: int, latents: int) -> None:
        """Raises `ResourceError` if a clip of so many latents is too large for a direct graph."""
        if self._has_limit and f"{direction}.{DIRECT}" in self.manifest.graphs:
            plan = plan_memory(self.manifest, direction, height, width, 1, latents, whole_clip=True)
            plan.require(self.memory_limit)

    def _admit(self, direction: Direction, height: int, width: int, streams: int, chunk: int | None) -> int:
        """Refuses what cannot run or would not fit, and returns the chunk."""
        if chunk is not None and chunk < 1:
            raise InputError(f"chunk is {chunk}; expected at least 1 latent per step")
        self._require_size(height, width)
        if chunk is None:
            chunk = self.default_chunk(direction, height=height, width=width)
        if self._has_limit:
            plan = plan_memory(self.manifest, direction, height, width, streams, chunk)
            plan.require(self.memory_limit)
        return chunk

    def _require_size(self, height: int, width: int) -> None:
        fixed = self.manifest.size
        if fixed is not None and padded_size(height, width) != fixed:
            raise InputError(
                f"this bundle was exported for {fixed[0]}x{fixed[1]} only, and the video is {height}x{width};"
                " export another one with --size, or --size dynamic"
            )

    @property
    def _has_limit(self) -> bool:
        """Whether memory is compared with a plan: a GPU's own is not that of the machine."""
        on_gpu = self.backend.describe().get("device", "").startswith("cuda")
        return self.memory_limit is not None or not on_gpu
