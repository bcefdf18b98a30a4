"""What containers and frames state about a video, as `VideoInfo`."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import av

from wfvae.runtime.media.color_tags import PRIMARIES, RANGES, SPACES, TRANSFERS
from wfvae.runtime.media.video_info import SourceKind, VideoInfo
from wfvae.video.stored_pixels import orientation_of

DEFAULT_FPS = Fraction(25)
INDEX_ENTRIES_CHECKED = 4096


def info_of_frame(frame: av.VideoFrame, fps: Fraction, kind: SourceKind) -> VideoInfo:
    """Reads what a decoded frame states about the video that it belongs to."""
    orientation = orientation_of(frame)
    height, width = frame.height, frame.width
    if orientation.transpose:
        height, width = width, height
    is_rgb = frame.format.is_rgb or frame.format.has_palette
    return VideoInfo(
        width=width,
        height=height,
        fps=fps,
        pixel_format=frame.format.name,
        color_range=RANGES.get(frame.color_range),
        color_space="rgb" if is_rgb else SPACES.get(frame.colorspace),
        rotation=orientation.rotation,
        kind=kind,
    )


def info_of_stream(container: Any, stream: Any, frame: av.VideoFrame, kind: SourceKind) -> VideoInfo:
    """Reads what a container states about its video stream, of which `frame` is the first frame."""
    aspect = stream.codec_context.sample_aspect_ratio
    return replace(
        info_of_frame(frame, frame_rate(stream), kind),
        time_base=Fraction(stream.time_base) if stream.time_base else None,
        frames=stream.frames or None,
        color_primaries=PRIMARIES.get(frame.color_primaries),
        color_transfer=TRANSFERS.get(frame.color_trc),
        variable_frame_rate=_has_variable_rate(stream),
        has_audio=bool(container.streams.audio),
        sample_aspect_ratio=Fraction(aspect) if aspect and aspect != 1 else None,
    )


def frame_rate(stream: Any) -> Fraction:
    """The rate that the container states, or FFmpeg's best guess."""
    rates = (stream.average_rate, stream.guessed_rate, stream.base_rate, DEFAULT_FPS)
    return next(Fraction(rate) for rate in rates if rate)


def _has_variable_rate(stream: Any) -> bool:
    """Whether index or rates show unequal steps."""
    entries = stream.index_entries
    if stream.frames and len(entries) == stream.frames:  # an index of every frame, as MP4 has
        stamps = [entry.timestamp for entry in entries[: min(len(entries), INDEX_ENTRIES_CHECKED)]]
        steps = [later - earlier for earlier, later in pairwise(stamps)]
        return bool(steps) and max(steps) - min(steps) > 1  # one tick is rounding
    average, base = stream.average_rate, stream.base_rate
    if stream.codec_context.name == "gif" or not average or not base:
        return False  # FFmpeg's base rate of a GIF is a guess from its first delays
    return bool(abs(average - base) * 10 > base)  # Matroska's milliseconds alone make some per cent
