"""Memory that streams will hold, computed before anything is allocated."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from wfvae.errors import ResourceError
from wfvae.machine import available_memory
from wfvae.spec.frames import padded_size
from wfvae.spec.manifest import Manifest
from wfvae.spec.stream import Direction, resolve

MEBIBYTE = 2**20
_ALWAYS_THERE = 64 * MEBIBYTE


def require_memory(needed: int, what: str, limit: int | None = None) -> None:
    """Raises `ResourceError` with the numbers if `needed` bytes exceed the limit.

    Without a limit it is the memory that the machine has available; 64 MiB are never refused then.
    """
    if limit is None:
        limit = None if needed <= _ALWAYS_THERE else available_memory()
    if limit is not None and needed > limit:
        raise ResourceError(
            f"{what} need {needed / MEBIBYTE:.0f} MiB, and {limit / MEBIBYTE:.0f} MiB are available; use less"
            " at once, or a machine with more memory"
        )


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a direction needs."""

    direction: Direction
    height: int
    width: int
    streams: int
    chunk: int
    state_bytes: int
    held_state_bytes: int
    """State of all streams in both buffers, which is what the runtime allocates."""
    io_bytes: int
    """Input and output of a step, float32, all streams."""
    scratch_bytes: int
    """Most activations alive at once in a step, all streams. A backend's packing comes on top."""
    weights_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.held_state_bytes + self.io_bytes + self.scratch_bytes + self.weights_bytes

    def to_dict(self) -> dict[str, Any]:
        """Returns all fields and the total."""
        return {**asdict(self), "total_bytes": self.total_bytes}

    def require(self, limit_bytes: int) -> None:
        """Raises `ResourceError` with the numbers if the plan exceeds a limit."""
        if self.total_bytes > limit_bytes:
            parts = (self.total_bytes, self.held_state_bytes, self.scratch_bytes, self.weights_bytes)
            total, state, scratch, weights = (f"{part / MEBIBYTE:.0f}" for part in parts)
            streams = f"{self.streams} {self.direction} stream(s) of {self.height}x{self.width}"
            need = f"{total} MiB (state {state}, scratch {scratch}, weights {weights})"
            problem = f"{streams} at {self.chunk} latents per step need {need}, more than the limit"
            advice = "use a smaller chunk, size or number of streams"
            raise ResourceError(f"{problem} of {limit_bytes / MEBIBYTE:.0f} MiB; {advice}")


def plan_memory(
    manifest: Manifest, direction: Direction, height: int, width: int, streams: int, chunk: int
) -> MemoryPlan:
    """Returns the memory of streams of a video size that advance together by `chunk` latents."""
    graph = manifest.graphs[direction]
    padded = dict(zip(("height", "width"), padded_size(height, width), strict=True))
    sizes = {"batch": streams, "latents": chunk, "frames": graph.ratio * chunk, **padded}
    video_and_latents = (graph.inputs[0], graph.outputs[0])
    state = graph.stream.bytes_per_stream(**padded)
    peaks = [sum(math.prod(resolve(product, **sizes)) for product in peak) for peak in graph.scratch_bytes]
    return MemoryPlan(
        direction=direction,
        height=height,
        width=width,
        streams=streams,
        chunk=chunk,
        state_bytes=state,
        held_state_bytes=2 * streams * state,
        io_bytes=4 * sum(math.prod(resolve(tensor.shape, **sizes)) for tensor in video_and_latents),
        scratch_bytes=max(peaks, default=0),
        weights_bytes=graph.weights_bytes,
    )
