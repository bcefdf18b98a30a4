"""Headerless RGB frames from a pipe."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import BinaryIO

import numpy as np

from wfvae.errors import MediaError
from wfvae.runtime.media.failures import translated
from wfvae.runtime.media.video_info import RawVideo, VideoInfo
from wfvae.video.stored_pixels import RGBArray


class RawSource:
    """Frames of `RawVideo` layout, until the pipe ends at a frame boundary."""

    def __init__(self, pipe: BinaryIO, layout: RawVideo, name: str) -> None:
        self._pipe, self._layout, self._name = pipe, layout, name
        self._count = 0
        self._first: bytearray | None = self._read()
        if self._first is None:
            raise MediaError(
                f"'{name}' gave no data; expected raw RGB frames of {layout.frame_bytes} bytes each"
                f" ({layout.width}x{layout.height}x3)"
            )
        self.info = VideoInfo(
            width=layout.width,
            height=layout.height,
            fps=layout.fps,
            pixel_format="rgb24",
            color_range="pc",
            color_space="rgb",
            kind="raw",
        )

    def close(self) -> None:
        """The pipe belongs to the process and stays open."""

    def skip(self, count: int) -> int:
        skipped = 0
        while skipped < count and self._next() is not None:
            skipped += 1
        return skipped

    def __iter__(self) -> Iterator[tuple[RGBArray, Fraction]]:
        shape = (self._layout.height, self._layout.width, 3)
        while (data := self._next()) is not None:
            yield np.frombuffer(data, np.uint8).reshape(shape), (self._count - 1) / self._layout.fps

    def _next(self) -> bytearray | None:
        data, self._first = self._first, None
        if data is None:
            data = self._read()
        if data is not None:
            self._count += 1
        return data

    def _read(self) -> bytearray | None:
        """Reads one frame, which a pipe may deliver in pieces. None at the end."""
        wanted = self._layout.frame_bytes
        buffer = bytearray(wanted)
        view, filled = memoryview(buffer), 0
        with translated(f"reading '{self._name}'"):
            while filled < wanted and (piece := self._pipe.read(wanted - filled)):
                view[filled : filled + len(piece)] = piece
                filled += len(piece)
        if filled == 0:
            return None
        if filled < wanted:
            raise MediaError(
                f"'{self._name}' ends inside frame {self._count}: {filled} of {wanted} bytes; {self._count}"
                " frames were read; check that the frames really are"
                f" {self._layout.width}x{self._layout.height} rgb24"
            )
        return buffer
