"""What a backend offers: sessions that run a bundle's graphs, and the streaming state they keep on
their device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from wfvae.spec.manifest import GraphSpec

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


class StreamState(Protocol):
    """The state of a batch of streams, held by the backend in two buffers per tensor that change
    roles at each step.
    """

    batch: int
    height: int
    """Padded video height."""
    width: int
    """Padded video width."""

    def read(self) -> dict[str, Array]:
        """Copies of the current tensors by name, batch first. bfloat16 comes as its bits in uint16."""

    def write(self, tensors: Mapping[str, Array]) -> None:
        """Replaces the current tensors. The caller has checked names, shapes and types."""


class StepSession(Protocol):
    """Runs a step graph. Safe to use from several threads, each with its own states."""

    graph: GraphSpec

    def new_state(self, batch: int, height: int, width: int) -> StreamState:
        """Initial state for `batch` streams of a padded video size."""

    def step(self, state: StreamState, x: FloatArray, start: BoolArray, end: BoolArray) -> FloatArray:
        """Advances every row by `x` (batch first) and returns the graph's output.

        `state` changes only if the step succeeds: a failed or interrupted step leaves it as it was.
        """


class DirectSession(Protocol):
    """Runs a direct graph."""

    def run(self, x: FloatArray) -> FloatArray:
        """The graph's output for whole clips."""


class Backend(Protocol):
    """Opens sessions on one device."""

    def describe(self) -> dict[str, str]:
        """Name, version, device and settings, for reports and certificates."""

    def open_step(self, graph: GraphSpec) -> StepSession: ...

    def open_direct(self, graph: GraphSpec) -> DirectSession: ...


def output_shape(graph: GraphSpec, x: FloatArray) -> tuple[int, ...]:
    """The shape of a graph's output for an input of this shape."""
    batch, count, _, height, width = x.shape
    stream = graph.stream
    if stream.direction == "encoder":
        latents = -(-count // stream.ratio)
        return (batch, latents, _channels(graph), height // 8, width // 8)
    frames = stream.ratio * count if graph.kind == "step" else 1 + stream.ratio * (count - 1)
    return (batch, frames, _channels(graph), height * 8, width * 8)


def _channels(graph: GraphSpec) -> int:
    return int(graph.outputs[0].shape[2])
