"""Cutting the work into parts, each of which becomes one shard.

The plan depends on the source and the options alone, not on engines, workers or rows. It is stored,
so that an interrupted run continues with the same parts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated

import msgspec
from msgspec import Meta

from wfvae.runtime.dataset.options import ClipOptions
from wfvae.runtime.dataset.videos import Video
from wfvae.spec.frames import latent_frames, latent_size
from wfvae.spec.latents import FRAMES_AT_MOST, Side
from wfvae.spec.records import Record

FEWEST_PARTS = 16
"""Parts that a data set is cut into at least, as far as it has samples: work for that many
workers, and what a kill may cost at most.
"""
DEFAULT_PART_BYTES = 256 << 20
Count = Annotated[int, Meta(ge=0, le=FRAMES_AT_MOST)]


class Probe(Record, frozen=True):
    """What is known of a video before it is encoded, or why it cannot be."""

    height: int = 0
    width: int = 0
    fps: str = "0"
    frames: int = 0
    """As the container counts them."""
    failure: str | None = None


class Unit(Record, frozen=True):
    """Some consecutive windows of one video, or the whole of it."""

    index: Count
    """The video's position in the source."""
    video: Video
    height: Side
    width: Side
    """Size of the frames to be encoded."""
    first_window: Count = 0
    windows: Annotated[int, Meta(ge=1, le=FRAMES_AT_MOST)] | None = None
    """Windows at most; None: as many as there are."""
    samples: int = 1
    frames: int = 0
    work: int = 0
    """Estimates, the work in latent pixels."""


class Part(Record, frozen=True):
    """The units of one shard."""

    number: Count
    units: tuple[Unit, ...]

    @property
    def work(self) -> int:
        """The estimated work, in latent pixels."""
        return sum(unit.work for unit in self.units)


def encoded_size(options: ClipOptions, probe: Probe) -> tuple[int, int]:
    """Returns the height and width of the frames that are encoded."""
    return options.size or (probe.height, probe.width)


def estimated_frames(options: ClipOptions, probe: Probe) -> int:
    """Returns the frames of the whole video after resampling, as far as the container knows."""
    frames, fps = max(1, probe.frames), Fraction(probe.fps)
    if options.rate and fps:
        frames = max(1, int(frames * options.rate / fps))
    return frames


@dataclass(frozen=True)
class PartSize:
    """What a part may hold, about."""

    work: float = math.inf
    """Latent pixels."""
    samples: float = math.inf

    def holds(self, samples: int, work: int) -> bool:
        """Whether a part of these estimates is small enough."""
        return work <= self.work and samples <= self.samples


def estimated_work(probe: Probe, options: ClipOptions, ratio: int) -> int:
    """Returns the latent pixels of a video's samples, as far as the container knows."""
    height, width = encoded_size(options, probe)
    rows, columns = latent_size(height, width)
    frames, span = estimated_frames(options, probe), options.window_span
    if options.frames is None or span is None:
        return rows * columns * latent_frames(max(1, frames // options.stride), ratio)
    limit = options.window_limit
    windows = max(1, frames // span)
    windows = windows if limit is None else min(windows, limit)
    return rows * columns * latent_frames(options.frames, ratio) * windows


def units_of(
    index: int, video: Video, probe: Probe, options: ClipOptions, ratio: int, size: PartSize
) -> Iterator[Unit]:
    """Cuts a video into units that a part holds; a whole video is one unit.

    The last unit takes all windows that are left, so that none is lost where the container
    understates its frames.
    """
    height, width = encoded_size(options, probe)
    total = estimated_work(probe, options, ratio)
    if options.frames is None:
        frames = max(1, estimated_frames(options, probe) // options.stride)
        yield Unit(index, video, height, width, 0, 1, 1, frames, total)
        return
    limit = options.window_limit
    rows, columns = latent_size(height, width)
    each = rows * columns * latent_frames(options.frames, ratio)
    windows = total // each
    step = int(max(1, min(size.work // each, size.samples, windows)))
    for first in range(0, windows, step):
        samples = min(step, windows - first)
        left = None if limit is None else limit - first
        is_last = first + step >= windows
        count = left if is_last else samples
        yield Unit(
            index, video, height, width, first, count, samples, samples * options.frames, samples * each
        )


def cut_parts(units: Iterable[Unit], size: PartSize) -> Iterator[Part]:
    """Groups units, in their order, into parts."""
    gathered: list[Unit] = []
    number = samples = work = 0
    for unit in units:
        if gathered and not size.holds(samples + unit.samples, work + unit.work):
            yield Part(number, tuple(gathered))
            gathered, number, samples, work = [], number + 1, 0, 0
        gathered.append(unit)
        samples, work = samples + unit.samples, work + unit.work
    if gathered:
        yield Part(number, tuple(gathered))


def encode_parts(parts: Sequence[Part]) -> bytes:
    """Returns a plan as JSON, one part a line."""
    encoder = msgspec.json.Encoder()
    return encoder.encode_lines(parts)
