"""The feeds of encoders, from video frames to latents, and of decoders, back to frames."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from wfvae.errors import InputError, StateError
from wfvae.runtime.backends.base import Array, FloatArray, Tensor
from wfvae.runtime.backends.device_memory import DeviceMemory
from wfvae.runtime.dlpack import DeviceArray
from wfvae.runtime.feed import Feed, Output, host_copy
from wfvae.runtime.pixels import (
    Frames,
    as_network,
    check_frame_shape,
    check_frames,
    check_latent_shape,
    check_latents,
    frames_view,
    to_float_frames,
    to_network,
    to_uint8_frames,
)
from wfvae.spec.frames import OutputWindow, latent_frames, latent_size, lead_frames, tail_frames, video_frames
from wfvae.spec.manifest import GraphSpec

PixelType = Literal["uint8", "float32"]


class EncoderFeed(Feed):
    """Frames (T, H, W, 3) in, latents (t, D, h, w) out."""

    def __init__(
        self,
        graph: GraphSpec,
        height: int,
        width: int,
        memory: DeviceMemory | None = None,
        output: Output = "host",
    ) -> None:
        super().__init__(height, width, memory, output)
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

    def step_input(self, latents: int) -> Tensor:
        queued = self._queue.first(latents * self._ratio)
        return queued if isinstance(queued, DeviceArray) else to_network(queued)

    def accept_output(self, output: Tensor, drained: bool) -> Tensor:
        self._queue.remove(len(output) * self._ratio)
        self.started = True
        self.latents_given += len(output)
        return output

    def clip_input(self) -> Array:
        frames = self._queue.first(self._queue.count)[lead_frames(self._ratio) :]
        return to_network(host_copy(frames, self.memory))

    def clip_result(self, output: Array) -> Array:
        return output

    def empty(self) -> Tensor:
        shape = (0, self._channels, *latent_size(self.height, self.width))
        return self.memory.empty(shape) if self.on_device and self.memory else np.empty(shape, np.float32)

    def layouts(self, counters: Mapping[str, int]) -> tuple[Array, Array]:
        dtype = np.float32 if counters["float"] else np.uint8
        latents = np.empty((0, self._channels, *latent_size(self.height, self.width)), np.float32)
        return np.empty((0, self.height, self.width, 3), dtype), latents

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
        frames = self._read(data)
        if not len(frames):
            return
        if self._dtype not in (None, frames.dtype):
            raise InputError(
                f"frames are {frames.dtype}, but those before were {self._dtype}; use one type in a stream"
            )
        self._dtype = frames.dtype
        if self._queue.on_device and not isinstance(frames, DeviceArray) and self.memory is not None:
            frames = self.memory.to_device(to_network(frames))
        kept = self._queue.keep(frames)
        if self.frames_seen == 0:
            self._queue.add_kept(*[kept[:1]] * lead_frames(self._ratio))
        self.frames_seen += len(frames)
        self._queue.add_kept(kept)

    def close(self, frames: int | None = None) -> None:
        self._require_open()
        if not self.frames_seen:
            raise InputError("the stream has no frames; push at least 1 before finish")
        # The last frame is still queued wherever a group of r frames is incomplete.
        tail = tail_frames(self.frames_seen, self._ratio)
        if tail:
            self._queue.add_kept(*[self._queue.last()] * tail)
        self.closed = True

    def restore(self, counters: Mapping[str, int], arrays: Mapping[str, Array]) -> None:
        super().restore(counters, arrays)
        self.frames_seen, self.latents_given = counters["frames_seen"], counters["latents_given"]
        dtype = np.dtype(np.float32 if counters["float"] else np.uint8)
        self._dtype = dtype if self.frames_seen else None

    def _read(self, data: Any) -> Frames | DeviceArray:
        """Returns checked frames: as a user's (T, H, W, 3) in host memory, or as the network's
        (T, 3, H, W) on the device if they are so there and can be queued there.
        """
        found = self.memory.take(data, "frames") if self.memory is not None else None
        if found is None or self.memory is None:
            return check_frames(data, self.height, self.width)
        check_frame_shape(found.shape, self.height, self.width)
        resident = as_network(found)
        if resident is None or (self._queue.count and not self._queue.on_device):
            return check_frames(self.memory.to_host(found), self.height, self.width)
        return resident

    def _on_host(self, queued: Array | DeviceArray) -> Array:
        held = super()._on_host(queued)
        return to_float_frames(held, self.height, self.width) if isinstance(queued, DeviceArray) else held


class DecoderFeed(Feed):
    """Latents (t, D, h, w) in, frames (T, H, W, 3) out."""

    def __init__(
        self,
        graph: GraphSpec,
        height: int,
        width: int,
        frames: int | None = None,
        pixels: PixelType = "uint8",
        memory: DeviceMemory | None = None,
        output: Output = "host",
    ) -> None:
        super().__init__(height, width, memory, output)
        _check_count(frames)
        if pixels not in ("uint8", "float32"):
            raise InputError(f"pixels is {pixels!r}; expected uint8 or float32")
        if self.on_device and pixels != "float32":
            raise InputError(
                f"pixels is {pixels!r} with output='device'; frames in a GPU's memory are float32, so pass"
                " pixels='float32', and convert them there"
            )
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

    def step_input(self, latents: int) -> Tensor:
        if self.draining:
            return np.zeros((latents, self.channels, *latent_size(self.height, self.width)), np.float32)
        return self._queue.first(latents)

    def accept_output(self, output: Tensor, drained: bool) -> Frames | DeviceArray:
        if not drained:
            self._queue.remove(len(output) // self._stream.ratio)
        self.started = True
        part, self._window = self._window.take(len(output), self._frames)
        if isinstance(output, DeviceArray):
            return frames_view(output[part], self.height, self.width)
        return self._converted(output[part])

    def clip_input(self) -> Array:
        return host_copy(self._queue.first(self._queue.count), self.memory)

    def clip_result(self, output: Array) -> Frames:
        return self._converted(output[: self._frames])

    def _converted(self, output: FloatArray) -> Frames:
        convert = to_uint8_frames if self._pixels == "uint8" else to_float_frames
        return convert(output, self.height, self.width)

    def empty(self) -> Frames | DeviceArray:
        shape = (0, self.height, self.width, 3)
        if self.on_device and self.memory is not None:
            return self.memory.empty(shape)
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
        latents = self._read(data)
        seen = self.latents_seen + len(latents)
        if self._frames is not None and seen > (expected := latent_frames(self._frames, self._stream.ratio)):
            raise InputError(
                f"{seen} latents were pushed, but a video of {self._frames} frames has {expected}"
            )
        if self._queue.on_device and not isinstance(latents, DeviceArray) and self.memory is not None:
            latents = self.memory.to_device(latents)
        self._queue.add(latents)
        self.latents_seen = seen

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
        if self.on_device and not counters["float"]:
            raise StateError(
                "the snapshot is of a stream of uint8 frames, and this one returns float32 frames on the"
                " device; restore it to a stream with output='host'"
            )
        self._pixels = "float32" if counters["float"] else "uint8"

    def _read(self, data: Any) -> Tensor:
        """Returns checked latents: on the device if they are float32 there and can be queued."""
        found = self.memory.take(data, "latents") if self.memory is not None else None
        if found is None or self.memory is None:
            return check_latents(data, self.channels, self.height, self.width)
        check_latent_shape(found.shape, self.channels, self.height, self.width)
        resident = found.dtype == np.float32 and found.is_contiguous
        if not resident or (self._queue.count and not self._queue.on_device):
            return check_latents(self.memory.to_host(found), self.channels, self.height, self.width)
        return found


def _are_flags(counters: Mapping[str, int], started: bool) -> bool:
    """Whether the flags are 0 or 1, and `started` says what the other counters say."""
    flags = [counters[name] for name in ("float", "started", "closed")]
    return all(flag in (0, 1) for flag in flags) and counters["started"] == started


def _check_count(frames: int | None) -> None:
    if frames is not None and frames < 1:
        raise InputError(f"frames is {frames}; expected at least 1")
