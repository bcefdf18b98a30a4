"""Reading video from a file, a directory of images, or a pipe, as RGB arrays.

    with open_video("clip.mp4") as reader:
        for frame in reader:            # uint8 (H, W, 3), RGB, full range, in presentation order
            ...

Every decoded frame is passed on once, however unequal the times between frames are: none is
repeated or dropped to fill a fixed rate. `frames_with_times` gives each frame's presentation time,
which a writer can carry over to its output.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, cast

import numpy as np

from wfvae.errors import MediaError
from wfvae.runtime.media.container_source import ContainerSource
from wfvae.runtime.media.image_folder import ImageSource
from wfvae.runtime.media.in_use import PATIENCE, turn_to_close
from wfvae.runtime.media.raw_source import RawSource
from wfvae.runtime.media.video_info import RawVideo, VideoInfo
from wfvae.video.stored_pixels import RGBArray

PIPE = "-"
IMAGES_FPS = Fraction(24)
_PIPE_SECONDS = 0.5
"""Closing a pipe waits no longer for a thread that reads: it may be silent for ever."""


class FrameSource(Protocol):
    """One pass over the frames of a video."""

    info: VideoInfo

    def close(self) -> None: ...
    def skip(self, count: int) -> int: ...
    def __iter__(self) -> Iterator[tuple[RGBArray, Fraction]]: ...


class VideoReader:
    """A video opened for reading: one pass, front to back. Close it, or use it in a `with` block.

    Iteration goes on where the last one stopped, and raises `MediaError` where the video is
    damaged, cut short or changes its frame size, after all frames before that point were given out.
    """

    def __init__(
        self,
        source: Path | BinaryIO,
        name: str,
        raw: RawVideo | None,
        fps: Fraction | None,
        *,
        keep_damaged: bool,
    ) -> None:
        self._origin, self._name, self._raw, self._fps = source, name, raw, fps
        self._keep_damaged = keep_damaged
        self._closed = False
        self._in_use = threading.Lock()
        self._position = 0
        self._source = self._open()
        self._frames = iter(self._source)

    @property
    def info(self) -> VideoInfo:
        """What is known about the video. `info.frames` is the container's claim, not a count."""
        return self._source.info

    @property
    def position(self) -> int:
        """Index of the frame that comes next."""
        return self._position

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release decoder and file. Safe to call twice, and while another thread reads: after the
        frame that it is reading.
        """
        if not self._closed:
            self._closed = True
            with turn_to_close(
                self._in_use, PATIENCE if isinstance(self._origin, Path) else _PIPE_SECONDS
            ) as safe:
                if safe:
                    self._source.close()

    def __iter__(self) -> Iterator[RGBArray]:
        for frame, _ in self.frames_with_times():
            yield frame

    def frames_with_times(self) -> Iterator[tuple[RGBArray, Fraction]]:
        """The remaining frames, each with its presentation time in seconds.

        Times are exact multiples of the source's tick, strictly increasing, and count from the
        start of the file's earliest stream: a video that begins 20 ms after its audio starts at
        0.02, so that audio copied beside it stays in step. Where the file gives no time, or one
        that does not increase, the previous one + 1 / fps stands in.
        """
        while True:
            with self._in_use:
                if self._closed:
                    break
                item = next(self._frames, None)
            if item is None:
                return
            self._position += 1
            yield item
        raise MediaError(f"'{self._name}' was closed; open it again to read on")

    def chunks(self, frames: int) -> Iterator[RGBArray]:
        """The remaining frames in stacks of uint8 (T, H, W, 3), T = `frames` but for the last.

        Where the video is damaged, the frames before the damage are given out, as a shorter stack,
        before `MediaError` is raised.
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
        """Go to frame `index`, so that it is the next one read. Exact: frames before it are decoded
        and dropped, never guessed from times.

        Raises `MediaError` if the video has fewer frames, and for pipes, which cannot be read
        twice.
        """
        if index < 0:
            raise MediaError(f"cannot go to frame {index}; frames count from 0")
        if not isinstance(self._origin, Path):
            raise MediaError(
                f"cannot go to frame {index} of '{self._name}': a pipe is read once, from the front; save it"
                " to a file to resume"
            )
        self._source.close()
        self._source = self._open()
        self._frames = iter(self._source)
        self._position = self._source.skip(index)
        if self._position < index:
            raise MediaError(
                f"cannot go to frame {index} of '{self._name}': it has only {self._position} frames; was the"
                " file changed?"
            )

    def _open(self) -> FrameSource:
        if not isinstance(self._origin, Path):
            if self._raw is not None:
                return RawSource(self._origin, self._raw, self._name)
            return ContainerSource(self._origin, self._name, keep_damaged=self._keep_damaged)
        if self._origin.is_dir():
            return ImageSource(self._origin, self._fps or IMAGES_FPS)
        return ContainerSource(self._origin, self._name, keep_damaged=self._keep_damaged)


def open_video(
    source: str | Path | BinaryIO,
    *,
    raw: RawVideo | None = None,
    fps: Fraction | None = None,
    keep_damaged: bool = False,
) -> VideoReader:
    """Open a video for reading.

    source: a file (any container and codec FFmpeg knows), a directory of images (natural order, one
    size), "-" for standard input,
        or a binary file object, which is read like a pipe.
    raw: the layout of headerless rgb24 frames; only for pipes. fps: the rate of a directory of
    images, 24 if not given; elsewhere the file knows its own. keep_damaged: pass on frames that the
    decoder could only conceal, and a cut-off end, instead of raising.

    Raises `MediaError`, in one line, for what is missing, unreadable, empty, or no video.
    """
    if isinstance(source, str) and source == PIPE:
        return VideoReader(_standard_input(), "standard input", raw, fps, keep_damaged=keep_damaged)
    if not isinstance(source, str | Path):
        return VideoReader(
            source, getattr(source, "name", None) or "a pipe", raw, fps, keep_damaged=keep_damaged
        )
    if raw is not None:
        raise MediaError(
            f"a raw layout was given for '{source}'; raw frames are read from a pipe only, use - and send the"
            " file there"
        )
    path = Path(source)
    if fps is not None and (fps <= 0 or not path.is_dir()):
        raise MediaError(
            f"a rate of {fps} fps was given for '{source}'; a rate above 0 may be given for a directory of"
            " images only"
        )
    return VideoReader(path, str(source), raw, fps, keep_damaged=keep_damaged)


def _standard_input() -> BinaryIO:
    """Standard input without a buffer: a thread that waits for a silent pipe would hold the
    buffer's lock, and Python aborts if it finds that lock taken when it ends."""
    if sys.stdin is None:
        raise MediaError("standard input is closed; send the video through a pipe, or give a file")
    try:
        return cast(BinaryIO, open(sys.stdin.fileno(), "rb", buffering=0, closefd=False))
    except OSError:  # replaced by an object without a file behind it
        return sys.stdin.buffer
