"""Frames out of a video container (a file or a pipe), through FFmpeg."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import av
from av.stream import Discard, Disposition

from wfvae.errors import MediaError
from wfvae.runtime.media.cut_short import missing_bytes
from wfvae.runtime.media.media_failures import Failure, describe, reason
from wfvae.runtime.media.video_color import PRIMARIES, RANGES, SPACES, TRANSFERS, RGBConverter, name_of
from wfvae.runtime.media.video_info import SourceKind, VideoInfo
from wfvae.video.stored_pixels import RGBArray, orientation_of

# Demuxers that turn any text or binary file into a "video" of characters.
CHARACTER_ART = frozenset({"tty", "bin", "xbin", "adf", "idf"})
DEFAULT_FPS = Fraction(25)
INDEX_ENTRIES_LOOKED_AT = 4096


class _DamagedFrameError(Exception):
    """The decoder could only conceal what was missing of a frame."""


class ContainerSource:
    """One pass over the first real video stream of a container. Attached pictures (cover art) are
    not video.

    The first frame is decoded on construction, so that what is no video fails here.
    """

    def __init__(self, source: Path | BinaryIO, name: str, *, keep_damaged: bool) -> None:
        self._path = source if isinstance(source, Path) else None
        self._name = name
        self._keep_damaged = keep_damaged
        self._container = open_container(source, name)
        try:
            self._stream: Any = _video_stream(self._container, name)
            # Threads that work on several frames at once lose sound frames when one of them fails.
            self._stream.thread_type = "SLICE" if keep_damaged else "AUTO"
            self._packets: Iterator[Any] = self._container.demux(self._stream)
            self._converter = RGBConverter(self._stream.codec_context.name)
            self._decoded = 0
            self._origin: Fraction | None = (
                start_of(self._container) if self._container.streams.audio else None
            )
            self._fps = _rate(self._stream)
            self._last_time: Fraction | None = None
            self._frames = self._decode()
            self._first: av.VideoFrame | None = self._first_frame()
            self._size = (self._first.width, self._first.height)
            self._orientation = orientation_of(self._first)
            self.info = self._describe(self._first)
        except Failure as error:
            self.close()
            raise describe(error, f"reading '{name}'") from error

    def close(self) -> None:
        """Release decoder and file. A pipe stays open: it belongs to the process."""
        self._container.close()

    def skip(self, count: int) -> int:
        """Decode and drop up to `count` frames; the number dropped, less than `count` only at the
        end of the video.
        """
        dropped = 0
        while dropped < count and self._next() is not None:
            dropped += 1
        return dropped

    def __iter__(self) -> Iterator[tuple[RGBArray, Fraction]]:
        while (item := self._next()) is not None:
            frame, time = item
            yield self._convert(frame), time

    def _next(self) -> tuple[av.VideoFrame, Fraction] | None:
        frame, self._first = self._first, None
        if frame is None:
            frame = next(self._frames, None)
        if frame is None:
            return None
        self._check_size(frame)
        self._decoded += 1
        return frame, self._time(frame)

    def _first_frame(self) -> av.VideoFrame:
        frame = next(self._frames, None)
        if frame is None:
            raise MediaError(
                f"'{self._name}' holds a video stream but no frames; expected at least one, check how the"
                " file was made"
            )
        return frame

    def _convert(self, frame: av.VideoFrame) -> RGBArray:
        try:
            return self._orientation.apply(self._converter.convert(frame))
        except Failure as error:
            raise describe(
                error,
                f"converting frame {self._decoded - 1} of '{self._name}' from {frame.format.name} to RGB",
            ) from error

    def _check_size(self, frame: av.VideoFrame) -> None:
        if (frame.width, frame.height) != self._size:
            raise MediaError(
                f"frame {self._decoded} of '{self._name}' is {frame.width}x{frame.height}, but the frames"
                f" before it are {self._size[0]}x{self._size[1]}; split the video there or rescale it to one"
                " size first"
            )

    def _time(self, frame: av.VideoFrame) -> Fraction:
        """Seconds from the start of the file. A missing or repeated timestamp is replaced by the
        previous one + 1 / fps.
        """
        time = None
        if frame.pts is not None and frame.time_base:
            time = frame.pts * Fraction(frame.time_base)
            if self._origin is None:
                self._origin = (
                    time  # without audio the first frame is the start; AVI's stated one can be a frame off
                )
            time -= self._origin
        if self._last_time is None:
            self._last_time = time if time is not None else Fraction(0)
        elif time is None or time <= self._last_time:
            self._last_time += 1 / self._fps
        else:
            self._last_time = time
        return self._last_time

    def _decode(self) -> Iterator[av.VideoFrame]:
        """Decoded frames in presentation order. Damage ends the stream with `MediaError`, after the
        frames that came before it.
        """
        try:
            for packet in self._packets:
                yield from self._sound_frames(packet)
        except _DamagedFrameError as error:
            raise self._damaged(error) from error
        except Failure as error:
            yield from self._held_frames()
            raise self._damaged(error) from error
        self._check_whole()

    def _sound_frames(self, packet: Any) -> Iterator[av.VideoFrame]:
        if packet.is_corrupt and not self._keep_damaged:
            raise MediaError("a packet is incomplete")
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            if not self._keep_damaged:
                raise
            return
        for frame in frames:
            if frame.is_corrupt and not self._keep_damaged:
                raise _DamagedFrameError("the next frame is damaged")
            yield frame

    def _held_frames(self) -> Iterator[av.VideoFrame]:
        """Frames that decoder threads still hold when the packets end in a failure, as long as they
        are sound.
        """
        try:
            held = self._stream.codec_context.decode(None)
        except Failure:
            return
        for frame in held:
            if frame.is_corrupt:
                return
            yield frame

    def _damaged(self, failure: BaseException) -> MediaError:
        return MediaError(
            f"'{self._name}' is damaged or cut short: {reason(failure)} after {self._decoded} good frames;"
            " these are sound; repair or download the file again, or read it with keep_damaged"
            " (--keep-damaged)"
        )

    def _check_whole(self) -> None:
        if self._path is None or self._keep_damaged:
            return
        missing = missing_bytes(self._path)
        if missing:
            raise MediaError(
                f"'{self._name}' is cut short: {missing} bytes that its header announces are missing,"
                f" {self._decoded} frames were read; these are sound; download or record the file again, or"
                " read it with keep_damaged (--keep-damaged)"
            )

    def _describe(self, frame: av.VideoFrame) -> VideoInfo:
        height, width = frame.height, frame.width
        if self._orientation.transpose:
            height, width = width, height
        aspect = self._stream.codec_context.sample_aspect_ratio
        kind: SourceKind = "pipe" if self._path is None else "file"
        return VideoInfo(
            width=width,
            height=height,
            fps=self._fps,
            time_base=Fraction(self._stream.time_base) if self._stream.time_base else None,
            frames=self._stream.frames or None,
            pixel_format=frame.format.name,
            color_range=RANGES.get(frame.color_range),
            color_space=(
                "rgb"
                if frame.format.is_rgb or frame.format.has_palette
                else name_of(SPACES, frame.colorspace)
            ),
            color_primaries=name_of(PRIMARIES, frame.color_primaries),
            color_transfer=name_of(TRANSFERS, frame.color_trc),
            rotation=self._orientation.rotation,
            variable_frame_rate=_is_variable(self._stream),
            has_audio=bool(self._container.streams.audio),
            kind=kind,
            sample_aspect_ratio=Fraction(aspect) if aspect and aspect != 1 else None,
        )


def open_container(source: Path | BinaryIO, name: str) -> Any:
    """The opened container. Only local files may be reached from inside it (playlists that name
    addresses are refused).
    """
    target: Any = f"file:{source}" if isinstance(source, Path) else source
    if isinstance(source, Path):
        _check_file(source)
    try:
        container = av.open(
            target, "r", options={"protocol_whitelist": "file,crypto,data"}, metadata_errors="replace"
        )
    except Failure as error:
        hint = "check that the file is complete and is a video"
        if not isinstance(source, Path):
            hint = (
                "an MP4 on a pipe must have its index in front (faststart); give width, height and fps for"
                " raw frames, or use a file"
            )
        raise MediaError(
            f"cannot read '{name}' as video: {reason(error)}; expected a container such as mp4, mkv, webm,"
            f" mov, gif or avi; {hint}"
        ) from error
    if container.format.name in CHARACTER_ART:
        container.close()
        raise MediaError(
            f"'{name}' is a text or binary file, not a video; expected a container such as mp4, mkv, webm,"
            " mov, gif or avi"
        )
    return container


def packet_count(path: Path) -> int:
    """Packets of the video stream that `ContainerSource` reads, counted without decoding: mostly
    one per frame, but that is no promise.

    Raises `MediaError` if the file is no video, or damaged.
    """
    container = open_container(path, str(path))
    try:
        return sum(1 for packet in container.demux(_video_stream(container, str(path))) if packet.size)
    except Failure as error:
        raise describe(error, f"reading '{path}'") from error
    finally:
        container.close()


def _check_file(path: Path) -> None:
    if not path.exists():
        raise MediaError(f"no such file: '{path}'; check the path")
    if not path.is_file():
        raise MediaError(
            f"'{path}' is neither a file nor a directory; expected a video file, a directory of images, or -"
            " for a pipe"
        )
    if path.stat().st_size == 0:
        raise MediaError(f"'{path}' is empty (0 bytes); expected a video, check how the file was made")


def _video_stream(container: Any, name: str) -> Any:
    real = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not real:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "no streams"
        raise MediaError(
            f"'{name}' has no video stream (found: {kinds}); expected a file with moving pictures"
        )
    stream = real[0]
    if stream.codec_context is None:
        raise MediaError(
            f"'{name}' is of a video codec that this FFmpeg cannot decode; convert it to H.264, VP9 or AV1"
            " first"
        )
    for other in container.streams:
        if other is not stream:
            other.discard = Discard.all  # do not buffer packets that nobody asks for
    return stream


def start_of(container: Any) -> Fraction:
    """Start of the earliest stream, in seconds: the zero of all times, so that video and audio keep
    their distance.
    """
    starts = [
        stream.start_time * Fraction(stream.time_base)
        for stream in container.streams
        if stream.type in ("video", "audio") and stream.start_time is not None and stream.time_base
    ]
    return min(starts, default=Fraction(0))


def _rate(stream: Any) -> Fraction:
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate:
            return Fraction(rate)
    return DEFAULT_FPS


def _is_variable(stream: Any) -> bool:
    """Whether index or rates show unequal steps. An index counts only if it lists every frame (as
    MP4's does).
    """
    entries = stream.index_entries
    if stream.frames and len(entries) == stream.frames:
        stamps = [entry.timestamp for entry in entries[: min(len(entries), INDEX_ENTRIES_LOOKED_AT)]]
        steps = [later - earlier for earlier, later in pairwise(stamps)]
        return bool(steps) and max(steps) - min(steps) > 1  # one tick is rounding
    if stream.codec_context.name == "gif":
        return False  # FFmpeg's base rate of a GIF is a guess from its first delays
    average, base = stream.average_rate, stream.base_rate
    return bool(
        average and base and abs(average - base) * 10 > base
    )  # Matroska's milliseconds alone make some per cent
