"""Writing RGB frames to a video file, a directory of PNG files, or a pipe.

A file is written under a temporary name beside its destination and takes its place only when it is
complete; if an exception leaves the `with` block, the temporary file is removed and what was at the
destination before stays.
"""

import sys
import threading
from abc import abstractmethod
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from wfvae.errors import InputError, MediaError
from wfvae.files import Destination, check_destination, claim
from wfvae.runtime.closing import Closing, close_when_free
from wfvae.runtime.media.encoder_check import checked_plan
from wfvae.runtime.media.encoder_plan import muxer_for
from wfvae.runtime.media.failures import translated
from wfvae.runtime.media.image_folder import PNGFolder, is_image_folder, is_image_pattern
from wfvae.runtime.media.output_container import OutputFile, OutputPipe
from wfvae.runtime.media.raw_pipe import RawSink
from wfvae.runtime.media.video_info import OutputVideo, VideoPath
from wfvae.video.stored_pixels import RGBArray

PIPE = "-"
RAW = "rawvideo"


class FrameWriter(Closing):
    """A video opened for writing, which may be closed while another thread writes."""

    _REOPEN = "open a new writer"

    def __init__(self, video: OutputVideo, name: str) -> None:
        self._video, self._name = video, name
        self._open = True
        self._in_use = threading.Lock()

    def write(self, frames: npt.NDArray[np.uint8], times: Sequence[Fraction] | None = None) -> None:
        """Appends `frames`, uint8 (T, H, W, 3), RGB, 0..255.

        Args:
            times: T presentation times in seconds, strictly increasing also over calls, rounded to
                the output's tick. Without them each frame follows the previous one after 1 / fps;
                the first is at 0. Directories of images and raw pipes keep no times.

        Raises:
            InputError: arrays of another shape or dtype.
            MediaError: times that do not increase, or a failure of the encoder.
            ResourceError: the disk is full.
        """
        self._require_open()
        self._check(frames, times)
        with translated(f"writing '{self._name}'"):
            for index, frame in enumerate(frames):
                with self._in_use:
                    self._require_open()
                    self._write(frame, None if times is None else times[index])

    def _check(self, frames: npt.NDArray[np.uint8], times: Sequence[Fraction] | None) -> None:
        height, width = self._video.height, self._video.width
        is_array = isinstance(frames, np.ndarray)
        if not is_array or frames.dtype != np.uint8 or frames.shape[1:] != (height, width, 3):
            got = f"{frames.dtype} {frames.shape}" if is_array else type(frames).__name__
            problem = f"frames to write are {got}"
            raise InputError(f"{problem}; expected uint8 (T, {height}, {width}, 3), RGB, 0..255")
        if times is not None and len(times) != len(frames):
            problem = f"{len(times)} times were given for {len(frames)} frames"
            raise InputError(f"{problem}; give one time in seconds per frame, or none")

    def _require_open(self) -> None:
        if not self._open:
            raise MediaError(f"'{self._name}' is closed; {self._REOPEN} to write more")

    def _stop(self) -> None:
        """Ends writing and discards what is incomplete, after the frame that is being written."""
        self._open = False
        close_when_free(self._in_use, self._discard)

    @abstractmethod
    def _write(self, frame: RGBArray, time: Fraction | None) -> None: ...

    @abstractmethod
    def _discard(self) -> None: ...


class FrameSink(Protocol):
    """`finish` commits what was written, `abort` undoes it as far as possible; one is called, once.

    `write` takes one frame (H, W, 3); images and raw frames keep no times.
    """

    @property
    def notices(self) -> Sequence[str]: ...
    def write(self, frame: RGBArray, time: Fraction | None = None) -> None: ...
    def finish(self) -> None: ...
    def abort(self) -> None: ...


class VideoWriter(FrameWriter):
    """A video opened for writing. Leaving the `with` block commits it, an exception discards it."""

    def __init__(self, sink: FrameSink, video: OutputVideo, name: str) -> None:
        super().__init__(video, name)
        self._sink = sink
        self._is_empty = True

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    @property
    def notices(self) -> tuple[str, ...]:
        """What of the video is not in the output, a phrase each."""
        return tuple(self._sink.notices)

    def close(self) -> None:
        """Completes the video and gives it its name. Safe to call twice.

        Raises:
            MediaError: no frame was written.
        """
        if not self._open:
            return
        if self._is_empty:
            self.abort()
            problem = f"no frames were written to '{self._name}'"
            raise MediaError(f"{problem}; nothing was created, write at least one frame")
        self._open = False
        try:
            with translated(f"finishing '{self._name}'"):
                self._sink.finish()
        except BaseException:
            self._sink.abort()
            raise

    def abort(self) -> None:
        """Discards what was written, unless it is closed. Safe while another thread writes."""
        if self._open:
            self._stop()

    def _write(self, frame: RGBArray, time: Fraction | None) -> None:
        self._sink.write(frame, time)
        self._is_empty = False

    def _discard(self) -> None:
        self._sink.abort()


def open_video_writer(
    destination: VideoPath, info: OutputVideo, *, overwrite: bool = True, container: str | None = None
) -> VideoWriter:
    """Opens a video for writing, and checks all settings and the destination.

    Args:
        destination: a file, whose suffix names the container; a directory for PNG files (an
            existing one, a name that ends in "/", or a pattern such as "out/%06d.png"); "-" for
            standard output; or a binary file object, which is treated as a pipe.
        container: FFmpeg's name of a pipe's container, "rawvideo" for headerless rgb24 frames, and
            "matroska" if not given.

    Raises:
        MediaError: settings that do not fit together, audio that the container cannot hold, or a
            destination that exists while `overwrite` is False.
        ResourceError: nothing can be written there.

    Example:
        >>> video = OutputVideo(width=64, height=48, fps=Fraction(24))
        >>> with open_video_writer("clip.mkv", video) as writer:
        ...     writer.write(np.zeros((2, 48, 64, 3), np.uint8))
    """
    name = str(destination)
    if not isinstance(destination, str | Path):
        name = getattr(destination, "name", None) or "a pipe"
        return VideoWriter(_pipe_sink(destination, name, info, container), info, name)
    if name == PIPE:
        if sys.stdout is None:
            problem = "standard output is closed"
            raise MediaError(f"{problem}; redirect it to where the video should go, or give a file")
        name = "standard output"
        return VideoWriter(_pipe_sink(sys.stdout.buffer, name, info, container), info, name)
    if container is not None:
        raise MediaError(f"container {container} was given for '{name}'; the format of a file is its suffix")
    if is_image_folder(destination):
        return VideoWriter(_image_sink(name, info, overwrite=overwrite), info, name)
    path = Path(destination)
    muxer = muxer_for(path)
    with translated(f"creating '{path}'"):
        plan = checked_plan(info, muxer)
        return VideoWriter(OutputFile(video_destination(path, overwrite), muxer, info, plan), info, name)


def video_destination(path: Path, overwrite: bool) -> Destination:
    """Locks the place of a video file.

    Raises:
        MediaError: it exists while `overwrite` is False, or is no file.
        ResourceError: another job writes there, or nothing can be written there.
    """
    return claim(path, lambda: check_destination(path, overwrite=overwrite, error=MediaError))


def _pipe_sink(pipe: BinaryIO, name: str, info: OutputVideo, container: str | None) -> FrameSink:
    if container == RAW:
        _refuse_audio(info, name)
        return RawSink(pipe)
    muxer = container or "matroska"
    with translated(f"opening '{name}'"):
        return OutputPipe(pipe, muxer, info, checked_plan(info, muxer))


def _image_sink(name: str, info: OutputVideo, *, overwrite: bool) -> FrameSink:
    path = Path(name)
    _refuse_audio(info, name)
    is_pattern = is_image_pattern(path)
    if is_pattern and path.suffix.lower() != ".png":
        problem = f"numbered images are written as PNG only, got '{name}'"
        raise MediaError(f"{problem}; let the pattern end in .png")
    folder, pattern = (path.parent, path.name) if is_pattern else (path, "frame-%06d.png")
    with translated(f"creating images in '{folder}'"):
        return PNGFolder(folder, pattern, info.width, info.height, overwrite=overwrite)


def _refuse_audio(info: OutputVideo, name: str) -> None:
    if info.audio_from is not None:
        problem = f"'{name}' cannot hold audio (from '{info.audio_from}')"
        raise MediaError(f"{problem}; write to .mkv or .mp4, or leave the audio out")
