"""Exact frames from the middle of a video, decoding as little as possible."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Any

import av

from wfvae.train.data.video_container import UnusableError, opened_video
from wfvae.train.data.video_probe import VideoFacts

_STEPS_BACK = (Fraction(0), Fraction(1), Fraction(5))
"""Seconds that a seek aims before the wanted frame, one after another: in containers that list
decoding times, or positions only, a seek may land behind its aim."""

_SKIPPING = frozenset({"h264", "hevc", "mpeg2video", "mpeg4"})
"""Decoders that can skip frames on which no other depends. AV1's skips wanted ones too."""


def frames_from(path: Path, facts: VideoFacts, number: int) -> Generator[av.VideoFrame]:
    """Yields the frames from `number` (from 0) on in presentation order; close it when done.

    Decoding starts at the key frame before, or, where a container has no time stamps or cannot be
    searched, at the first frame. In a video of varying frame rate `number` stands for the time
    number / fps; frames follow one another without gaps there too.

    Raises:
        UnusableError: a frame is damaged.
        av.FFmpegError, OSError: the file cannot be read on.
    """
    if number > 0:
        with opened_video(path) as (container, stream):
            frames = frames_after_seek(container, stream, facts, number)
            if frames is not None:
                yield from frames
                return
    with opened_video(path) as (container, stream):
        yield from islice(_decoded(container, stream, None), number, None)


def frames_after_seek(
    container: Any, stream: Any, facts: VideoFacts, number: int
) -> Iterator[av.VideoFrame] | None:
    """Returns the frames from `number` on by a key frame; None if no seek finds one before."""
    if facts.first_pts is None or not stream.time_base:
        return None
    tick = Fraction(stream.time_base)
    frame_ticks = 1 / (facts.fps * tick)
    # Half a frame early: stamps are rounded to ticks, and so is the rate.
    target = facts.first_pts + math.ceil((number - Fraction(1, 2)) * frame_ticks)
    for back in _STEPS_BACK:
        aim = target - round(back / tick)
        if aim <= facts.first_pts:
            return None
        try:
            container.seek(aim, stream=stream, backward=True)
        except av.FFmpegError:
            return None
        frames = _decoded(container, stream, target)
        first = next(frames, None)
        if first is None or first.pts is None:
            continue
        if first.pts < target:
            return (frame for frame in frames if frame.pts is None or frame.pts >= target)
        if first.pts < target + frame_ticks:  # the very frame sought, not a later one
            return chain([first], frames)
    return None


def share_of_time(path: Path, facts: VideoFacts) -> float:
    """Returns the share of the header's time at which the last frame ends, by time stamps.

    1 where there are no time stamps; 0 if nothing is left where the last frames should be.

    Raises:
        av.FFmpegError, OSError: the file cannot be read.
    """
    with opened_video(path) as (container, stream):
        if facts.first_pts is None or not stream.time_base:
            return 1.0
        ticks = facts.frames / (facts.fps * Fraction(stream.time_base))
        with suppress(av.FFmpegError):  # a file that cannot be searched is read from its start
            container.seek(facts.first_pts + round(ticks), stream=stream, backward=True)
        ends = [p.pts + (p.duration or 0) for p in container.demux(stream) if p.pts is not None]
    return float((max(ends, default=facts.first_pts) - facts.first_pts) / ticks)


def _decoded(container: Any, stream: Any, needed_from: int | None) -> Iterator[av.VideoFrame]:
    """Yields all frames from here on, or skips some before the time stamp `needed_from`."""
    context = stream.codec_context
    may_skip = context.codec.name in _SKIPPING and needed_from is not None
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise UnusableError("a packet is damaged or cut short")
        if may_skip and packet.pts is not None:
            context.skip_frame = "NONREF" if packet.pts < needed_from else "DEFAULT"
        for frame in packet.decode():
            if frame.is_corrupt and (needed_from is None or frame.pts is None or frame.pts >= needed_from):
                raise UnusableError("a frame is damaged")
            yield frame
