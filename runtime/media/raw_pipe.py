"""Headerless RGB frames from and into a pipe."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import chain, islice
from typing import BinaryIO

import numpy as np

from wfvae.errors import MediaError
from wfvae.runtime.media.failures import translated
from wfvae.runtime.media.video_info import RawVideo, VideoInfo
from wfvae.video.stored_pixels import RGBArray


class RawSource:
    """Frames of `RawVideo` layout, until the pipe ends at a frame boundary."""

    notices = ()
    """Raw frames need none."""

    def __init__(self, pipe: BinaryIO, layout: RawVideo, name: str) -> None:
        self._pipe, self._layout, self._name = pipe, layout, name
        self._count = 0
        first = self._read()
        if first is None:
            expected = f"raw RGB frames of {layout.width}x{layout.height}x3 = {layout.frame_bytes} bytes"
            raise MediaError(f"'{name}' gave no data; expected {expected}")
        self._frames = chain([first], iter(self._read, None))
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
        return sum(1 for _ in islice(self._frames, count))

    def __iter__(self) -> Iterator[tuple[RGBArray, Fraction]]:
        shape = (self._layout.height, self._layout.width, 3)
        for data in self._frames:
            yield np.frombuffer(data, np.uint8).reshape(shape), (self._count - 1) / self._layout.fps

    def _read(self) -> bytearray | None:
        """Reads one frame, which a pipe may deliver in pieces. None at the end."""
        wanted, buffer = self._layout.frame_bytes, bytearray()
        with translated(f"reading '{self._name}'"):
            while len(buffer) < wanted and (piece := self._pipe.read(wanted - len(buffer))):
                buffer += piece
        if buffer and len(buffer) < wanted:
            problem = f"'{self._name}' ends inside frame {self._count}: {len(buffer)} of {wanted} bytes"
            size = f"{self._layout.width}x{self._layout.height}"
            raise MediaError(f"{problem}; check that the frames really are {size} rgb24")
        self._count += bool(buffer)
        return buffer or None


class RawSink:
    """Headerless rgb24 frames into a pipe."""

    notices = ()

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe = pipe

    def write(self, frame: RGBArray, time: Fraction | None = None) -> None:
        self._pipe.write(np.ascontiguousarray(frame).data)

    def finish(self) -> None:
        self._pipe.flush()

    def abort(self) -> None:
        """What was sent cannot be undone."""
