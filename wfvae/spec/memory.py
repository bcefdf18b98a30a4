"""Memory that streams will hold, computed before anything is allocated."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from wfvae.errors import ResourceError
from wfvae.machine import available_memory
from wfvae.spec.frames import padded_size
from wfvae.spec.manifest import DIRECT, Manifest
from wfvae.spec.stream import Direction, resolve

MEBIBYTE = 2**20
_ALWAYS_THERE = 64 * MEBIBYTE


def require_memory(needed: int, what: str, advice: str = "use less at once") -> None:
    """Raises `ResourceError` with the numbers if the machine has not `needed` bytes available.

    64 MiB are never refused.
    """
    limit = None if needed <= _ALWAYS_THERE else available_memory()
    if limit is not None and needed > limit:
        raise ResourceError(
            f"{what} need {_mebibytes(needed)}, and {_mebibytes(limit)} are available; {advice}, or allow"
            " more (--limit)"
        )


class MemoryMeter:
    """Counts what a list of unknown length takes, and refuses more than there is.

    Args:
        what, advice: as in `require_memory`.
    """

    def __init__(self, what: str, advice: str) -> None:
        self._what, self._advice = what, advice
        self._taken, self._checked = 0, _ALWAYS_THERE

    def add(self, count: int) -> None:
        """Counts bytes. Raises `ResourceError` if they are more than the machine has available."""
        self._taken += count
        if self._taken > self._checked:
            require_memory(self._taken, self._what, self._advice)
            self._checked = self._taken + _ALWAYS_THERE


def _mebibytes(count: int) -> str:
    return f"{count // MEBIBYTE} MiB"


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

    def require(self, limit_bytes: int | None) -> None:
        """Raises `ResourceError` with the numbers if the plan exceeds a limit.

        None stands for what the machine has available.
        """
        found, limit = "the limit of", limit_bytes
        if limit is None:
            found, limit = "what is available,", self._available()
        if limit is not None and self.total_bytes > limit:
            parts = (self.held_state_bytes, self.scratch_bytes, self.weights_bytes)
            state, scratch, weights = (part // MEBIBYTE for part in parts)
            streams = f"{self.streams} {self.direction} stream(s) of {self.height}x{self.width}"
            need = f"{_mebibytes(self.total_bytes)} (state {state}, scratch {scratch}, weights {weights})"
            problem = f"{streams} at {self.chunk} latents per step need {need}, more than {found}"
            advice = "use a smaller chunk, size or number of streams, or allow more (--limit)"
            raise ResourceError(f"{problem} {_mebibytes(limit)}; {advice}")

    def fits(self, limit_bytes: int | None, share: float = 1.0) -> bool:
        """Whether the plan is within the limit, or without one within a share of what is free."""
        limit, found = limit_bytes, self._available()
        if limit is None and found is not None:
            limit = int(share * found)
        return limit is None or self.total_bytes <= limit

    def _available(self) -> int | None:
        return available_memory() if self.total_bytes > _ALWAYS_THERE else None


def plan_memory(
    manifest: Manifest,
    direction: Direction,
    height: int,
    width: int,
    streams: int,
    chunk: int,
    *,
    whole_clip: bool = False,
) -> MemoryPlan:
    """Returns the memory of streams of a video size that advance together by `chunk` latents.

    `whole_clip` plans the direct graph instead, for clips of so many latents.
    """
    graph = manifest.graphs[f"{direction}.{DIRECT}" if whole_clip else direction]
    padded = dict(zip(("height", "width"), padded_size(height, width), strict=True))
    sizes = {"batch": streams, "latents": chunk, "frames": graph.ratio * chunk, **padded}
    sizes["groups"] = chunk - 1  # in a direct graph, which takes 1 + r n frames
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
