"""A directory of images, read as a video in natural order."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av

from wfvae.errors import MediaError
from wfvae.runtime.media.failures import Failure, reason, translated
from wfvae.runtime.media.properties import info_of_frame
from wfvae.runtime.media.video_color import RGBConverter
from wfvae.video.stored_pixels import RGBArray, orientation_of

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"})


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key by which "frame10" comes after "frame9"; case decides only between equal names."""
    parts = re.split(r"(\d+)", name)
    key = [(0, int(part), "") if part.isdecimal() else (1, 0, part.lower()) for part in parts if part]
    return [*key, (2, 0, name)]


class ImageSource:
    """The images of a directory, each decoded once. Hidden files and other files are ignored."""

    def __init__(self, folder: Path, fps: Fraction) -> None:
        with translated(f"listing '{folder}'"):
            files = [entry.name for entry in os.scandir(folder) if entry.is_file()]
        images = (n for n in files if not n.startswith(".") and Path(n).suffix.lower() in SUFFIXES)
        self._folder, self._names = folder, sorted(images, key=natural_key)
        self._index = 0
        if not self._names:
            raise MediaError(
                f"no images in '{folder}'; expected files ending in {', '.join(sorted(SUFFIXES))}"
            )
        self.info = replace(info_of_frame(self._decode(0)[1], fps, "images"), frames=len(self._names))

    def close(self) -> None:
        """Nothing is held open."""

    def skip(self, count: int) -> int:
        skipped = min(count, len(self._names) - self._index)
        self._index += skipped
        return skipped

    def __iter__(self) -> Iterator[tuple[RGBArray, Fraction]]:
        while self._index < len(self._names):
            array, _ = self._decode(self._index)
            height, width = array.shape[:2]
            if (width, height) != (self.info.width, self.info.height):
                raise MediaError(
                    f"frame {self._index} ('{self._names[self._index]}' in '{self._folder}') is"
                    f" {width}x{height}, but the frames before it are {self.info.width}x{self.info.height};"
                    " give all images one size"
                )
            self._index += 1
            yield array, (self._index - 1) / self.info.fps

    def _decode(self, index: int) -> tuple[RGBArray, av.VideoFrame]:
        """Returns an image as RGB and as stored."""
        path = self._folder / self._names[index]
        try:
            # From bytes, because FFmpeg would read "%" in a name as a pattern, and would take the
            # format from the suffix instead of the content.
            with av.open(io.BytesIO(path.read_bytes()), "r") as container:
                stream = container.streams.video[0]
                frame = next(container.decode(stream))
                array = RGBConverter(stream.codec_context.name).convert(frame)
                return orientation_of(frame).apply(array), frame
        except (*Failure, IndexError, StopIteration) as error:
            raise MediaError(
                f"cannot read image '{path}' (frame {index}): {reason(error)}; replace the file or remove it"
            ) from error
