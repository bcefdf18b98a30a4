"""Memory that streams will hold, computed before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from wfvae.errors import ResourceError
from wfvae.spec.frames import latent_size, padded_size
from wfvae.spec.manifest import GraphSpec, Manifest, Product
from wfvae.spec.stream import Direction

MEBIBYTE = 2**20
_FLOAT32_BYTES = 4


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a direction needs.

    Example:
        >>> plan = MemoryPlan("encoder", 480, 832, 1, 4, 10, 20, 300, 4000, 50000)
        >>> plan.total_bytes
        54320
        >>> plan.require(2**20)
    """

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
        """Returns all fields and the total."""
        return {**asdict(self), "total_bytes": self.total_bytes}

    def require(self, limit_bytes: int) -> None:
        """Raises `ResourceError` with the numbers if the plan exceeds a limit."""
        if self.total_bytes > limit_bytes:
            parts = (self.total_bytes, self.held_state_bytes, self.scratch_bytes, self.weights_bytes)
            total, state, scratch, weights = (f"{part / MEBIBYTE:.0f}" for part in parts)
            raise ResourceError(
                f"{self.streams} {self.direction} stream(s) of {self.height}x{self.width} at {self.chunk}"
                f" latents per step need {total} MiB (state {state}, scratch {scratch}, weights {weights}),"
                f" more than the limit of {limit_bytes / MEBIBYTE:.0f} MiB; use a smaller chunk, size or"
                " number of streams"
            )


def plan_memory(
    manifest: Manifest, direction: Direction, height: int, width: int, streams: int, chunk: int
) -> MemoryPlan:
    """Returns the memory of streams that advance together.

    Args:
        height, width: size of the video, before padding.
        streams: how many.
        chunk: latents per step.
    """
    graph = manifest.graphs[direction]
    rows, columns = latent_size(height, width)
    state = graph.stream.bytes_per_stream(*padded_size(height, width))
    sizes = {"batch": streams, "latents": chunk, "height/8": rows, "width/8": columns}
    return MemoryPlan(
        direction=direction,
        height=height,
        width=width,
        streams=streams,
        chunk=chunk,
        state_bytes=state,
        held_state_bytes=2 * streams * state,
        io_bytes=_io_bytes(graph, streams, chunk, height, width),
        scratch_bytes=peak_bytes(graph, sizes),
        weights_bytes=graph.weights_bytes,
    )


def _io_bytes(graph: GraphSpec, streams: int, chunk: int, height: int, width: int) -> int:
    video = graph.ratio * chunk * 3 * math.prod(padded_size(height, width))
    tensors = (*graph.inputs, *graph.outputs)
    channels = next(int(tensor.shape[2]) for tensor in tensors if tensor.name == "latents")
    latents = chunk * channels * math.prod(latent_size(height, width))
    return _FLOAT32_BYTES * streams * (video + latents)


def peak_bytes(graph: GraphSpec, sizes: Mapping[str, int]) -> int:
    """Returns the value of `scratch_bytes` for these sizes of its symbols."""
    return max(
        (sum(_multiply(product, sizes) for product in peak) for peak in graph.scratch_bytes), default=0
    )


def _multiply(product: Product, sizes: Mapping[str, int]) -> int:
    return math.prod(factor if isinstance(factor, int) else sizes[factor] for factor in product)
