"""What a stream carries from chunk to chunk, as data."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta
from msgspec.structs import force_setattr

from wfvae.errors import InputError, StateError
from wfvae.spec.frames import lead_frames
from wfvae.spec.records import Record

Direction = Literal["encoder", "decoder"]
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8, "int32": 4}

Text = Annotated[str, Meta(min_length=1)]
Size = Annotated[int, Meta(ge=1)]
Symbol = Annotated[str, Meta(pattern=r"^(batch|frames|latents|(height|width)(/[248])?)$")]
Dim = Size | Symbol
"""A fixed size, or a symbol such as `batch` or `height/8` (video height, divided exactly)."""
Shape = Annotated[
    tuple[Dim, ...], Meta(min_length=1, extra_json_schema={"prefixItems": [{"const": "batch"}]})
]


LARGEST_SIDE = 2**20
"""Of any axis that is a number, and of a video."""
MOST_AXES = 6
_STATE_NAME = re.compile(r"[A-Za-z0-9_.]{1,200}")


def resolve(shape: Iterable[Dim], **sizes: int) -> tuple[int, ...]:
    """Returns a shape with these sizes of its symbols; `height/8` is an eighth of `height`.

    >>> resolve(("batch", 4, "height/8"), batch=1, height=480)
    (1, 4, 60)
    """
    return tuple(dim if isinstance(dim, int) else _resolve_symbol(dim, sizes) for dim in shape)


def _resolve_symbol(dim: str, sizes: Mapping[str, int]) -> int:
    symbol, _, divisor = dim.partition("/")
    size, by = sizes[symbol], int(divisor or 1)
    if size % by:
        raise InputError(f"video {symbol} is {size}; expected a multiple of {by}")
    return size // by


class StateSpec(Record, frozen=True):
    """One state tensor of a stream."""

    name: Text
    """Module path in the model, for example `encoder.down2.1.conv1`."""
    shape: Shape
    """Symbolic shape; the first dimension is always `batch`, one row per stream."""
    dtype: Annotated[str, Meta(pattern="^(float32|float16|bfloat16|int32)$")]
    """`float32`, `float16`, `bfloat16` (`float64` outside of bundles), or `int32` for counters."""
    meaning: Text
    """One phrase for people who write a client."""
    initial_value: float = 0.0
    """Fill before the first step. `start` makes a row ignore it, so any finite value would do."""
    input: str = ""
    """Graph input that takes the tensor, computed here."""
    output: str = ""
    """Graph output that holds the tensor for the next step, computed here."""

    def __post_init__(self) -> None:
        force_setattr(self, "input", f"state.{self.name}")
        force_setattr(self, "output", f"next_state.{self.name}")

    def problems(self) -> Iterator[str]:
        """Yields what no state of a graph can be."""
        if not _STATE_NAME.fullmatch(self.name):
            yield "whose name is not a module's path"
        if not math.isfinite(self.initial_value):
            yield f"with the initial value {self.initial_value}"
        sides = {f"{side}{by}" for side in ("height", "width") for by in ("", "/2", "/4", "/8")}
        known = all(
            1 <= dim <= LARGEST_SIDE if isinstance(dim, int) else dim in sides for dim in self.shape[1:]
        )
        if self.shape[0] != "batch" or len(self.shape) > MOST_AXES or not known:
            yield f"of shape {self.shape}; expected batch, then numbers up to {LARGEST_SIDE} and video sides"

    def resolve(self, batch: int, height: int, width: int) -> tuple[int, ...]:
        """Returns the concrete shape for a batch of streams of this (padded) video size."""
        return resolve(self.shape, batch=batch, height=height, width=width)

    def bytes_per_stream(self, height: int, width: int) -> int:
        """Bytes that one stream (one batch row) holds."""
        return math.prod(self.resolve(1, height, width)) * _BYTES[self.dtype]


@dataclass(frozen=True)
class StreamSpec:
    """The rules of one direction's stream: r-1 copies of the first frame lead it."""

    direction: Direction
    ratio: Literal[4, 8]
    """Video frames per latent, r."""
    delay: int
    """Video frames by which the decoder's output lags; 0 for the encoder."""
    states: tuple[StateSpec, ...]

    @property
    def chunk_multiple(self) -> int:
        """Every step takes a positive multiple of this many video frames, or latents."""
        return self.ratio if self.direction == "encoder" else 1

    @property
    def lead(self) -> int:
        """Copies of the first frame that the encoder takes in front of the video."""
        return lead_frames(self.ratio) if self.direction == "encoder" else 0

    @property
    def drop(self) -> int:
        """First output frames that carry no video: the r-1 leading copies and the delay."""
        return lead_frames(self.ratio) + self.delay if self.direction == "decoder" else 0

    @property
    def needs_drain(self) -> bool:
        """Whether the last frames come out only by one more step with `end` set."""
        return self.delay > 0

    def bytes_per_stream(self, height: int, width: int) -> int:
        """Bytes of all state tensors of one stream; a runtime with two buffers holds twice this."""
        return sum(state.bytes_per_stream(height, width) for state in self.states)

    def check(
        self, given: Mapping[str, tuple[Sequence[int], str]], batch: int, height: int, width: int
    ) -> None:
        """Raises `StateError` that lists what is wrong in states, (shape, dtype) by name."""
        wanted = {state.name: state for state in self.states}
        problems = [f"missing {name}" for name in wanted if name not in given]
        problems += [f"unexpected {name}" for name in given if name not in wanted]
        for name in [name for name in wanted if name in given]:
            shape, dtype = given[name]
            expected = wanted[name].resolve(batch, height, width)
            if tuple(shape) != expected:
                problems.append(f"{name} has shape {tuple(shape)}, expected {expected}")
            if dtype != wanted[name].dtype:
                problems.append(f"{name} has dtype {dtype}, expected {wanted[name].dtype}")
        if problems:
            place = f"{self.direction} state for {batch} streams of {height}x{width}"
            advice = "start from the initial state, or restore a snapshot of the same model and size"
            raise StateError(f"{place}: {'; '.join(problems)}; {advice}")
