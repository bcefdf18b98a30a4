"""Reading video files: what makes one unusable, its facts, and exact frames from its middle."""

import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Any

import av
from av.stream import Discard

from wfvae.train.data.clip_source import BadClip
from wfvae.video.one_file import one_file_options
from wfvae.video.stored_pixels import assume_left_siting
from wfvae.video.streams import default_stream, video_streams

_FAILURES = (av.FFmpegError, OSError, ValueError, RuntimeError)
"""Includes FFmpeg's lack of memory, for broken files that claim to be huge; not Python's."""

_CHARACTER_ART = frozenset({"tty", "bin", "xbin", "adf", "idf"})
"""Demuxers that turn any text or binary file into a "video" of characters."""
_DEFAULT_FPS = Fraction(25)
_STEPS_BACK = (Fraction(0), Fraction(1), Fraction(5))
"""Seconds that a seek aims before the wanted frame, one after another: in containers that list
decoding times, or positions only, a seek may land behind its aim."""

_SKIPPING = frozenset({"h264", "hevc", "mpeg2video", "mpeg4"})
"""Decoders that can skip frames on which no other depends. AV1's skips wanted ones too."""


class UnusableError(Exception):
    """Why a file cannot be used, in a few words; `refused` adds the name of the file."""


@contextmanager
def refused(name: str) -> Iterator[None]:
    """Turns complaints of FFmpeg and the operating system into `BadClip` of this name."""
    try:
        yield
    except BadClip:
        raise
    except UnusableError as error:
        raise BadClip(name, str(error)) from error
    except _FAILURES as error:
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BadClip(name, " ".join(str(text).split())) from error


@contextmanager
def opened_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """Yields the container and its default video stream, no cover art, decoding in one thread.

    It may name no other file or address, so playlists are refused.
    """
    if path.stat().st_size == 0:
        raise UnusableError("the file is empty (0 bytes)")
    with av.open(f"file:{path}", "r", options=one_file_options(), metadata_errors="replace") as container:
        if container.format.name in _CHARACTER_ART:
            raise UnusableError("this is a text or binary file, not a video")
        videos = video_streams(container)
        if not videos:
            raise UnusableError("it has no video stream")
        stream: Any = default_stream(videos)
        if stream.codec_context is None:
            raise UnusableError("its video codec cannot be decoded by this FFmpeg")
        for other in container.streams:
            if other is not stream:
                other.discard = Discard.all
        assume_left_siting(stream)
        # The workers keep the cores busy.
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        yield container, stream


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
