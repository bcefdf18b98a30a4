"""Reading video from a file, a directory of images, or a pipe, as RGB arrays.

Every decoded frame is passed on once, however unequal the times between frames are: none is
repeated or dropped to fill a fixed rate. `frames_with_times` gives each frame's presentation time,
which a writer can carry over to its output.
"""

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import numpy as np

from wfvae.errors import MediaError
from wfvae.runtime.closing import CLOSE_SECONDS, Closing, close_when_free
from wfvae.runtime.media.container_source import ContainerSource
from wfvae.runtime.media.image_folder import ImageSource
from wfvae.runtime.media.raw_pipe import RawSource
from wfvae.runtime.media.video_info import RawVideo, VideoInfo, VideoPath
from wfvae.video.stored_pixels import RGBArray

PIPE = "-"
IMAGES_FPS = Fraction(24)
PIPE_CLOSE_SECONDS = 0.5
"""A thread that reads a silent pipe may wait for ever, so that closing does not wait as long."""


class FrameSource(Protocol):
    """One pass over the frames of a video. `close` leaves a pipe open: it belongs to the process.

    `skip` drops up to `count` frames and returns how many, fewer at the end of the video.
    """

    info: VideoInfo

    @property
    def notices(self) -> Sequence[str]: ...
    def close(self) -> None: ...
    def skip(self, count: int) -> int: ...
    def __iter__(self) -> Iterator[tuple[RGBArray, Fraction]]: ...


class VideoReader(Closing):
    """A video opened for reading: one pass, front to back. Use it in a `with` block.

    Iteration resumes where the last one stopped. Where the video is damaged, cut short or changes
    its frame size, it raises `MediaError` after all frames before that point.
    """

    def __init__(self, open_source: Callable[[], FrameSource], name: str, *, is_pipe: bool) -> None:
        self._open_source, self._name, self._is_pipe = open_source, name, is_pipe
        self._closed = False
        self._in_use = threading.Lock()
        self._source = open_source()
        self._frames = iter(self._source)

    @property
    def info(self) -> VideoInfo:
        """What is known about the video. `info.frames` is the container's claim, not a count."""
        return self._source.info

    @property
    def notices(self) -> tuple[str, ...]:
        """What a user should know of the frames read so far, a phrase each."""
        return tuple(self._source.notices)

    def close(self) -> None:
        """Releases decoder and file. Safe to call twice, and while another thread reads a frame."""
        if self._closed:
            return
        self._closed = True
        seconds = PIPE_CLOSE_SECONDS if self._is_pipe else CLOSE_SECONDS
        close_when_free(self._in_use, self._source.close, seconds)

    def __iter__(self) -> Iterator[RGBArray]:
        for frame, _ in self.frames_with_times():
            yield frame

    def frames_with_times(self) -> Iterator[tuple[RGBArray, Fraction]]:
        """Yields the remaining frames, each with its presentation time in seconds.

        Times are exact multiples of the source's tick, strictly increasing, and count from the
        start of the file's earliest stream: a video that begins 20 ms after its audio starts at
        0.02, so that copied audio stays in step. Where the file states no time, the previous one +
        1 / fps is used, and where it repeats one, the tick after it. A clock that jumps is made
        continuous.
        """
        while True:
            with self._in_use:
                if self._closed:
                    raise MediaError(f"'{self._name}' was closed; open it again to read on")
                item = next(self._frames, None)
            if item is None:
                return
            yield item

    def chunks(self, frames: int) -> Iterator[RGBArray]:
        """Yields the remaining frames as uint8 (T, H, W, 3), T = `frames` except in the last stack.

        Where the video is damaged, a shorter stack holds the frames before the damage.
        """
        if frames < 1:
            raise MediaError(f"chunks of {frames} frames cannot be read; give at least 1")
        stack: list[RGBArray] = []
        try:
            for frame in self:
                stack.append(frame)
                if len(stack) == frames:
                    full, stack = stack, []
                    yield np.stack(full)
        except MediaError:
            if stack:
                yield np.stack(stack)
            raise
        if stack:
            yield np.stack(stack)

    def seek_frames(self, index: int) -> None:
        """Makes frame `index` the next one. Exact: the frames before it are decoded and dropped.

        Raises:
            MediaError: the video has fewer frames, or is a pipe, which is read once.
        """
        if self._is_pipe:
            problem = f"cannot go to frame {index} of '{self._name}': a pipe is read once, from the front"
            raise MediaError(f"{problem}; save it to a file to resume")
        self._source.close()
        self._source = self._open_source()
        self._frames = iter(self._source)
        skipped = self._source.skip(index)
        if skipped < index:
            problem = f"cannot go to frame {index} of '{self._name}': it has only {skipped} frames"
            raise MediaError(f"{problem}; was the file changed?")


def open_video(
    source: VideoPath,
    *,
    raw: RawVideo | None = None,
    fps: Fraction | None = None,
    keep_damaged: bool = False,
    video_stream: int | None = None,
    deinterlace: bool = False,
) -> VideoReader:
    """Opens a video for reading.

    Args:
        source: a file of any container and codec that FFmpeg knows, a directory of images (natural
            order, one size), "-" for standard input, or a binary file object, read like a pipe.
        raw: the layout of headerless rgb24 frames, for pipes.
        fps: the rate of a directory of images, 24 if not given.
        keep_damaged: pass on frames that the decoder could only conceal, and a cut-off end, instead
            of raising.
        video_stream: index of the video stream to read; None takes the container's default one.
        deinterlace: make one progressive frame of each interlaced one, by FFmpeg's bwdif; of every
            frame, if the file marks none as interlaced.

    Raises:
        MediaError: what is missing, unreadable, empty, or no video.

    Example:
        >>> from wfvae.runtime.media.video_info import OutputVideo
        >>> from wfvae.runtime.media.video_writer import open_video_writer
        >>> video = OutputVideo(width=64, height=48, fps=Fraction(25))
        >>> with open_video_writer("clip.mp4", video) as writer:
        ...     writer.write(np.full((3, 48, 64, 3), 128, np.uint8))
        >>> with open_video("clip.mp4") as reader:
        ...     for frame, time in reader.frames_with_times():
        ...         print(frame.shape, time)
        (48, 64, 3) 0
        (48, 64, 3) 1/25
        (48, 64, 3) 2/25
    """
    options = _ContainerOptions(keep_damaged, video_stream, deinterlace)
    if source == PIPE:
        return _open_pipe(_standard_input(), "standard input", raw, options)
    if not isinstance(source, str | Path):
        return _open_pipe(source, getattr(source, "name", None) or "a pipe", raw, options)
    if raw is not None:
        problem = f"a raw layout was given for '{source}'"
        raise MediaError(f"{problem}; raw frames are read from a pipe only, use - and send the file there")
    path = Path(source)
    if fps is not None and (fps <= 0 or not path.is_dir()):
        problem = f"a rate of {fps} fps was given for '{source}'"
        raise MediaError(f"{problem}; a rate above 0 may be given for a directory of images only")
    if path.is_dir():
        options.require_none(str(source))
        return VideoReader(partial(ImageSource, path, fps or IMAGES_FPS), str(source), is_pipe=False)
    return VideoReader(partial(options.open, path, str(source)), str(source), is_pipe=False)


def _open_pipe(pipe: BinaryIO, name: str, raw: RawVideo | None, options: "_ContainerOptions") -> VideoReader:
    if raw is not None:
        options.require_none(name)
        return VideoReader(partial(RawSource, pipe, raw, name), name, is_pipe=True)
    return VideoReader(partial(options.open, pipe, name), name, is_pipe=True)


@dataclass(frozen=True)
class _ContainerOptions:
    keep_damaged: bool
    video_stream: int | None
    deinterlace: bool

    def open(self, source: Path | BinaryIO, name: str) -> ContainerSource:
        return ContainerSource(source, name, **asdict(self))

    def require_none(self, name: str) -> None:
        """Refuses what only containers have."""
        if self.video_stream is not None or self.deinterlace:
            given = "deinterlacing was asked for" if self.deinterlace else "a video stream was chosen"
            raise MediaError(f"{given} for '{name}', which is no container; leave the option out")


def _standard_input() -> BinaryIO:
    """Opens standard input without a buffer.

    A thread that waits for a silent pipe would hold the buffer's lock, and Python aborts at exit if
    that lock is taken.
    """
    if sys.stdin is None:
        raise MediaError("standard input is closed; send the video through a pipe, or give a file")
    try:
        return cast(BinaryIO, open(sys.stdin.fileno(), "rb", buffering=0, closefd=False))
    except OSError:  # replaced by an object without a file behind it
        return sys.stdin.buffer
