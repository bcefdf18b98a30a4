"""Frame arithmetic of a stream: how a video of T frames maps to steps, latents and back.

    video        f0 f1 f2 f3 f4 | f5 ...          T frames
    stream  f0 f0 f0 [f0] | f1 f2 f3 f4 | f5 ...  r-1 copies of f0 in front, r = 4
    latents         z0          z1        z2      one per r frames

A T that is not 1 + r n is padded behind by repeating the last frame; the true T is recorded beside
the latents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from wfvae.errors import InputError

SPATIAL_RATIO = 8
"""Video pixels per latent pixel, in height and in width."""
PIXEL_TOLERANCE = 2 / 255
"""How far float pixels may be outside [-1, 1]: a step of 8-bit pixels, and of bf16 near 1."""
DEFAULT_CHUNK = 4
"""Latents per step. More of them save overhead and need memory; results do not depend on it."""


def lead_frames(ratio: int) -> int:
    """Copies of the first frame in front of the stream."""
    return ratio - 1


def tail_frames(frames: int, ratio: int) -> int:
    """Copies of the last frame behind a video of `frames` frames, which fill the last latent.

    >>> [tail_frames(frames, ratio=4) for frames in (1, 2, 5, 6)]
    [0, 3, 0, 3]
    """
    _require_frames(frames)
    return (1 - frames) % ratio


def latent_frames(frames: int, ratio: int) -> int:
    """Latents of a video of `frames` >= 1 frames: 1 + ceil((frames - 1) / ratio).

    >>> [latent_frames(frames, ratio=4) for frames in (1, 2, 5, 6)]
    [1, 2, 2, 3]
    """
    _require_frames(frames)
    return 1 + -(-(frames - 1) // ratio)


def video_frames(latents: int, ratio: int) -> int:
    """Frames that `latents` >= 1 latents decode to: 1 + ratio (latents - 1).

    >>> video_frames(3, ratio=4)
    9
    """
    if latents < 1:
        raise InputError(f"{latents} latents were given; expected at least 1")
    return 1 + ratio * (latents - 1)


def latent_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of the latents of a video of any size.

    >>> latent_size(30, 41)
    (4, 6)
    """
    if height < 1 or width < 1:
        raise InputError(f"the video size is {height}x{width}; expected at least 1x1")
    return -(-height // SPATIAL_RATIO), -(-width // SPATIAL_RATIO)


def padded_size(height: int, width: int) -> tuple[int, int]:
    """Height and width rounded up to multiples of 8; the border repeats the last row and column.

    >>> padded_size(30, 41)
    (32, 48)
    """
    rows, columns = latent_size(height, width)
    return rows * SPATIAL_RATIO, columns * SPATIAL_RATIO


def even_chunks(total: int, chunk: int) -> Iterator[int]:
    """Splits `total` into steps of `chunk` and a smaller last one.

    >>> list(even_chunks(7, 3))
    [3, 3, 1]
    """
    if chunk < 1:
        raise InputError(f"the chunk is {chunk}; expected at least 1")
    full, rest = divmod(total, chunk)
    yield from [chunk] * full
    if rest:
        yield rest


@dataclass(frozen=True)
class OutputWindow:
    """Which output frames of a decoder belong to the video: the first `drop` do not, the next T do.

    >>> part, window = OutputWindow(drop=5).take(8, limit=2)
    >>> part, window
    (slice(5, 7, None), OutputWindow(drop=0, given=2))
    """

    drop: int
    """Output frames still to be dropped."""
    given: int = 0
    """Video frames returned so far."""

    def take(self, count: int, limit: int | None = None) -> tuple[slice, OutputWindow]:
        """Returns the part of the next `count` frames, and the window after them; `limit` is T."""
        skip = min(self.drop, count)
        taken = count - skip if limit is None else min(count - skip, max(0, limit - self.given))
        return slice(skip, skip + taken), OutputWindow(self.drop - skip, self.given + taken)


def _require_frames(frames: int) -> None:
    if frames < 1:
        raise InputError(f"the video has {frames} frames; expected at least 1")
