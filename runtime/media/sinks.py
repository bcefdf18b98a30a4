"""Where a `VideoWriter` sends its frames: a container, numbered PNG files, or a raw pipe."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import av
import numpy as np
from av.codec import CodecContext

from wfvae.errors import MediaError
from wfvae.files import partial_name
from wfvae.runtime.media.encoding import Clock
from wfvae.runtime.media.failures import Failure, translate, translated
from wfvae.runtime.media.output_container import OutputContainer
from wfvae.video.stored_pixels import RGBArray

NUMBER_FORMAT = re.compile(r"%0?\d*d")


class FrameSink(Protocol):
    """`finish` commits what was written, `abort` undoes it as far as possible; one is called, once.

    `write` takes one frame (H, W, 3); images and raw frames keep no times.
    """

    def write(self, frame: RGBArray, time: Fraction | None = None) -> None: ...
    def finish(self) -> None: ...
    def abort(self) -> None: ...


class ContainerSink:
    """Encodes into a container, with the audio in step."""

    def __init__(self, output: OutputContainer) -> None:
        self._output = output
        self._tick = output.plan.time_base
        self._clock = Clock(output.video.fps, self._tick)

    def write(self, frame: RGBArray, time: Fraction | None = None) -> None:
        tick = self._clock.advance(time)
        self._output.encoder.encode(frame, tick)
        self._output.copy_audio(tick * self._tick)

    def finish(self) -> None:
        self._output.encoder.flush()
        self._output.close()

    def abort(self) -> None:
        self._output.abort()


class RawSink:
    """Headerless rgb24 frames into a pipe."""

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe = pipe

    def write(self, frame: RGBArray, time: Fraction | None = None) -> None:
        self._pipe.write(np.ascontiguousarray(frame).data)

    def finish(self) -> None:
        self._pipe.flush()

    def abort(self) -> None:
        """What was sent cannot be undone."""


class PNGFolder:
    """Numbered PNG files, each of which appears under its name only when it is complete.

    Finished files stay if the writer is aborted. `finish` removes higher-numbered files of the same
    pattern, left from a longer video before, so that the directory holds this video and no other.
    """

    def __init__(self, folder: Path, pattern: str, width: int, height: int, *, overwrite: bool) -> None:
        self._folder, self._pattern = folder, pattern
        self._name = re.compile(re.sub(r"%0?\d*d", r"(\\d+)", re.escape(pattern)))
        with translated(f"creating the directory '{folder}'"):
            folder.mkdir(parents=True, exist_ok=True)
        if not overwrite and any(self._existing()):
            raise MediaError(
                f"'{folder}' already holds frames named like '{pattern}'; choose another directory or allow"
                " overwriting"
            )
        self._encoder: Any = CodecContext.create("png", "w")
        self._encoder.width, self._encoder.height, self._encoder.pix_fmt = width, height, "rgb24"
        self._encoder.time_base = Fraction(1, 25)
        self._count = 0

    def write(self, frame: RGBArray, time: Fraction | None = None) -> None:
        target = self._folder / (self._pattern % self._count)
        partial = partial_name(target)
        try:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts = self._count
            partial.write_bytes(b"".join(bytes(packet) for packet in self._encoder.encode(picture)))
            os.replace(partial, target)
        except Failure as error:
            partial.unlink(missing_ok=True)
            raise translate(error, f"writing '{target}'") from error
        self._count += 1

    def finish(self) -> None:
        with translated(f"removing old frames from '{self._folder}'"):
            for number, path in self._existing():
                if number >= self._count:
                    path.unlink()
                partial_name(path).unlink(missing_ok=True)

    def abort(self) -> None:
        """Finished files stay."""

    def _existing(self) -> Iterator[tuple[int, Path]]:
        for path in list(self._folder.iterdir()):
            if match := self._name.fullmatch(path.name):
                yield int(match.group(1)), path
