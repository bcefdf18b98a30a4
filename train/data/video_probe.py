"""What must be known of a video file to draw clips from it."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from wfvae.train.data.video_container import UnusableError, opened_video, refused

__all__ = ["VideoFacts", "probe"]

_DEFAULT_FPS = Fraction(25)


@dataclass(frozen=True)
class VideoFacts:
    """One decodable video."""

    frames: int
    """As the container counts them; the decoder may give a few less."""
    fps: Fraction
    """Average frame rate."""
    size: tuple[int, int]
    """(height, width) as stored, before rotation."""
    first_pts: int | None
    """Time stamp of the first frame in ticks of the stream; None without time stamps that can be
    relied on.
    """
    codec: str
    """FFmpeg's name of the codec."""


def probe(path: Path, name: str) -> VideoFacts:
    """Read the header and decode the first frame. Where the header does not tell the number of
    frames, packets are counted.

    Raises:
        BadClip: the file cannot be used, of the given name.
    """
    with refused(name), opened_video(path) as (container, stream):
        frame = next(container.decode(stream), None)
        if frame is None:
            raise UnusableError("it has a video stream but no frames")
        rate = next(
            (Fraction(rate) for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate) if rate),
            _DEFAULT_FPS,
        )
        count = stream.frames
        if count < 1:
            count, rate = _counted(path, rate)
        # AVI holds no presentation times: what FFmpeg makes up for frames that are stored out of
        # order is wrong.
        is_timed = container.format.name != "avi" or not stream.codec_context.has_b_frames
        first_pts = frame.pts if is_timed else None
        return VideoFacts(count, rate, (frame.height, frame.width), first_pts, stream.codec_context.name)


def _counted(path: Path, rate: Fraction) -> tuple[int, Fraction]:
    """The number of frames and their average rate, from the packets alone."""
    with opened_video(path) as (container, stream):
        stamps: list[Any] = [packet.pts for packet in container.demux(stream) if packet.size]
    known = [stamp for stamp in stamps if stamp is not None]
    if len(known) > 1 and len(known) == len(stamps) and max(known) > min(known) and stream.time_base:
        rate = Fraction(len(known) - 1) / ((max(known) - min(known)) * Fraction(stream.time_base))
    return len(stamps), rate
