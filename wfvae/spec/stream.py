"""What a stream carries from chunk to chunk, as data. No torch: model, graph, manifest and runtime
all read these objects.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from wfvae.errors import InputError, StateError

Direction = Literal["encoder", "decoder"]
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8, "int32": 4}

Dim = int | str
"""A fixed size, or a symbol: `batch`, `height/8`, `width/8` (video height and width, divided
exactly).
"""


def resolve_dim(dim: Dim, batch: int, height: int, width: int) -> int:
    """The size that a symbolic dimension has for this batch and this (padded) video size."""
    if isinstance(dim, int):
        return dim
    if dim == "batch":
        return batch
    symbol, _, divisor = dim.partition("/")
    size, by = {"height": height, "width": width}[symbol], int(divisor or 1)
    if size % by:
        raise InputError(f"video {symbol} is {size}; expected a multiple of {by}")
    return size // by


@dataclass(frozen=True)
class StateSpec:
    """One state tensor of a stream."""

    name: str
    """Module path in the model, for example `encoder.down2.1.conv1`."""
    shape: tuple[Dim, ...]
    """Symbolic shape; the first dimension is always `batch`, one row per stream."""
    dtype: str
    """`float32`, `float16`, `bfloat16`, `float64`, or `int32` for counters."""
    meaning: str
    """One phrase for people who write a client."""
    initial_value: float = 0.0
    """Fill before the first step. `start` makes a row ignore its state, so any finite value would
    do.
    """

    def resolve(self, batch: int, height: int, width: int) -> tuple[int, ...]:
        """The concrete shape for a batch of streams of (padded) video size height x width."""
        return tuple(resolve_dim(d, batch, height, width) for d in self.shape)

    def bytes_per_stream(self, height: int, width: int) -> int:
        """Bytes that one stream (one batch row) holds."""
        return math.prod(self.resolve(1, height, width)) * DTYPE_BYTES[self.dtype]

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "meaning": self.meaning,
            "initial_value": self.initial_value,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StateSpec:
        return cls(
            str(data["name"]),
            tuple(data["shape"]),
            str(data["dtype"]),
            str(data["meaning"]),
            float(data["initial_value"]),
        )


@dataclass(frozen=True)
class StreamSpec:
    """The rules of one direction's uniform stream: r-1 copies of the first frame lead, and every
    step is alike.
    """

    direction: Direction
    ratio: int
    """Video frames per latent, r: 4 or 8."""
    delay: int
    """Video frames by which the decoder's output lags (0 for the encoder and for nearest
    interpolation).
    """
    states: tuple[StateSpec, ...]

    @property
    def chunk_multiple(self) -> int:
        """Every step takes a positive multiple of this many input frames (video frames, or
        latents).
        """
        return self.ratio if self.direction == "encoder" else 1

    @property
    def drop(self) -> int:
        """Output frames of the stream's beginning that carry no video frame: the r-1 leading copies
        and the delay.
        """
        return self.ratio - 1 + self.delay if self.direction == "decoder" else 0

    @property
    def needs_drain(self) -> bool:
        """Whether the last frames come out only by one more step with `end` set."""
        return self.delay > 0

    def bytes_per_stream(self, height: int, width: int) -> int:
        """Bytes of all state tensors of one stream; a runtime that swaps two buffers holds twice
        this.
        """
        return sum(state.bytes_per_stream(height, width) for state in self.states)

    def check(
        self, given: Mapping[str, tuple[Sequence[int], str]], batch: int, height: int, width: int
    ) -> None:
        """Raises `StateError` if a state, given as name -> (shape, dtype), is not this stream's at
        this size.

        All that is wrong is named in one error: missing, unexpected, misshaped and mistyped
        entries.
        """
        wanted = {state.name: state for state in self.states}
        problems = [f"missing {name}" for name in wanted if name not in given]
        problems += [f"unexpected {name}" for name in given if name not in wanted]
        for name, (shape, dtype) in given.items():
            if name not in wanted:
                continue
            expected = wanted[name].resolve(batch, height, width)
            if tuple(shape) != expected:
                problems.append(f"{name} has shape {tuple(shape)}, expected {expected}")
            if dtype != wanted[name].dtype:
                problems.append(f"{name} has dtype {dtype}, expected {wanted[name].dtype}")
        if problems:
            where = f"{self.direction} state for {batch} streams of {height}x{width}"
            raise StateError(
                f"{where}: {'; '.join(problems)}; start from the initial state, or restore a snapshot of the"
                " same model and size"
            )
