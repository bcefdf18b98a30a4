"""Encoding the units of one frame size: several videos at once, in the rows of one pool."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import av
import numpy as np

from wfvae.errors import ResourceError
from wfvae.runtime.backends.base import FloatArray
from wfvae.runtime.bundle import Bundle
from wfvae.runtime.dataset.decoding import DecoderFailure, DecoderProcess, WindowStart
from wfvae.runtime.dataset.frame_memory import Picture
from wfvae.runtime.dataset.options import ClipOptions
from wfvae.runtime.dataset.plan import Unit
from wfvae.runtime.dataset.shards import Failure, Sample, describe_latents
from wfvae.runtime.dataset.storage import spool
from wfvae.runtime.feeds import EncoderFeed
from wfvae.runtime.pool import PooledStream, StreamPool

ATTEMPTS = 2
"""How often a video is tried whose decoder crashed or hung, or whose file could not be reached."""

Progress = Callable[[int], None]
"""Called with the frames that were read since the last call."""
EncoderStream = PooledStream[EncoderFeed]


@dataclass
class _Lane:
    """One unit that is being decoded, and the stream of its current window."""

    unit: Unit
    decoder: DecoderProcess
    attempt: int
    stream: EncoderStream | None = None
    samples: list[Sample] = field(default_factory=list)
    frames: int = 0
    """Frames read."""


class SizeBatch:
    """Encodes units of one frame size, several at a time.

    Decoder processes are taken from `decoders` and put back there. One more of them than rows
    opens the next video while these are encoded. `files` closes the files of samples.
    """

    def __init__(
        self,
        bundle: Bundle,
        options: ClipOptions,
        decoders: list[DecoderProcess],
        progress: Progress,
        files: ExitStack,
    ) -> None:
        self.samples: list[Sample] = []
        """Complete ones."""
        self.failures: list[Failure] = []
        self.engine_seconds = 0.0
        self._bundle, self._options, self._progress = bundle, options, progress
        self._decoders, self._files = decoders, files
        self._is_half = options.dtype == "fp16"
        self._latents = describe_latents(bundle.manifest, options)
        self._pending: dict[EncoderStream, Sample] = {}
        """Streams that have not returned all of their latents."""

    def encode(self, units: Sequence[Unit], rows: int, share: float) -> None:
        """Encodes all units; the results are in `samples` and `failures`.

        Args:
            rows: units at a time; fewer where so many do not fit into memory.
            share: of the memory that is free.

        Units of which not even one fits have failed.
        """
        waiting = deque((unit, 1) for unit in units)
        size = {"height": units[0].height, "width": units[0].width}
        chunk = self._bundle.default_chunk("encoder", **size)
        while not self._bundle.fits("encoder", **size, streams=rows, chunk=chunk, share=share):
            if rows == chunk == 1:
                break
            rows, chunk = (rows // 2, chunk) if rows > 1 else (1, chunk // 2)
        try:
            pool = self._bundle.encoder_pool(**size, rows=rows, chunk=chunk)
        except ResourceError as error:
            self.failures += [Failure(name, str(error)) for name in {unit.video.name for unit in units}]
            return
        step = chunk * self._bundle.ratio
        opened: deque[_Lane] = deque()
        lanes: list[_Lane] = []
        with pool:
            while waiting or opened or lanes or self._pending:
                while waiting and self._decoders:
                    unit, attempt = waiting.popleft()
                    lane = _Lane(unit, self._decoders.pop(), attempt)
                    lane.decoder.decode(unit, self._options, step)
                    opened.append(lane)
                while opened and len(lanes) < rows:
                    lanes.append(opened.popleft())
                for lane in list(lanes):
                    if self._feed(lane, pool):
                        continue
                    lanes.remove(lane)
                    self._decoders.append(lane.decoder)
                    if lane.attempt and lane.attempt <= ATTEMPTS:
                        waiting.append((lane.unit, lane.attempt))
                self._step(pool)
            self.engine_seconds = pool.engine_seconds

    def _feed(self, lane: _Lane, pool: StreamPool[EncoderFeed]) -> bool:
        """Queues frames until the lane's stream can run. Returns False at the unit's end."""
        try:
            while lane.stream is None or not lane.stream.runnable:
                message = lane.decoder.receive()
                if isinstance(message, WindowStart):
                    self._end_window(lane, pool)
                    self._begin_window(lane, pool, message)
                elif isinstance(message, np.ndarray):
                    self._queue(lane, message)
                else:
                    self._end_window(lane, pool)
                    self._end_unit(lane)
                    return False
        except DecoderFailure as error:
            self._fail(lane, pool, error)
            return False
        return True

    def _begin_window(self, lane: _Lane, pool: StreamPool[EncoderFeed], start: WindowStart) -> None:
        unit, options = lane.unit, self._options
        window = None if options.frames is None else start.window
        about = {
            "source": unit.video.name,
            "window": {"number": start.window, "first_frame": start.first_frame, "stride": options.stride},
            "fps": start.fps,
            "source_height": start.source_height,
            "source_width": start.source_width,
            "height": unit.height,
            "width": unit.width,
            "latents": self._latents,
            "columns": unit.video.columns,
        }
        sample = Sample(unit.index, window, about, self._files.enter_context(spool()))
        lane.stream = pool.open()
        lane.samples.append(sample)
        self._pending[lane.stream] = sample

    def _queue(self, lane: _Lane, frames: Picture) -> None:
        assert lane.stream is not None
        sample = lane.samples[-1]
        if self._options.preview and not sample.frames:
            sample.preview = encode_jpeg(frames[0])
        sample.frames += len(frames)
        lane.frames += len(frames)
        lane.stream.push(frames)
        self._progress(len(frames))

    def _end_window(self, lane: _Lane, pool: StreamPool[EncoderFeed]) -> None:
        """Finishes the current window, or drops it if the video ended within it."""
        if lane.stream is None:
            return
        if self._options.frames in (None, lane.samples[-1].frames):
            lane.stream.finish()
        else:
            self._drop(lane, pool)
        lane.stream = None

    def _end_unit(self, lane: _Lane) -> None:
        if not lane.samples and not lane.unit.first_window:
            wanted = self._options.window_span
            problem = f"the video has {lane.frames} frames"
            self.failures.append(
                Failure(lane.unit.video.name, f"{problem}; a window needs {wanted}", lane.attempt)
            )
        lane.attempt = 0

    def _drop(self, lane: _Lane, pool: StreamPool[EncoderFeed]) -> None:
        """Removes the current, incomplete window."""
        assert lane.stream is not None
        del self._pending[lane.stream]
        del lane.samples[-1]
        pool.drop(lane.stream)
        lane.stream = None

    def _fail(self, lane: _Lane, pool: StreamPool[EncoderFeed], error: DecoderFailure) -> None:
        """Drops what is incomplete. Where another attempt may succeed, that is all of the unit."""
        if lane.stream is not None:
            self._drop(lane, pool)
        if error.may_pass:
            for stream, sample in list(self._pending.items()):
                if sample in lane.samples:
                    del self._pending[stream]
                    pool.drop(stream)
            self.samples = [sample for sample in self.samples if sample not in lane.samples]
        if error.may_pass and lane.attempt < ATTEMPTS:
            lane.attempt += 1
            return
        self.failures.append(Failure(lane.unit.video.name, str(error), lane.attempt))
        lane.attempt = 0

    def _step(self, pool: StreamPool[EncoderFeed]) -> None:
        """Runs one step, and gives each sample its latents."""
        for stream, latents in pool.step().items():
            if len(latents):
                self._pending[stream].append(self._stored(latents))
        # A stream whose frames ended where a step ended has finished without another one.
        for stream in [stream for stream in self._pending if stream.finished]:
            self._complete(self._pending.pop(stream))

    def _complete(self, sample: Sample) -> None:
        if sample.is_finite:
            self.samples.append(sample)
            return
        name, half = sample.about["source"], " in fp16; use --dtype fp32" if self._is_half else ""
        self.failures.append(Failure(name, f"its latents hold NaN or infinite values{half}"))

    def _stored(self, latents: FloatArray) -> Any:
        """Returns the wanted channels in the wanted type."""
        latents = latents[:, : self._latents["channels"]]
        with np.errstate(over="ignore"):  # infinite values are reported with the sample
            return latents.astype(np.float16) if self._is_half else latents


def encode_jpeg(picture: Picture) -> bytes:
    """Encodes a picture (H, W, 3) uint8 as JPEG."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mjpeg") as container:
        stream: Any = container.add_stream("mjpeg", options={"qmin": "2", "qmax": "2"})
        stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], "yuvj420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()
