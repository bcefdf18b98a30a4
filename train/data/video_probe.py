"""The facts about a video file that are needed to draw clips from it."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from wfvae.train.data.video_container import UnusableError, opened_video, refused

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
    """Time stamp of the first frame in ticks of the stream; None without reliable time stamps."""
    codec: str
    """FFmpeg's name of the codec."""


def probe(path: Path, name: str) -> VideoFacts:
    """Reads the header and decodes the first frame. Packets are counted if the header has no count.

    Raises:
        BadClip: the file cannot be used, of the given name.
    """
    with refused(name), opened_video(path) as (container, stream):
        frame = next(container.decode(stream), None)
        if frame is None:
            raise UnusableError("it has a video stream but no frames")
        rates = (stream.average_rate, stream.guessed_rate, stream.base_rate)
        rate = next((Fraction(rate) for rate in rates if rate), _DEFAULT_FPS)
        count = stream.frames
        if count < 1:
            count, rate = _count_packets(path, rate)
        # AVI holds no presentation times: what FFmpeg makes up for reordered frames is wrong.
        is_timed = container.format.name != "avi" or not stream.codec_context.has_b_frames
        first_pts = frame.pts if is_timed else None
        return VideoFacts(count, rate, (frame.height, frame.width), first_pts, stream.codec_context.name)


def _count_packets(path: Path, rate: Fraction) -> tuple[int, Fraction]:
    """Returns the number of frames and their average rate, from the packets alone."""
    with opened_video(path) as (container, stream):
        stamps: list[Any] = [packet.pts for packet in container.demux(stream) if packet.size]
    known = [stamp for stamp in stamps if stamp is not None]
    if len(known) > 1 and len(known) == len(stamps) and max(known) > min(known) and stream.time_base:
        rate = Fraction(len(known) - 1) / ((max(known) - min(known)) * Fraction(stream.time_base))
    return len(stamps), rate
