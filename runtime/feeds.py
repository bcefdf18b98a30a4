"""The feeds of encoders, from video frames to latents, and of decoders, back to frames."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from wfvae.errors import InputError
from wfvae.runtime.backends.base import Array, FloatArray
from wfvae.runtime.feed import Feed
from wfvae.runtime.pixels import (
    Frames,
    check_frames,
    check_latents,
    to_float_frames,
    to_network,
    to_uint8_frames,
)
from wfvae.spec.frames import OutputWindow, latent_frames, latent_size, lead_frames, tail_frames, video_frames
from wfvae.spec.manifest import GraphSpec

PixelType = Literal["uint8", "float32"]


class EncoderFeed(Feed):
    """Frames (T, H, W, 3) in, latents (t, D, h, w) out."""

    def __init__(self, graph: GraphSpec, height: int, width: int) -> None:
        super().__init__(height, width)
        self.frames_seen = 0
        """Video frames pushed so far."""
        self.latents_given = 0
        """Latents returned so far."""
        self._ratio = graph.stream.ratio
        self._channels = int(graph.outputs[0].shape[2])
        self._dtype: np.dtype[Any] | None = None

    @property
    def finished(self) -> bool:
        return self.closed and self._queue.count == 0

    @property
    def ready(self) -> int:
        return self._queue.count // self._ratio

    def step_input(self, latents: int) -> FloatArray:
        return to_network(self._queue.first(latents * self._ratio))

    def accept_output(self, output: FloatArray, drained: bool) -> FloatArray:
        self._queue.remove(len(output) * self._ratio)
        self.started = True
        self.latents_given += len(output)
        return output

    def empty(self) -> FloatArray:
        return np.empty((0, self._channels, *latent_size(self.height, self.width)), np.float32)

    def layouts(self, counters: Mapping[str, int]) -> tuple[Array, Array]:
        dtype = np.float32 if counters["float"] else np.uint8
        return np.empty((0, self.height, self.width, 3), dtype), self.empty()

    def possible(self, counters: Mapping[str, int], waiting: int, ready: int) -> bool:
        seen, given, closed = counters["frames_seen"], counters["latents_given"], counters["closed"]
        if seen < 0 or given < ready or not _are_flags(counters, given > 0):
            return False
        if not seen:
            return not (waiting or given or closed)
        tail = tail_frames(seen, self._ratio) if closed else 0
        return lead_frames(self._ratio) + seen + tail == self._ratio * given + waiting

    def counters(self) -> dict[str, int]:
        return {
            "frames_seen": self.frames_seen,
            "latents_given": self.latents_given,
            "float": int(self._dtype == np.float32),
            "started": int(self.started),
            "closed": int(self.closed),
        }

    def push(self, data: Any) -> None:
        self._require_open()
        frames = check_frames(data, self.height, self.width)
        if not len(frames):
            return
        if self._dtype not in (None, frames.dtype):
            raise InputError(
                f"frames are {frames.dtype}, but those before were {self._dtype}; use one type in a stream"
            )
        self._dtype = frames.dtype
        if self.frames_seen == 0:
            self._queue.add(np.repeat(frames[:1], lead_frames(self._ratio), axis=0))
        self.frames_seen += len(frames)
        self._queue.add(frames)

    def close(self, frames: int | None = None) -> None:
        self._require_open()
        if not self.frames_seen:
            raise InputError("the stream has no frames; push at least 1 before finish")
        # The last frame is still queued wherever a group of r frames is incomplete.
        tail = tail_frames(self.frames_seen, self._ratio)
        if tail:
            self._queue.add(np.repeat(self._queue.last(), tail, axis=0))
        self.closed = True

    def restore(self, counters: Mapping[str, int], arrays: Mapping[str, Array]) -> None:
        super().restore(counters, arrays)
        self.frames_seen, self.latents_given = counters["frames_seen"], counters["latents_given"]
        dtype = np.dtype(np.float32 if counters["float"] else np.uint8)
        self._dtype = dtype if self.frames_seen else None


class DecoderFeed(Feed):
    """Latents (t, D, h, w) in, frames (T, H, W, 3) out."""

    def __init__(
        self,
        graph: GraphSpec,
        height: int,
        width: int,
        frames: int | None = None,
        pixels: PixelType = "uint8",
    ) -> None:
        super().__init__(height, width)
        _check_count(frames)
        if pixels not in ("uint8", "float32"):
            raise InputError(f"pixels is {pixels!r}; expected uint8 or float32")
        self.latents_seen = 0
        """Latents pushed so far."""
        self.channels = int(graph.inputs[0].shape[2])
        """Channels D of a latent."""
        self._stream = graph.stream
        self._frames = frames
        self._pixels = pixels
        self._window = OutputWindow(self._stream.drop)

    @property
    def frames_given(self) -> int:
        """Video frames returned so far."""
        return self._window.given

    @property
    def finished(self) -> bool:
        return self.closed and self._queue.count == 0 and self._window.given >= (self._frames or 0)

    @property
    def draining(self) -> bool:
        return self.closed and self._queue.count == 0 and not self.finished

    @property
    def ready(self) -> int:
        return self._queue.count

    def step_input(self, latents: int) -> FloatArray:
        if self.draining:
            return np.zeros((latents, self.channels, *latent_size(self.height, self.width)), np.float32)
        return self._queue.first(latents)

    def accept_output(self, output: FloatArray, drained: bool) -> Frames:
        if not drained:
            self._queue.remove(len(output) // self._stream.ratio)
        self.started = True
        part, self._window = self._window.take(len(output), self._frames)
        convert = to_uint8_frames if self._pixels == "uint8" else to_float_frames
        return convert(output[part], self.height, self.width)

    def empty(self) -> Frames:
        shape = (0, self.height, self.width, 3)
        return np.empty(shape, np.uint8) if self._pixels == "uint8" else np.empty(shape, np.float32)

    def layouts(self, counters: Mapping[str, int]) -> tuple[Array, Array]:
        latents = np.empty((0, self.channels, *latent_size(self.height, self.width)), np.float32)
        dtype = np.float32 if counters["float"] else np.uint8
        return latents, np.empty((0, self.height, self.width, 3), dtype)

    def possible(self, counters: Mapping[str, int], waiting: int, ready: int) -> bool:
        seen, frames, closed = counters["latents_seen"], counters["frames"], counters["closed"]
        ratio, window = self._stream.ratio, (counters["drop"], counters["given"])
        known = None if frames < 0 else frames
        done = seen - waiting
        if done < 0 or known == 0 or counters["given"] < ready or not _are_flags(counters, done > 0):
            return False
        longest = seen if known is None else latent_frames(known, ratio)
        if (seen != longest or not seen or known is None) if closed else seen > longest:
            return False
        _, passed = OutputWindow(self._stream.drop).take(ratio * done, known)
        drained = closed and not waiting and window == (0, known)
        return drained or window == (passed.drop, passed.given)

    def counters(self) -> dict[str, int]:
        return {
            "latents_seen": self.latents_seen,
            "drop": self._window.drop,
            "given": self._window.given,
            "frames": -1 if self._frames is None else self._frames,
            "float": int(self._pixels == "float32"),
            "started": int(self.started),
            "closed": int(self.closed),
        }

    def push(self, data: Any) -> None:
        self._require_open()
        latents = check_latents(data, self.channels, self.height, self.width)
        seen = self.latents_seen + len(latents)
        if self._frames is not None and seen > (expected := latent_frames(self._frames, self._stream.ratio)):
            raise InputError(
                f"{seen} latents were pushed, but a video of {self._frames} frames has {expected}"
            )
        self.latents_seen = seen
        self._queue.add(latents)

    def close(self, frames: int | None = None) -> None:
        self._require_open()
        if not self.latents_seen:
            raise InputError("the stream has no latents; push at least 1 before finish")
        _check_count(frames)
        if frames is not None and self._frames not in (None, frames):
            raise InputError(f"frames is {frames}, but the stream was opened with {self._frames}")
        total = frames or self._frames or video_frames(self.latents_seen, self._stream.ratio)
        expected = latent_frames(total, self._stream.ratio)
        if expected != self.latents_seen:
            raise InputError(
                f"{self.latents_seen} latents were pushed for a video of {total} frames, which has {expected}"
            )
        if self._window.given > total:
            raise InputError(
                f"frames is {total}, but {self._window.given} were returned already; pass `frames` when"
                " opening the decoder"
            )
        self._frames = total
        self.closed = True

    def restore(self, counters: Mapping[str, int], arrays: Mapping[str, Array]) -> None:
        super().restore(counters, arrays)
        self.latents_seen = counters["latents_seen"]
        self._window = OutputWindow(counters["drop"], counters["given"])
        self._frames = None if counters["frames"] < 0 else counters["frames"]
        self._pixels = "float32" if counters["float"] else "uint8"


def _are_flags(counters: Mapping[str, int], started: bool) -> bool:
    """Whether the flags are 0 or 1, and `started` says what the other counters say."""
    flags = [counters[name] for name in ("float", "started", "closed")]
    return all(flag in (0, 1) for flag in flags) and counters["started"] == started


def _check_count(frames: int | None) -> None:
    if frames is not None and frames < 1:
        raise InputError(f"frames is {frames}; expected at least 1")
