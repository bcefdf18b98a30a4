"""The feed of an encoder: video frames in, latents out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from wfvae.errors import InputError
from wfvae.runtime.backends.base import FloatArray
from wfvae.runtime.feed import Feed
from wfvae.runtime.pixels import check_frames, to_network
from wfvae.spec.frames import latent_size, lead_frames, tail_frames
from wfvae.spec.manifest import GraphSpec


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

    def counters(self) -> dict[str, int]:
        return {
            "frames_seen": self.frames_seen,
            "latents_given": self.latents_given,
            "float": int(self._dtype == np.float32),
            "started": int(self.started),
            "closed": int(self.closed),
        }

    def _push(self, data: Any) -> None:
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

    def _close(self, frames: int | None) -> None:
        if not self.frames_seen:
            raise InputError("the stream has no frames; push at least 1 before finish")
        # The last frame is still queued wherever a group of r frames is incomplete.
        tail = tail_frames(self.frames_seen, self._ratio)
        if tail:
            self._queue.add(np.repeat(self._queue.last(), tail, axis=0))

    def _restore(self, counters: Mapping[str, int]) -> None:
        self.frames_seen, self.latents_given = counters["frames_seen"], counters["latents_given"]
        dtype = np.dtype(np.float32 if counters["float"] else np.uint8)
        self._dtype = dtype if self.frames_seen else None
