"""Opening containers for reading, choosing the stream to read, and what it states of the video."""

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import av
from av.stream import Discard

from wfvae.errors import MediaError
from wfvae.runtime.media.color import PRIMARIES, RANGES, SPACES, TRANSFERS
from wfvae.runtime.media.failures import Failure, reason, translated
from wfvae.runtime.media.hdr import content_light, mastering_display
from wfvae.runtime.media.video_info import FieldOrder, SourceKind, VideoInfo
from wfvae.spec.latents import ASPECT_TERM_AT_MOST
from wfvae.spec.memory import require_memory
from wfvae.video.one_file import one_file_options
from wfvae.video.picture_size import PIXEL_BYTES, size_options
from wfvae.video.stored_pixels import orientation_of
from wfvae.video.streams import default_stream, video_streams

DEFAULT_FPS = Fraction(25)
INDEX_ENTRIES_CHECKED = 4096
CONTAINERS = "a container such as mp4, mkv, webm, mov, gif or avi"
FIELD_ORDERS: Mapping[int, FieldOrder] = {2: "top", 3: "bottom", 4: "bottom", 5: "top"}
"""By FFmpeg's number, which also says the field that is coded first: the one shown first."""
CHARACTER_ART = frozenset({"tty", "bin", "xbin", "adf", "idf"})
"""Demuxers that turn any text or binary file into a "video" of characters."""


def open_container(source: Path | BinaryIO, name: str) -> Any:
    """Opens a file or a pipe that FFmpeg recognises as a container."""
    target: Any = source
    hint = "use a file, or put the index of an MP4 in front (faststart), or give width, height and fps"
    if isinstance(source, Path):
        _check_file(source)
        target, hint = f"file:{source}", "check that the file is complete and is a video"
    try:
        options = one_file_options() | size_options()
        container = av.open(target, "r", options=options, metadata_errors="replace")
    except Failure as error:
        problem = f"cannot read '{name}' as video: {reason(error)}"
        raise MediaError(f"{problem}; expected {CONTAINERS}; {hint}") from error
    if container.format.name in CHARACTER_ART:
        container.close()
        raise MediaError(f"'{name}' is a text or binary file, not a video; expected {CONTAINERS}")
    return container


def select_video_stream(container: Any, name: str, wanted: int | None = None) -> Any:
    """Returns the video stream of index `wanted`, or the default one, and discards all others.

    Cover art is no choice.
    """
    streams = video_streams(container)
    if not streams:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "no streams"
        problem = f"'{name}' has no video stream (found: {kinds})"
        raise MediaError(f"{problem}; expected a file with moving pictures")
    stream = default_stream(streams)
    if wanted is not None:
        stream = next((one for one in streams if one.index == wanted), None)
        if stream is None:
            choices = ", ".join(str(one.index) for one in streams)
            raise MediaError(f"'{name}' has no video stream {wanted}; choose one of {choices} (--stream)")
    if stream.codec_context is None:
        problem = f"'{name}' has a video codec that this FFmpeg cannot decode"
        raise MediaError(f"{problem}; convert it to H.264, VP9 or AV1")
    limit_size(stream, f"frames of '{name}'")
    discard_all_but(container, [stream])
    return stream


def limit_size(stream: Any, what: str) -> None:
    """Raises `ResourceError` if frames of the stated size do not fit the memory, and makes the
    decoder refuse larger ones later.
    """
    context = stream.codec_context
    size = f"{what} of {context.width}x{context.height}"
    require_memory(PIXEL_BYTES * context.width * context.height, size, "use a smaller size")
    context.options = {**context.options, **size_options()}


def discard_all_but(container: Any, streams: list[Any]) -> None:
    """Makes the demuxer drop the packets of all other streams instead of buffering them."""
    for stream in container.streams:
        if stream not in streams:
            stream.discard = Discard.all


def start_of(container: Any) -> Fraction:
    """The start of the earliest stream in seconds: the zero of all times of video and audio."""
    starts = [
        stream.start_time * Fraction(stream.time_base)
        for stream in container.streams
        if stream.type in ("video", "audio") and stream.start_time is not None and stream.time_base
    ]
    return min(starts, default=Fraction(0))


def packet_count(path: Path) -> int:
    """Counts the packets of the video stream without decoding: mostly one per frame."""
    container = open_container(path, str(path))
    try:
        with translated(f"reading '{path}'"):
            stream = select_video_stream(container, str(path))
            return sum(1 for packet in container.demux(stream) if packet.size)
    finally:
        container.close()


def _check_file(path: Path) -> None:
    if not path.exists():
        raise MediaError(f"no such file: '{path}'; check the path")
    if not path.is_file():
        problem = f"'{path}' is neither a file nor a directory"
        raise MediaError(f"{problem}; expected a video file, a directory of images, or - for a pipe")
    if path.stat().st_size == 0:
        raise MediaError(f"'{path}' is empty (0 bytes); expected a video, check how the file was made")


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


def info_of_stream(
    container: Any, stream: Any, frame: av.VideoFrame, start: Fraction, kind: SourceKind
) -> VideoInfo:
    """Reads what a container states about its video stream, of which `frame` is the first frame.

    `start` is its time.
    """
    info = info_of_frame(frame, frame_rate(stream), kind)
    aspect = Fraction(stream.sample_aspect_ratio or 1).limit_denominator(ASPECT_TERM_AT_MOST)
    if not 0 < aspect.numerator <= ASPECT_TERM_AT_MOST:
        aspect = Fraction(1)
    if info.rotation in (90, 270):
        aspect = 1 / aspect
    return replace(
        info,
        time_base=Fraction(stream.time_base) if stream.time_base else None,
        frames=stated_frames(container, stream),
        color_primaries=PRIMARIES.get(frame.color_primaries),
        color_transfer=TRANSFERS.get(frame.color_trc),
        mastering_display=mastering_display(frame),
        content_light=content_light(frame),
        variable_frame_rate=_has_variable_rate(stream),
        field_order=_field_order(stream, frame),
        has_audio=bool(container.streams.audio),
        sample_aspect_ratio=None if aspect == 1 else aspect,
        start=start,
        video_stream=stream.index,
        video_streams=tuple(one.index for one in video_streams(container)),
    )


def stated_frames(container: Any, stream: Any) -> int | None:
    """The number of frames that the container states, None if none, or one that cannot be.

    A stream of unknown length may state a number far beyond the bytes of the file. Those of AVI
    count frames that were dropped, too.
    """
    if _dropped_frames(stream):
        return len(stream.index_entries)
    size = container.size
    return stream.frames if stream.frames and (size <= 0 or stream.frames <= size) else None


def _dropped_frames(stream: Any) -> int:
    """Frames without data, which AVI states where a recording dropped some."""
    entries = stream.index_entries
    if stream.container.format.name != "avi" or len(entries) < 2:
        return 0
    ticks: int = entries[-1].timestamp - entries[0].timestamp + 1
    return max(0, ticks - len(entries))


def _field_order(stream: Any, frame: av.VideoFrame) -> FieldOrder | None:
    stated: FieldOrder | None = FIELD_ORDERS.get(stream.codec_context.field_order)
    return stated or ("top" if frame.interlaced_frame else None)


def frame_rate(stream: Any) -> Fraction:
    """The average rate that the container states, or FFmpeg's best guess."""
    if _dropped_frames(stream):
        entries = stream.index_entries
        ticks = entries[-1].timestamp - entries[0].timestamp
        return Fraction(len(entries) - 1, ticks) / Fraction(stream.time_base)
    rates = (stream.average_rate, stream.guessed_rate, stream.base_rate, DEFAULT_FPS)
    return next(Fraction(rate) for rate in rates if rate)


def _has_variable_rate(stream: Any) -> bool:
    """Whether index or rates show unequal steps."""
    if _dropped_frames(stream):
        return True
    entries = stream.index_entries
    if stream.frames and len(entries) == stream.frames:  # an index of every frame, as MP4 has
        stamps = [entry.timestamp for entry in entries[: min(len(entries), INDEX_ENTRIES_CHECKED)]]
        steps = [later - earlier for earlier, later in pairwise(stamps)]
        return bool(steps) and max(steps) - min(steps) > 1  # one tick is rounding
    average, base = stream.average_rate, stream.base_rate
    if stream.codec_context.name == "gif" or not average or not base:
        return False  # FFmpeg's base rate of a GIF is a guess from its first delays
    return bool(abs(average - base) * 10 > base)  # Matroska's milliseconds alone make some per cent
