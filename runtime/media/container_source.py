"""Frames out of a video container (a file or a pipe), through FFmpeg."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import av

from wfvae.errors import MediaError
from wfvae.runtime.media.color import RGBConverter
from wfvae.runtime.media.container_input import (
    frame_rate,
    info_of_stream,
    open_container,
    select_video_stream,
    start_of,
)
from wfvae.runtime.media.failures import Failure, reason, translate, translated
from wfvae.runtime.media.truncation import missing_bytes
from wfvae.runtime.media.video_info import SourceKind
from wfvae.video.stored_pixels import RGBArray, assume_left_siting, orientation_of


class ContainerSource:
    """One pass over the frames of a container's video stream.

    The first frame is decoded on construction, so that a file that is no video fails there. Damage
    raises `MediaError` after the frames that came before it.
    """

    def __init__(self, source: Path | BinaryIO, name: str, *, keep_damaged: bool) -> None:
        self._path = source if isinstance(source, Path) else None
        self._name, self._keep_damaged = name, keep_damaged
        self._container = open_container(source, name)
        try:
            with translated(f"reading '{name}'"):
                self._stream: Any = select_video_stream(self._container, name)
                # Threads that work on several frames at once lose good frames when one fails.
                self._stream.thread_type = "SLICE" if keep_damaged else "AUTO"
                assume_left_siting(self._stream)
                self._converter = RGBConverter(self._stream.codec_context.name)
                self._decoded = 0
                self._packets: Iterator[Any] = self._container.demux(self._stream)
                frames = self._decode()
                first = next(frames, None)
                if first is None:
                    problem = f"'{name}' holds a video stream but no frames"
                    raise MediaError(f"{problem}; expected at least one, check how the file was made")
                self._orientation = orientation_of(first)
                self._frames = self._timed(first, chain([first], frames))
                kind: SourceKind = "pipe" if self._path is None else "file"
                self.info = info_of_stream(self._container, self._stream, first, kind)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._container.close()

    def skip(self, count: int) -> int:
        return sum(1 for _ in islice(self._frames, count))

    def __iter__(self) -> Iterator[tuple[RGBArray, Fraction]]:
        for frame, time in self._frames:
            yield self._convert(frame), time

    def _timed(self, first: Any, frames: Iterable[Any]) -> Iterator[tuple[av.VideoFrame, Fraction]]:
        """Yields frames of one size with their times in seconds, which increase strictly.

        A missing or repeated time is replaced by the previous one + 1 / fps.
        """
        # Without audio the first frame is the start, since AVI's may be a frame off.
        start = start_of(self._container) if self._container.streams.audio else None
        step, last = 1 / frame_rate(self._stream), None
        for frame in frames:
            if (frame.width, frame.height) != (first.width, first.height):
                problem = f"frame {self._decoded} of '{self._name}' is {frame.width}x{frame.height}"
                before = f"the frames before it are {first.width}x{first.height}"
                raise MediaError(f"{problem}, but {before}; split the video there or rescale it to one size")
            stated = (
                frame.pts * Fraction(frame.time_base) if frame.pts is not None and frame.time_base else None
            )
            start = stated if start is None else start
            time = None if stated is None or start is None else stated - start
            if last is None:
                last = time or Fraction(0)
            else:
                last = time if time is not None and time > last else last + step
            self._decoded += 1
            yield frame, last

    def _convert(self, frame: av.VideoFrame) -> RGBArray:
        try:
            return self._orientation.apply(self._converter.convert(frame))
        except Failure as error:
            doing = f"converting frame {self._decoded - 1} of '{self._name}' from {frame.format.name} to RGB"
            raise translate(error, doing) from error

    def _decode(self) -> Iterator[av.VideoFrame]:
        """Yields decoded frames in presentation order."""
        try:
            for packet in self._packets:
                yield from self._undamaged_frames(packet)
        except MediaError:  # of a damaged frame, after which nothing is sound
            raise
        except Failure as error:
            yield from self._pending_frames()
            raise self._damaged(f"is damaged or cut short: {reason(error)}") from error
        missing = 0 if self._path is None or self._keep_damaged else missing_bytes(self._path)
        if missing:
            problem = f"is cut short: {missing} bytes that its header announces are missing"
            raise self._damaged(problem, "download or record")

    def _undamaged_frames(self, packet: Any) -> Iterator[av.VideoFrame]:
        if packet.is_corrupt and not self._keep_damaged:
            raise OSError("a packet is incomplete")
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            if not self._keep_damaged:
                raise
            return
        for frame in frames:
            if frame.is_corrupt and not self._keep_damaged:
                raise self._damaged("is damaged or cut short: the next frame is incomplete")
            yield frame

    def _pending_frames(self) -> Iterator[av.VideoFrame]:
        """Yields the undamaged frames that decoder threads still hold when the packets fail."""
        try:
            pending = self._stream.codec_context.decode(None)
        except Failure:
            return
        for frame in pending:
            if frame.is_corrupt:
                return
            yield frame

    def _damaged(self, problem: str, repair: str = "repair or download") -> MediaError:
        read = f"{self._decoded} frames were read and are sound"
        advice = f"{repair} the file again, or read it with keep_damaged (--keep-damaged)"
        return MediaError(f"'{self._name}' {problem}; {read}; {advice}")
