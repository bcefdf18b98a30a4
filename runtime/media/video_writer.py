"""Writing RGB frames to a video file, a directory of PNG files, or a pipe.

A file is written under a temporary name beside its destination and takes its place only when it is
complete; if an exception leaves the `with` block, the temporary file is removed and what was at the
destination before stays.
"""

from __future__ import annotations

import os
import sys
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

from wfvae.errors import MediaError
from wfvae.files import check_destination
from wfvae.runtime.media.encoder_plan import EncoderPlan, muxer_for
from wfvae.runtime.media.failures import translated
from wfvae.runtime.media.frame_writer import FrameWriter
from wfvae.runtime.media.output_container import OutputFile, OutputPipe
from wfvae.runtime.media.sinks import NUMBER_FORMAT, ContainerSink, FrameSink, PNGFolder, RawSink
from wfvae.runtime.media.video_info import OutputVideo
from wfvae.video.stored_pixels import RGBArray

PIPE = "-"
RAW = "rawvideo"
PIPE_MUXER = "matroska"
IMAGE_PATTERN = "frame-%06d.png"


class VideoWriter(FrameWriter):
    """A video opened for writing. Leaving the `with` block commits it, an exception discards it."""

    def __init__(self, sink: FrameSink, video: OutputVideo, name: str) -> None:
        super().__init__(video, name)
        self._sink = sink
        self._is_empty = True

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def close(self) -> None:
        """Completes the video and gives it its name. Safe to call twice.

        Raises:
            MediaError: no frame was written.
        """
        if not self._open:
            return
        if self._is_empty:
            self.abort()
            raise MediaError(
                f"no frames were written to '{self._name}'; nothing was created, write at least one frame"
            )
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
    destination: str | Path | BinaryIO,
    info: OutputVideo,
    *,
    overwrite: bool = True,
    container: str | None = None,
) -> VideoWriter:
    """Opens a video for writing, and checks all settings and the destination.

    Args:
        destination: a file, whose suffix names the container; a directory for PNG files (an
            existing one, a name that ends in "/", or a pattern such as "out/%06d.png"); "-" for
            standard output; or a binary file object, which is treated as a pipe.
        container: FFmpeg's name of a container. For pipes "matroska" if not given, or "rawvideo"
            for headerless rgb24 frames.

    Raises:
        MediaError: settings that do not fit together, audio that the container cannot hold, or a
            destination that exists while `overwrite` is False.
        ResourceError: nothing can be written there.

    Example:
        >>> import numpy as np
        >>> video = OutputVideo(width=64, height=48, fps=Fraction(24))
        >>> with open_video_writer("clip.mkv", video) as writer:
        ...     writer.write(np.zeros((2, 48, 64, 3), np.uint8))
    """
    if not isinstance(destination, str | Path):
        return _pipe_writer(destination, getattr(destination, "name", None) or "a pipe", info, container)
    if str(destination) == PIPE:
        if sys.stdout is None:
            raise MediaError(
                "standard output is closed; redirect it to where the video should go, or give a file"
            )
        return _pipe_writer(sys.stdout.buffer, "standard output", info, container)
    if is_image_folder(destination):
        return _folder_writer(destination, info, overwrite=overwrite, container=container)
    path = Path(destination)
    muxer = muxer_for(path, container)
    if muxer == RAW:
        raise MediaError(
            f"raw frames are written to a pipe only, not to '{path}'; use - and redirect it, or a suffix such"
            " as .mkv"
        )
    check_destination(path, overwrite=overwrite, error=MediaError)
    with translated(f"creating '{path}'"):
        sink = ContainerSink(OutputFile(path, muxer, info, EncoderPlan.of(info, muxer)))
    return VideoWriter(sink, info, str(destination))


def is_image_folder(destination: str | Path) -> bool:
    """Whether this is a directory, a name that ends in "/", or a pattern of image names."""
    name, path = str(destination), Path(destination)
    return name.endswith(("/", os.sep)) or path.is_dir() or NUMBER_FORMAT.search(path.name) is not None


def _pipe_writer(pipe: BinaryIO, name: str, info: OutputVideo, container: str | None) -> VideoWriter:
    if container == RAW:
        _refuse_audio(info, name)
        return VideoWriter(RawSink(pipe), info, name)
    muxer = container or PIPE_MUXER
    with translated(f"opening '{name}'"):
        sink = ContainerSink(OutputPipe(pipe, muxer, info, EncoderPlan.of(info, muxer)))
    return VideoWriter(sink, info, name)


def _folder_writer(
    destination: str | Path, info: OutputVideo, *, overwrite: bool, container: str | None
) -> VideoWriter:
    name, path = str(destination), Path(destination)
    _refuse_audio(info, name)
    if container is not None:
        raise MediaError(
            f"a container format '{container}' was given for the image directory '{name}'; leave it out,"
            " images are written as PNG"
        )
    is_pattern = NUMBER_FORMAT.search(path.name) is not None
    if is_pattern and path.suffix.lower() != ".png":
        raise MediaError(
            f"numbered images are written as PNG only, got '{name}'; let the pattern end in .png"
        )
    folder, pattern = (path.parent, path.name) if is_pattern else (path, IMAGE_PATTERN)
    with translated(f"creating images in '{folder}'"):
        sink = PNGFolder(folder, pattern, info.width, info.height, overwrite=overwrite)
    return VideoWriter(sink, info, name)


def _refuse_audio(info: OutputVideo, name: str) -> None:
    if info.audio_from is not None:
        raise MediaError(
            f"'{name}' cannot hold audio (from '{info.audio_from}'); write to .mkv or .mp4, or leave the"
            " audio out"
        )
