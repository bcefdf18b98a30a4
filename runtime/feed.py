"""What a stream feeds to its next step, and what of a step's output belongs to it. Pure
bookkeeping: no backend, no state tensors.

A feed collects what was pushed, knows how many latents' worth is ready, makes the step's input, and
turns the step's output into the user's arrays. The single stream and the pool of many drive the
same feeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np

from wfvae.errors import InputError, StreamingError
from wfvae.runtime.backends.base import Array, FloatArray
from wfvae.runtime.pixels import (
    Frames,
    check_frames,
    check_latents,
    to_float_frames,
    to_network,
    to_uint8_frames,
)
from wfvae.spec.frames import OutputWindow, latent_frames, lead_frames, tail_frames, video_frames
from wfvae.spec.manifest import GraphSpec

PixelType = Literal["uint8", "float32"]
In = TypeVar("In")


class Feed(Protocol):
    """One stream's side of the steps."""

    height: int
    width: int
    started: bool

    @property
    def closed(self) -> bool:
        """Whether no more input comes."""

    @property
    def finished(self) -> bool:
        """Whether everything has been given out."""

    def push(self, data: Any) -> None:
        """Takes more input."""

    def close(self, frames: int | None = None) -> None:
        """Says that no more input comes. `frames` is the video's true T, for a decoder whose T is
        not 1 + r n.
        """

    def ready(self) -> int:
        """Latents that the next step can advance by."""

    @property
    def draining(self) -> bool:
        """Whether only a draining step is left, of any length."""

    def take(self, latents: int) -> FloatArray:
        """Input of a step that advances by `latents`. It stays queued until the step has succeeded."""

    def absorb(self, output: FloatArray, drained: bool) -> Array:
        """The user's part of a step's output. What the step was given leaves the queue."""

    def empty(self) -> Array:
        """A result of no latents or frames."""

    def counters(self) -> dict[str, int]:
        """What `restore` needs besides arrays."""

    def arrays(self) -> dict[str, Array]:
        """Input that waits for its step."""

    def restore(self, counters: Mapping[str, int], arrays: Mapping[str, Array]) -> None:
        """Takes up where the feed that gave these stood."""


class _Queue(Generic[In]):
    """Arrays in order, counted along the first axis."""

    def __init__(self) -> None:
        self.parts: list[Array] = []
        self.count = 0

    def add(self, part: Array) -> None:
        if len(part):
            # A copy: the caller may reuse its buffer.
            self.parts.append(np.array(part))
            self.count += len(part)

    def first(self, count: int) -> Array:
        found: list[Array] = []
        for part in self.parts:
            found.append(part[:count])
            count -= len(found[-1])
            if not count:
                break
        return found[0] if len(found) == 1 else np.concatenate(found)

    def remove(self, count: int) -> None:
        self.count -= count
        while count:
            part = self.parts[0]
            if len(part) > count:
                self.parts[0] = part[count:]
                return
            del self.parts[0]
            count -= len(part)

    def last(self) -> Array:
        return self.parts[-1][-1:]

    def all(self) -> Array | None:
        return np.concatenate(self.parts) if self.parts else None


class EncoderFeed:
    """Frames (T, H, W, 3) in, latents (t, D, h, w) out."""

    def __init__(self, graph: GraphSpec, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.started = False
        self.frames_seen = 0
        self.latents_given = 0
        self._ratio = graph.stream.ratio
        self._channels = int(graph.outputs[0].shape[2])
        self._queue: _Queue[Frames] = _Queue()
        self._dtype: np.dtype[Any] | None = None
        self._closed = False

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def finished(self) -> bool:
        return self._closed and self._queue.count == 0

    @property
    def draining(self) -> bool:
        return False

    def push(self, data: Any) -> None:
        _require_open(self._closed)
        frames = check_frames(data, self.height, self.width)
        if not len(frames):
            return
        if self._dtype not in (None, frames.dtype):
            raise InputError(
                f"frames are {frames.dtype}, but those before were {self._dtype}; keep to one type in a"
                " stream"
            )
        self._dtype = frames.dtype
        if self.frames_seen == 0:
            self._queue.add(np.repeat(frames[:1], lead_frames(self._ratio), axis=0))
        self.frames_seen += len(frames)
        self._queue.add(frames)
        # The last frame is kept even when its step has run: it may have to be repeated at the end,
        # but then it is still queued.

    def close(self, frames: int | None = None) -> None:
        _require_open(self._closed)
        if not self.frames_seen:
            raise InputError("the stream has no frames; push at least 1 before finish")
        tail = tail_frames(self.frames_seen, self._ratio)
        if tail:
            self._queue.add(np.repeat(self._queue.last(), tail, axis=0))
        self._closed = True

    def ready(self) -> int:
        return self._queue.count // self._ratio

    def take(self, latents: int) -> FloatArray:
        return to_network(self._queue.first(latents * self._ratio))

    def absorb(self, output: FloatArray, drained: bool) -> FloatArray:
        self._queue.remove(len(output) * self._ratio)
        self.started = True
        self.latents_given += len(output)
        return output

    def empty(self) -> FloatArray:
        rows, columns = (-(-side // 8) for side in (self.height, self.width))
        return np.empty((0, self._channels, rows, columns), np.float32)

    def counters(self) -> dict[str, int]:
        return {
            "frames_seen": self.frames_seen,
            "latents_given": self.latents_given,
            "float": int(self._dtype == np.float32),
            "started": int(self.started),
            "closed": int(self._closed),
        }

    def arrays(self) -> dict[str, Array]:
        waiting = self._queue.all()
        return {} if waiting is None else {"waiting": waiting}

    def restore(self, counters: Mapping[str, int], arrays: Mapping[str, Array]) -> None:
        self.frames_seen, self.latents_given = counters["frames_seen"], counters["latents_given"]
        self._dtype = (
            None if not self.frames_seen else np.dtype(np.float32 if counters["float"] else np.uint8)
        )
        self.started, self._closed = bool(counters["started"]), bool(counters["closed"])
        self._queue = _Queue()
        if "waiting" in arrays:
            self._queue.add(arrays["waiting"])


class DecoderFeed:
    """Latents (t, D, h, w) in, frames (T, H, W, 3) out."""

    def __init__(
        self, graph: GraphSpec, height: int, width: int, frames: int | None, pixels: PixelType
    ) -> None:
        if frames is not None and frames < 1:
            raise InputError(f"frames is {frames}; expected at least 1")
        if pixels not in ("uint8", "float32"):
            raise InputError(f"pixels is {pixels!r}; expected uint8 or float32")
        self.height, self.width = height, width
        self.started = False
        self.latents_seen = 0
        self._stream = graph.stream
        self._channels = int(graph.inputs[0].shape[2])
        self._frames = frames
        self._pixels = pixels
        self._window = OutputWindow(self._stream.drop)
        self._queue: _Queue[FloatArray] = _Queue()
        self._closed = False

    @property
    def frames_given(self) -> int:
        """Video frames given out so far."""
        return self._window.given

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def finished(self) -> bool:
        return self._closed and self._queue.count == 0 and self._window.given >= (self._frames or 0)

    @property
    def draining(self) -> bool:
        return self._closed and self._queue.count == 0 and not self.finished

    def push(self, data: Any) -> None:
        _require_open(self._closed)
        latents = check_latents(data, self._channels, self.height, self.width)
        seen = self.latents_seen + len(latents)
        if self._frames is not None and seen > latent_frames(self._frames, self._stream.ratio):
            expected = latent_frames(self._frames, self._stream.ratio)
            raise InputError(
                f"{seen} latents were pushed, but a video of {self._frames} frames has {expected}"
            )
        self.latents_seen = seen
        self._queue.add(latents)

    def close(self, frames: int | None = None) -> None:
        _require_open(self._closed)
        if not self.latents_seen:
            raise InputError("the stream has no latents; push at least 1 before finish")
        if frames is not None and frames < 1:
            raise InputError(f"frames is {frames}; expected at least 1")
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
                f"frames is {total}, but {self._window.given} have been given out; state it when opening the"
                " decoder"
            )
        self._frames, self._closed = total, True

    def ready(self) -> int:
        return self._queue.count

    def take(self, latents: int) -> FloatArray:
        if self.draining:
            rows, columns = (-(-side // 8) for side in (self.height, self.width))
            return np.zeros((latents, self._channels, rows, columns), np.float32)
        return self._queue.first(latents)

    def absorb(self, output: FloatArray, drained: bool) -> Frames:
        if not drained:
            self._queue.remove(len(output) // self._stream.ratio)
        self.started = True
        part, self._window = self._window.take(len(output), self._frames)
        video: FloatArray = output[part]
        if self._pixels == "uint8":
            return to_uint8_frames(video, self.height, self.width)
        return to_float_frames(video, self.height, self.width)

    def empty(self) -> Frames:
        shape = (0, self.height, self.width, 3)
        return np.empty(shape, np.uint8) if self._pixels == "uint8" else np.empty(shape, np.float32)

    def counters(self) -> dict[str, int]:
        return {
            "latents_seen": self.latents_seen,
            "drop": self._window.drop,
            "given": self._window.given,
            "frames": -1 if self._frames is None else self._frames,
            "float": int(self._pixels == "float32"),
            "started": int(self.started),
            "closed": int(self._closed),
        }

    def arrays(self) -> dict[str, Array]:
        waiting = self._queue.all()
        return {} if waiting is None else {"waiting": waiting}

    def restore(self, counters: Mapping[str, int], arrays: Mapping[str, Array]) -> None:
        self.latents_seen = counters["latents_seen"]
        self._window = OutputWindow(counters["drop"], counters["given"])
        self._frames = None if counters["frames"] < 0 else counters["frames"]
        self._pixels = "float32" if counters["float"] else "uint8"
        self.started, self._closed = bool(counters["started"]), bool(counters["closed"])
        self._queue = _Queue()
        if "waiting" in arrays:
            self._queue.add(arrays["waiting"])


def _require_open(closed: bool) -> None:
    if closed:
        raise StreamingError("the stream is finished; open another one for more input")
