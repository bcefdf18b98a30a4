"""Exact frames from the middle of a video, decoding as little as possible."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av

from wfvae.train.data.video_container import UnusableError

__all__ = ["frames_from"]

_STEPS_BACK = (Fraction(0), Fraction(1), Fraction(5))
"""Seconds that a seek aims before the wanted frame, one after another. With B-frames a container that lists decoding times lands behind
a frame whose key frame it takes for too late."""


def frames_from(container: Any, stream: Any, number: int, first_pts: int | None, fps: Fraction) -> Iterator[av.VideoFrame]:
    """The frames `number`, number + 1, ... in presentation order, from the key frame before.

    Args:
        number: counts from 0.
        first_pts: time stamp of frame 0 in the stream's time base; None if the container has no time stamps.
        fps: frames per second, to find the frame's time.

    Raises:
        UnusableError: a frame is damaged.
        av.FFmpegError: FFmpeg cannot go on.
    """
    if number == 0 or first_pts is None or not stream.time_base:
        yield from _skipping(_decoded(container, stream, None), number)
        return
    tick = Fraction(stream.time_base)
    # Half a frame early: stamps are rounded to ticks, and so is the rate.
    target = first_pts + round((number - Fraction(1, 2)) / fps / tick)
    for back in _STEPS_BACK:
        aim = target - round(back / tick)
        if aim <= first_pts:
            break
        try:
            container.seek(aim, stream=stream, backward=True)
        except av.FFmpegError:
            break
        frames = _decoded(container, stream, target)
        first = next(frames, None)
        if first is not None and first.pts is not None and first.pts < target:
            yield from (frame for frame in frames if frame.pts is None or frame.pts >= target)
            return
        if first is not None and first.pts is not None and first.key_frame and _is_wanted(first.pts, target, fps, tick):
            yield first
            yield from frames
            return
    container.seek(first_pts, stream=stream, backward=True)
    yield from _skipping(_decoded(container, stream, None), number)


def _is_wanted(pts: int, target: int, fps: Fraction, tick: Fraction) -> bool:
    """Whether the first frame after a seek is the very frame sought, and not a later one."""
    return pts <= target + 1 / fps / tick


def _skipping(frames: Iterator[av.VideoFrame], count: int) -> Iterator[av.VideoFrame]:
    for _ in range(count):
        if next(frames, None) is None:
            return
    yield from frames


def _decoded(container: Any, stream: Any, needed_from: int | None) -> Iterator[av.VideoFrame]:
    """All frames from here on. Those before the time stamp `needed_from` that no other depends on may be left out."""
    context = stream.codec_context
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise UnusableError("a packet is damaged or cut short")
        if needed_from is not None and packet.pts is not None:
            context.skip_frame = "NONREF" if packet.pts < needed_from else "DEFAULT"
        for frame in packet.decode():
            if frame.is_corrupt and (needed_from is None or frame.pts is None or frame.pts >= needed_from):
                raise UnusableError("a frame is damaged")
            yield frame
