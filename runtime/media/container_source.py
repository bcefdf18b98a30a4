"""Frames out of a video container (a file or a pipe), through FFmpeg."""

from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import av

from wfvae.errors import MediaError
from wfvae.runtime.media.color import RGBConverter
from wfvae.runtime.media.container_input import info_of_stream, open_container, select_video_stream, start_of
from wfvae.runtime.media.deinterlacing import deinterlaced
from wfvae.runtime.media.failures import Failure, reason, translate, translated
from wfvae.runtime.media.timeline import FrameTimes, PacketClock, clock_restarts, on_one_clock
from wfvae.runtime.media.truncation import missing_bytes
from wfvae.runtime.media.video_info import SourceKind
from wfvae.runtime.media.webp import ANIMATED_WEBP, is_animated_webp
from wfvae.video.stored_pixels import RGBArray, assume_left_siting, orientation_of

JOIN_PACKETS = 2
"""Where recordings were joined, a key frame is among this many packets after the broken counter."""


class ContainerSource:
    """One pass over the frames of a container's video stream.

    The first frame is decoded on construction, so that a file that is no video fails there. Damage
    raises `MediaError` after the frames that came before it.
    """

    def __init__(
        self,
        source: Path | BinaryIO,
        name: str,
        *,
        keep_damaged: bool = False,
        video_stream: int | None = None,
        deinterlace: bool = False,
    ) -> None:
        self._path = source if isinstance(source, Path) else None
        self._name, self._keep_damaged = name, keep_damaged
        self._decoded = self._joins = 0
        self._container = open_container(source, name)
        try:
            with translated(f"reading '{name}'"):
                self._stream: Any = select_video_stream(self._container, name, video_stream)
                # Threads that work on several frames at once lose good frames when one fails.
                self._stream.thread_type = "SLICE" if keep_damaged else "AUTO"
                assume_left_siting(self._stream)
                self._converter = RGBConverter(self._stream.codec_context.name)
                self._clock = PacketClock(restarts=clock_restarts(self._container))
                packets = self._complete_packets(self._container.demux(self._stream))
                self._packets = on_one_clock(packets, self._clock)
                frames = self._decode()
                first = next(frames, None)
                if first is None:
                    problem = f"'{name}' holds a video stream but no frames"
                    raise MediaError(f"{problem}; expected at least one, check how the file was made")
                self._orientation = orientation_of(first)
                self._origin = self._origin_of(first)
                kind: SourceKind = "pipe" if self._path is None else "file"
                start = (_time_of(first) or Fraction(0)) - self._origin
                self.info = info_of_stream(self._container, self._stream, first, start, kind)
                self._interlaced = self.info.field_order is not None and not deinterlace
                frames = self._of_one_size(first, chain([first], frames))
                if deinterlace:
                    frames = deinterlaced(frames, all_frames=self.info.field_order is None)
                self._frames = self._timed(frames)
        except BaseException:
            self.close()
            raise

    @property
    def notices(self) -> list[str]:
        """What a user should know of the frames read so far, a phrase each."""
        found = []
        if len(self.info.video_streams) > 1:
            others = ", ".join(str(one) for one in self.info.video_streams if one != self.info.video_stream)
            found.append(f"video stream {self.info.video_stream} was read, not {others} (--stream)")
        if self._interlaced:
            found.append("the video is interlaced: its fields were read woven (--deinterlace separates them)")
        if self._joins:
            found.append(f"packet counters break in {_places(self._joins)}, as where recordings were joined")
        if self._clock.epoch:
            found.append(f"the clock jumps in {_places(self._clock.epoch)}: times were made continuous")
        return found

    def close(self) -> None:
        self._container.close()

    def skip(self, count: int) -> int:
        return sum(1 for _ in islice(self._frames, count))

    def __iter__(self) -> Iterator[tuple[RGBArray, Fraction]]:
        for frame, time in self._frames:
            yield self._convert(frame), time

    def _origin_of(self, first: av.VideoFrame) -> Fraction:
        """Zero of the times, on the file's clock: the start of its earliest stream."""
        time = _time_of(first)
        if time is None:
            return Fraction(0)
        # Without audio the first frame is the start, since AVI's may be a frame off.
        return min(time, start_of(self._container)) if self._container.streams.audio else time

    def _of_one_size(self, first: Any, frames: Iterable[Any]) -> Iterator[av.VideoFrame]:
        for index, frame in enumerate(frames):
            if (frame.width, frame.height) != (first.width, first.height):
                problem = f"frame {index} of '{self._name}' is {frame.width}x{frame.height}"
                before = f"the frames before it are {first.width}x{first.height}"
                raise MediaError(f"{problem}, but {before}; split the video there or rescale it to one size")
            yield frame

    def _timed(self, frames: Iterable[Any]) -> Iterator[tuple[av.VideoFrame, Fraction]]:
        """Yields frames with their times in seconds, which increase strictly."""
        times = FrameTimes(1 / self.info.fps, self.info.time_base)
        for frame in frames:
            time = times.next(_time_of(frame))
            self._decoded += 1
            yield frame, time - self._origin

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
            if self._path is not None and is_animated_webp(self._path):
                raise MediaError(f"'{self._name}' {ANIMATED_WEBP}") from error
            raise self._damaged(f"is damaged or cut short: {reason(error)}") from error
        missing = 0 if self._path is None or self._keep_damaged else missing_bytes(self._path)
        if missing:
            problem = f"is cut short: {missing} bytes that its header announces are missing"
            raise self._damaged(problem, "download or record")

    def _complete_packets(self, packets: Iterable[Any]) -> Iterator[Any]:
        """Yields packets, and raises `OSError` at one that the demuxer marks as incomplete.

        MPEG-TS also marks those around a counter that breaks, as where recordings were joined.
        There a key frame follows, and the decoder finds what is missing, if anything is.
        """
        waiting: deque[Any] = deque()
        longest = JOIN_PACKETS if clock_restarts(self._container) else 0
        for packet in packets:
            waiting.append(packet)
            while waiting and (not waiting[0].is_corrupt or len(waiting) > longest):
                yield self._complete(waiting)
        while waiting:
            yield self._complete(waiting)

    def _complete(self, waiting: deque[Any]) -> Any:
        packet = waiting.popleft()
        if packet.is_corrupt and not self._keep_damaged:
            if not any(later.size and later.is_keyframe for later in waiting):
                raise OSError("a packet is incomplete")
            packet.is_corrupt = False
            self._joins += 1
        return packet

    def _undamaged_frames(self, packet: Any) -> Iterator[av.VideoFrame]:
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


def _time_of(frame: av.VideoFrame) -> Fraction | None:
    """Presentation time on the file's clock, in seconds."""
    return frame.pts * Fraction(frame.time_base) if frame.pts is not None and frame.time_base else None


def _places(count: int) -> str:
    return "1 place" if count == 1 else f"{count} places"
