"""Reading videos in processes of their own.

A decoder that crashes, hangs or eats memory costs its video only: the process is killed, and the
next video gets another one. Frames arrive through shared memory, which also reads ahead.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, count, islice
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from typing import Any

from wfvae.errors import MediaError, WFVAEError
from wfvae.runtime.closing import Closing
from wfvae.runtime.dataset.children import ChildEnded, ChildProcess, ForkServer, name_process
from wfvae.runtime.dataset.frame_memory import FrameMemory, Picture, Stack, StackSender
from wfvae.runtime.dataset.options import ClipOptions
from wfvae.runtime.dataset.plan import Probe, Unit
from wfvae.runtime.dataset.videos import Video
from wfvae.runtime.media.container_input import packet_count
from wfvae.runtime.media.video_reader import VideoReader, open_video
from wfvae.spec.locations import is_local, open_filesystem, open_located
from wfvae.video.scaling import PictureScaler

TIME_LIMIT = 60.0
"""Seconds without a frame after which a decoder is taken to hang."""
_COPIED_BYTES = 1 << 20


class DecoderFailure(MediaError):
    """A video that a decoder process could not read; the message says why.

    `may_pass` says whether another attempt could do better.
    """

    def __init__(self, message: str, *, may_pass: bool) -> None:
        super().__init__(message)
        self.may_pass = may_pass


@dataclass(frozen=True)
class WindowStart:
    """Announces a window, whose frames follow."""

    window: int
    first_frame: int
    """Of the resampled video."""
    source_height: int
    source_width: int
    fps: str
    """Rate of the frames that follow."""


class DecoderProcess(Closing):
    """A process that reads one video after another. Use it from one thread."""

    def __init__(self, forks: ForkServer, time_limit: float = TIME_LIMIT) -> None:
        self._forks, self._time_limit = forks, time_limit
        self._child: ChildProcess | None = None
        self._memory: FrameMemory | None = None
        self._holds_frames = False

    def close(self) -> None:
        """Kills the process. The next request starts another one."""
        if self._child is not None:
            self._child.close()
            self._child = None
        if self._memory is not None:
            self._memory.close()
            self._memory = None
        self._holds_frames = False

    def probe(self, video: Video, count_packets: bool) -> Probe:
        """Returns the facts of a video.

        Raises `DecoderFailure`.
        """
        self._request("probe", video, count_packets)
        result = self.receive()
        assert isinstance(result, Probe)
        self.receive()
        return result

    def decode(self, unit: Unit, options: ClipOptions, chunk: int) -> None:
        """Begins to read a unit; `receive` returns what comes, until None."""
        with suppress(DecoderFailure):  # `receive` reports it
            self._request("decode", unit, options, chunk)

    def receive(self) -> Probe | WindowStart | Picture | None:
        """Returns a window's announcement, its next frames (T, H, W, 3), or None at the end.

        Frames are valid until the next call. Raises `DecoderFailure`.
        """
        if self._child is None:
            raise DecoderFailure("its decoder crashed before it began", may_pass=True)
        try:
            if self._holds_frames:
                self._child.send(None)  # frees their slot
                self._holds_frames = False
            if not self._child.connection.poll(self._time_limit):
                self.close()
                problem = f"its decoder gave no frame for {self._time_limit:g} seconds"
                raise DecoderFailure(f"{problem}; repair the file, or raise --time-limit", may_pass=True)
            message = self._child.receive()
        except ChildEnded as error:
            raise self._crash(error) from error
        if isinstance(message, _Failure):
            raise DecoderFailure(message.text, may_pass=message.may_pass)
        if isinstance(message, Stack):
            assert self._memory is not None
            self._holds_frames = True
            return self._memory.view(message.offset, message.shape)
        received: Probe | WindowStart | None = message
        return received

    def _request(self, *message: Any) -> None:
        try:
            if self._child is None:
                self._child = ChildProcess(self._forks, serve)
                self._memory = FrameMemory()
                send_handle(self._child.connection, self._memory.descriptor, self._child.process_id)
            self._child.send(message)
        except (ChildEnded, OSError) as error:
            raise self._crash(error) from error

    def _crash(self, how: Exception) -> DecoderFailure:
        self.close()
        return DecoderFailure(f"its decoder crashed ({how}); repair or convert the file", may_pass=True)


@dataclass(frozen=True)
class _Failure:
    """Why a video cannot be read."""

    text: str
    may_pass: bool


def serve(connection: Connection) -> None:
    """Answers the requests of a `DecoderProcess` until it closes."""
    name_process("wfvae-decoder")
    with FrameMemory(recv_handle(connection)) as memory:
        while True:
            kind, *request = connection.recv()
            try:
                if kind == "probe":
                    connection.send(_probe(*request))
                else:
                    _send_frames(connection, memory, *request)
                connection.send(None)
            except (BrokenPipeError, ConnectionResetError):
                raise
            except (WFVAEError, OSError, MemoryError) as error:
                text = str(error) or type(error).__name__
                connection.send(_Failure(text, may_pass=not isinstance(error, WFVAEError)))


@contextmanager
def _local_file(video: Video) -> Iterator[Path]:
    """Yields a local path of a video: of a file of its own, or of a nameless copy."""
    filesystem, path = open_filesystem(video.url)
    if video.length is None and is_local(filesystem):
        yield Path(path)
        return

    def fail(problem: str) -> MediaError:
        return MediaError(f"cannot read '{video.url}': {problem}; check the path")

    with open_located(filesystem, path, fail) as source, tempfile.TemporaryFile() as copy:
        source.seek(video.offset)
        left = video.length
        while piece := source.read(_COPIED_BYTES if left is None else min(left, _COPIED_BYTES)):
            copy.write(piece)
            left = None if left is None else left - len(piece)
        copy.flush()
        yield Path(f"/proc/{os.getpid()}/fd/{copy.fileno()}")


def _probe(video: Video, count_packets: bool) -> Probe:
    with _local_file(video) as path:
        with open_video(path) as reader:
            info = reader.info
        frames = info.frames or 0
        if not frames and count_packets:
            frames = packet_count(path)
    return Probe(info.height, info.width, str(info.fps), frames)


def _send_frames(
    connection: Connection, memory: FrameMemory, unit: Unit, options: ClipOptions, chunk: int
) -> None:
    """Sends the windows of a unit; the last one may be incomplete."""
    length = chunk if options.frames is None else min(chunk, options.frames)
    sender = StackSender(connection, memory, (length, unit.height, unit.width))
    try:
        with _local_file(unit.video) as path, open_video(path) as reader:
            pictures = _pictures(reader, unit, options)
            source = (reader.info.height, reader.info.width)
            rate = str((options.rate or reader.info.fps) / options.stride)
            for window in count(unit.first_window):
                if unit.windows is not None and window == unit.first_window + unit.windows:
                    return
                picture = next(pictures, None)
                if picture is None:
                    return
                first = window * (options.window_span or 0)
                connection.send(WindowStart(window, first, *source, rate))
                frames = islice(chain([picture], pictures), options.frames)
                while sender.send(islice(frames, length)):
                    pass
    finally:
        sender.finish()


def _pictures(reader: VideoReader, unit: Unit, options: ClipOptions) -> Iterator[Picture]:
    """Yields the unit's frames: resampled, every `stride`-th, scaled."""
    first = unit.first_window * (options.window_span or 0)
    resampled: Iterator[Picture]
    if options.rate:
        resampled = islice(_resampled(reader, options.rate), first, None)
    else:
        if first:
            reader.seek_frames(first)
        resampled = iter(reader)
    scaler = PictureScaler((unit.height, unit.width), stretch=options.crop == "none")
    for picture in islice(resampled, 0, None, options.stride):
        yield scaler.scale(picture)


def _resampled(reader: VideoReader, rate: Fraction) -> Iterator[Picture]:
    """Yields the picture shown at each multiple of 1 / rate from the first frame on."""
    start: Fraction | None = None
    shown: Picture | None = None
    given = 0
    length = 1 / reader.info.fps
    time = Fraction(0)
    for picture, at in reader.frames_with_times():
        start = at if start is None else start
        time = at - start
        while shown is not None and given / rate < time:
            yield shown
            given += 1
        shown = picture
    while shown is not None and given / rate < time + length:
        yield shown
        given += 1
