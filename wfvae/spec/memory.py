"""What a stream will hold in memory, before anything is allocated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from wfvae.errors import ResourceError
from wfvae.spec.frames import padded_size
from wfvae.spec.manifest import GraphSpec, Manifest
from wfvae.spec.stream import Direction

MEBIBYTE = 2**20


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a direction needs."""

    direction: Direction
    height: int
    width: int
    streams: int
    chunk: int
    """Latents per step."""
    state_bytes: int
    """State of one stream."""
    held_state_bytes: int
    """State of all streams in both buffers, which is what the runtime allocates."""
    io_bytes: int
    """Input and output of a step, float32, all streams."""
    scratch_bytes: int
    """Largest sum of activations alive at once in a step, all streams, as the graph needs them. A
    backend's own packing comes on top.
    """
    weights_bytes: int
    """Weights of this direction."""

    @property
    def total_bytes(self) -> int:
        return self.held_state_bytes + self.io_bytes + self.scratch_bytes + self.weights_bytes

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "total_bytes": self.total_bytes}

    def require(self, limit_bytes: int) -> None:
        """Raises `ResourceError` with the numbers if the plan exceeds a limit."""
        if self.total_bytes > limit_bytes:
            raise ResourceError(
                f"{self.streams} {self.direction} stream(s) of {self.height}x{self.width} at {self.chunk}"
                f" latents per step need {self.total_bytes / MEBIBYTE:.0f} MiB (state"
                f" {self.held_state_bytes / MEBIBYTE:.0f}, scratch {self.scratch_bytes / MEBIBYTE:.0f},"
                f" weights {self.weights_bytes / MEBIBYTE:.0f}), more than the limit of"
                f" {limit_bytes / MEBIBYTE:.0f} MiB; use a smaller chunk, size or number of streams"
            )


def plan_memory(
    manifest: Manifest, direction: Direction, height: int, width: int, streams: int, chunk: int
) -> MemoryPlan:
    """The memory of `streams` streams of video of (true) size height x width, advancing by `chunk`
    latents per step.
    """
    graph = manifest.graphs[direction]
    rows, columns = padded_size(height, width)
    state = graph.stream.bytes_per_stream(rows, columns)
    return MemoryPlan(
        direction=direction,
        height=height,
        width=width,
        streams=streams,
        chunk=chunk,
        state_bytes=state,
        held_state_bytes=2 * streams * state,
        io_bytes=_io_bytes(graph, streams, chunk, rows, columns),
        scratch_bytes=_scratch_bytes(graph, streams, chunk, rows, columns),
        weights_bytes=graph.weights_bytes,
    )


def _io_bytes(graph: GraphSpec, streams: int, chunk: int, rows: int, columns: int) -> int:
    video = graph.stream.ratio * chunk * 3 * rows * columns
    channels = next(
        int(t.shape[2]) for t in (*graph.inputs, *graph.outputs) if t.name in ("latents", "moments")
    )
    return 4 * streams * (video + chunk * channels * (rows // 8) * (columns // 8))


def _scratch_bytes(graph: GraphSpec, streams: int, chunk: int, rows: int, columns: int) -> int:
    values = {"batch": streams, "latents": chunk, "height/8": rows // 8, "width/8": columns // 8}
    return max((_evaluate(peak, values) for peak in graph.scratch_bytes), default=0)


def _evaluate(terms: Sequence[Sequence[Any]], values: Mapping[str, int]) -> int:
    """A sum of products: each term is a factor and the symbols it is multiplied by."""
    total = 0
    for factor, *symbols in terms:
        for symbol in symbols:
            factor *= values[symbol]
        total += factor
    return total
