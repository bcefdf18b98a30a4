"""Writing RGB frames to a video file, a directory of PNG files, or a pipe.

    with open_video_writer("out.mp4", OutputVideo.like(reader.info)) as writer:
        writer.write(frames, times)     # uint8 (T, H, W, 3)

A file is written under a temporary name beside its destination and takes its place only when it is
complete; if the block is left by an exception, the temporary file is removed and what was at the
destination before stays.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from wfvae.errors import MediaError, ResourceError
from wfvae.files import remove_leftovers, temporary_name
from wfvae.runtime.media.audio_copy import AudioCopy
from wfvae.runtime.media.gif_encoder import GIFEncoder
from wfvae.runtime.media.image_folder import DEFAULT_PATTERN, PNGFolder
from wfvae.runtime.media.in_use import turn_to_close
from wfvae.runtime.media.media_failures import Failure, reported
from wfvae.runtime.media.video_encoder import (
    Clock,
    EncoderPlan,
    StreamEncoder,
    add_video_stream,
    checked_frames,
    make_reproducible,
    muxer_for,
    open_output,
)
from wfvae.runtime.media.video_info import OutputVideo
from wfvae.video.stored_pixels import RGBArray

PIPE = "-"
RAW = "rawvideo"
STREAM_CONTAINER = "matroska"
NUMBERED = re.compile(r"%0?\d*d")
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
FASTSTART = {"movflags": "faststart"}


class FrameSink(Protocol):
    """Where frames go. `finish` commits what was written, `abort` undoes it; one of the two is
    called, once.
    """

    def write(self, frame: RGBArray, time: Fraction | None) -> None: ...
    def finish(self) -> None: ...
    def abort(self) -> None: ...


class VideoWriter:
    """A video opened for writing. Use it in a `with` block: leaving it normally commits the video,
    an exception discards it.
    """

    def __init__(self, sink: FrameSink, video: OutputVideo, name: str) -> None:
        self._sink, self._video, self._name = sink, video, name
        self._frames = 0
        self._open = True
        self._in_use = threading.Lock()

    @property
    def frames_written(self) -> int:
        """Frames passed to `write` so far."""
        return self._frames

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def write(self, frames: npt.NDArray[np.uint8], times: Sequence[Fraction] | None = None) -> None:
        """Append `frames`, uint8 (T, H, W, 3), RGB, 0..255.

        times: T presentation times in seconds, strictly increasing also over calls, rounded to the
        output's tick. Without them each frame follows the previous one after 1 / fps; the first is
        at 0. Directories of images and raw pipes keep no times.

        Raises `InputError` for arrays of the wrong kind, `MediaError` for times that do not
        increase and for failures of the encoder, `ResourceError` for a full disk.
        """
        self._require_open()
        checked_frames(frames, times, self._video)
        with reported(f"writing '{self._name}'"):
            for index, frame in enumerate(frames):
                with self._in_use:
                    self._require_open()
                    self._sink.write(frame, None if times is None else times[index])
                self._frames += 1

    def close(self) -> None:
        """Finish the video and give it its name. Raises `MediaError` if no frame was written. Safe
        to call twice.
        """
        if not self._open:
            return
        if self._frames == 0:
            self.abort()
            raise MediaError(
                f"no frames were written to '{self._name}'; nothing was created, write at least one frame"
            )
        self._open = False
        try:
            with reported(f"finishing '{self._name}'"):
                self._sink.finish()
        except BaseException:
            self._sink.abort()
            raise

    def abort(self) -> None:
        """Discard what was written. Safe to call twice, after `close`, when it does nothing, and
        while another thread writes: after the frame that it is writing."""
        if self._open:
            self._open = False
            with turn_to_close(self._in_use) as safe:
                if safe:
                    self._sink.abort()

    def _require_open(self) -> None:
        if not self._open:
            raise MediaError(f"'{self._name}' is closed; open a new writer to write more")


class ContainerSink:
    """Encodes into a container at `target`: a path, or an object with `write`."""

    def __init__(self, target: Path | Any, muxer: str, video: OutputVideo, options: dict[str, str]) -> None:
        plan = EncoderPlan.of(video, muxer)
        self._audio: AudioCopy | None = None
        self._container: Any = open_output(
            f"file:{target}" if isinstance(target, Path) else target, muxer, options
        )
        try:
            make_reproducible(self._container)
            stream = add_video_stream(self._container, video, plan)
            if video.audio_from is not None:
                self._audio = AudioCopy(video.audio_from, self._container, video.audio_end)
            self._container.start_encoding()
        except BaseException:
            self.abort()
            raise
        self._tick = plan.time_base
        self._clock = Clock(video.fps, plan.time_base)
        self._encoder = (
            GIFEncoder(self._container, stream, video)
            if plan.codec == "gif"
            else StreamEncoder(self._container, stream, video, plan)
        )

    def write(self, frame: RGBArray, time: Fraction | None) -> None:
        """Encode one frame (H, W, 3) and mux the audio up to it."""
        tick = self._clock.advance(time)
        self._encoder.encode(frame, tick)
        if self._audio is not None:
            self._audio.advance(tick * self._tick)

    def finish(self) -> None:
        """Mux what is held back and the rest of the audio; close the container."""
        self._encoder.flush()
        if self._audio is not None:
            self._audio.advance(None)
            self._audio.close()
        self._container.close()

    def abort(self) -> None:
        """Close the container, whatever state it is in."""
        if self._audio is not None:
            self._audio.close()
        try:
            self._container.close()
        except Failure:
            return  # the file is about to be removed; the failure that led here is the one to report


class FileSink(ContainerSink):
    """A container file that appears at `path` only when it is complete."""

    def __init__(self, path: Path, muxer: str, video: OutputVideo) -> None:
        self._path, self._partial = path, temporary_name(path)
        remove_leftovers(path)
        options = FASTSTART if muxer in ("mp4", "mov") else {}
        try:
            super().__init__(self._partial, muxer, video, options)
        except BaseException:
            self._partial.unlink(missing_ok=True)
            raise

    def finish(self) -> None:
        """Close the container and rename it."""
        super().finish()
        commit(self._partial, self._path)

    def abort(self) -> None:
        """Remove the temporary file."""
        super().abort()
        self._partial.unlink(missing_ok=True)


class FolderSink:
    """Numbered PNG files. They are committed one by one, so aborting leaves the finished ones."""

    def __init__(self, folder: PNGFolder) -> None:
        self._folder = folder

    def write(self, frame: RGBArray, time: Fraction | None) -> None:
        """Write one frame (H, W, 3); a PNG keeps no time."""
        self._folder.write(frame)

    def finish(self) -> None:
        """Remove frames of an earlier, longer video."""
        self._folder.finish()

    def abort(self) -> None:
        """Finished frames stay."""


class RawSink:
    """Headerless rgb24 frames into a pipe."""

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe = pipe

    def write(self, frame: RGBArray, time: Fraction | None) -> None:
        """Write one frame (H, W, 3); raw video keeps no time."""
        self._pipe.write(np.ascontiguousarray(frame).data)

    def finish(self) -> None:
        """Send what is buffered."""
        self._pipe.flush()

    def abort(self) -> None:
        """What was sent cannot be taken back."""


class _WriteOnly:
    """A pipe as FFmpeg should see it: without `seek` and `close`, even if standard output happens
    to be a file.
    """

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe = pipe

    def write(self, data: bytes) -> int:
        return self._pipe.write(data)


class PipeSink(ContainerSink):
    """A container that can be read while it is written, into a pipe."""

    def __init__(self, pipe: BinaryIO, muxer: str, video: OutputVideo) -> None:
        self._pipe = pipe
        super().__init__(_WriteOnly(pipe), muxer, video, FRAGMENTED if muxer in ("mp4", "mov") else {})

    def finish(self) -> None:
        """Close the container and send what is buffered."""
        super().finish()
        self._pipe.flush()


def commit(partial: Path, path: Path) -> None:
    """Make `partial` durable, then give it the name `path`, replacing what is there in one step."""
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def check_destination(path: Path, *, overwrite: bool) -> None:
    """Raises `MediaError` or `ResourceError` if a file at `path` cannot be created, before anything
    is computed for it.
    """
    if path.exists() and not overwrite:
        raise MediaError(f"'{path}' already exists; choose another name or allow overwriting")
    if path.exists() and not path.is_file():
        raise MediaError(f"'{path}' exists and is not a file; choose another name")
    parent = path.parent
    if not parent.is_dir():
        raise MediaError(f"the directory '{parent}' for '{path.name}' does not exist; create it first")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ResourceError(
            f"the directory '{parent}' is not writable; choose another destination or change its permissions"
        )


def open_video_writer(
    destination: str | Path | BinaryIO,
    info: OutputVideo,
    *,
    overwrite: bool = True,
    container: str | None = None,
) -> VideoWriter:
    """Open a video for writing. All settings are checked, and the destination tried, before the
    first frame is needed.

    destination: a file, the suffix of which names the container; a directory for PNG files (an
    existing one, a name that ends in "/",
        or a pattern such as "out/%06d.png"); "-" for standard output, or a binary file object,
        which is treated as a pipe.
    container: FFmpeg's name of a container. For pipes "matroska" if not given, or "rawvideo" for
    headerless rgb24 frames.

    Raises `MediaError` for settings that do not fit together, for audio that the container cannot
    hold, and for a destination that exists while `overwrite` is False; `ResourceError` where
    nothing can be written.
    """
    if not isinstance(destination, str | Path):
        return _pipe_writer(destination, getattr(destination, "name", None) or "a pipe", info, container)
    if str(destination) == PIPE:
        if sys.stdout is None:
            raise MediaError(
                "standard output is closed; redirect it to where the video should go, or give a file"
            )
        return _pipe_writer(sys.stdout.buffer, "standard output", info, container)
    name, path = str(destination), Path(destination)
    if is_image_folder(destination):
        return _folder_writer(path, name, info, overwrite=overwrite, container=container)
    muxer = muxer_for(path, container)
    if muxer == RAW:
        raise MediaError(
            f"raw frames are written to a pipe only, not to '{name}'; use - and redirect it, or a suffix such"
            " as .mkv"
        )
    check_destination(path, overwrite=overwrite)
    with reported(f"creating '{name}'"):
        return VideoWriter(FileSink(path, muxer, info), info, name)


def is_image_folder(destination: str | Path) -> bool:
    """Whether `open_video_writer` takes this for a directory of images: one that exists, a name
    that ends in "/", or a pattern.
    """
    name, path = str(destination), Path(destination)
    return name.endswith(("/", os.sep)) or path.is_dir() or NUMBERED.search(path.name) is not None


def _pipe_writer(pipe: BinaryIO, name: str, info: OutputVideo, container: str | None) -> VideoWriter:
    if container == RAW:
        _refuse_audio(info, name)
        return VideoWriter(RawSink(pipe), info, name)
    with reported(f"opening '{name}'"):
        return VideoWriter(PipeSink(pipe, container or STREAM_CONTAINER, info), info, name)


def _folder_writer(
    path: Path, name: str, info: OutputVideo, *, overwrite: bool, container: str | None
) -> VideoWriter:
    _refuse_audio(info, name)
    if container is not None:
        raise MediaError(
            f"a container format '{container}' was given for the image directory '{name}'; leave it out,"
            " images are written as PNG"
        )
    numbered = NUMBERED.search(path.name)
    if numbered and path.suffix.lower() != ".png":
        raise MediaError(
            f"numbered images are written as PNG only, got '{name}'; let the pattern end in .png"
        )
    folder, pattern = (path.parent, path.name) if numbered else (path, DEFAULT_PATTERN)
    with reported(f"creating images in '{folder}'"):
        return VideoWriter(
            FolderSink(PNGFolder(folder, pattern, info.width, info.height, overwrite=overwrite)), info, name
        )


def _refuse_audio(info: OutputVideo, name: str) -> None:
    if info.audio_from is not None:
        raise MediaError(
            f"'{name}' cannot hold audio (from '{info.audio_from}'); write to .mkv or .mp4, or leave the"
            " audio out"
        )
