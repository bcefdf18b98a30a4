"""A directory of images as a video: read in natural order, written as numbered PNG files."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.codec import CodecContext

from wfvae.errors import MediaError
from wfvae.runtime.media.media_failures import Failure, describe, reason, reported
from wfvae.runtime.media.video_color import RANGES, SPACES, RGBConverter, name_of
from wfvae.runtime.media.video_info import VideoInfo
from wfvae.video.stored_pixels import RGBArray, orientation_of

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"})
DEFAULT_PATTERN = "frame-%06d.png"


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key by which "frame10" comes after "frame9"; letter case counts only where nothing else
    differs.
    """
    parts = re.split(r"(\d+)", name)
    key = [(0, int(part), "") if part.isdecimal() else (1, 0, part.lower()) for part in parts if part]
    return [*key, (2, 0, name)]


class ImageSource:
    """The images of a directory, each decoded once. Files that are no images, and hidden ones, are
    left out.
    """

    def __init__(self, folder: Path, fps: Fraction) -> None:
        with reported(f"listing '{folder}'"):
            names = [
                entry.name
                for entry in os.scandir(folder)
                if entry.is_file() and not entry.name.startswith(".")
            ]
        self._folder = folder
        self._names = sorted(
            (name for name in names if Path(name).suffix.lower() in SUFFIXES), key=natural_key
        )
        self._fps = fps
        self._index = 0
        if not self._names:
            raise MediaError(
                f"no images in '{folder}'; expected files ending in {', '.join(sorted(SUFFIXES))}"
            )
        self.info = self._describe(*self._decode(0))

    def close(self) -> None:
        """Nothing is held open."""

    def skip(self, count: int) -> int:
        """Pass over up to `count` images without decoding them; the number passed over."""
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
            yield array, (self._index - 1) / self._fps

    def _decode(self, index: int) -> tuple[RGBArray, tuple[av.VideoFrame, bool]]:
        path = self._folder / self._names[index]
        try:
            # Through bytes, not the path: FFmpeg would read '%' in a name as a pattern. The
            # content, not the suffix, tells the format.
            with av.open(io.BytesIO(path.read_bytes()), "r") as container:
                stream = container.streams.video[0]
                frame = next(container.decode(stream))
                orientation = orientation_of(frame)
                array = orientation.apply(RGBConverter(stream.codec_context.name).convert(frame))
        except (*Failure, IndexError, StopIteration) as error:
            raise MediaError(
                f"cannot read image '{path}' (frame {index}): {reason(error)}; replace the file or remove it"
            ) from error
        return array, (frame, orientation.rotation != 0)

    def _describe(self, array: RGBArray, decoded: tuple[av.VideoFrame, bool]) -> VideoInfo:
        frame, _ = decoded
        return VideoInfo(
            width=array.shape[1],
            height=array.shape[0],
            fps=self._fps,
            time_base=None,
            frames=len(self._names),
            pixel_format=frame.format.name,
            color_range=RANGES.get(frame.color_range),
            color_space=(
                "rgb"
                if frame.format.is_rgb or frame.format.has_palette
                else name_of(SPACES, frame.colorspace)
            ),
            color_primaries=None,
            color_transfer=None,
            rotation=orientation_of(frame).rotation,
            variable_frame_rate=False,
            has_audio=False,
            kind="images",
        )


class PNGFolder:
    """Writes frames as numbered PNG files, each appearing under its name only when it is complete.

    Finished files stay if the writer is aborted. On `finish`, higher-numbered files of the same
    pattern, left from a longer video before, are removed, so that the directory holds this video
    and no other.
    """

    def __init__(self, folder: Path, pattern: str, width: int, height: int, *, overwrite: bool) -> None:
        self._folder, self._pattern = folder, pattern
        with reported(f"creating the directory '{folder}'"):
            folder.mkdir(parents=True, exist_ok=True)
        number = re.escape(pattern)
        self._name = re.compile(re.sub(r"%0?\d*d", r"(\\d+)", number))
        if not overwrite and self._existing():
            raise MediaError(
                f"'{folder}' already holds frames named like '{pattern}'; choose another directory or allow"
                " overwriting"
            )
        self._encoder: Any = CodecContext.create("png", "w")
        self._encoder.width, self._encoder.height, self._encoder.pix_fmt = width, height, "rgb24"
        self._encoder.time_base = Fraction(1, 25)
        self.count = 0

    def write(self, frame: RGBArray) -> None:
        """Append one frame (H, W, 3)."""
        target = self._folder / (self._pattern % self.count)
        partial = target.with_name(f".{target.name}.part")
        try:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts = self.count
            packets = self._encoder.encode(picture)
            partial.write_bytes(b"".join(bytes(packet) for packet in packets))
            os.replace(partial, target)
        except Failure as error:
            partial.unlink(missing_ok=True)
            raise describe(error, f"writing '{target}'") from error
        self.count += 1

    def finish(self) -> None:
        """Remove frames of an earlier, longer video."""
        with reported(f"removing old frames from '{self._folder}'"):
            for entry in os.scandir(self._folder):
                if entry.name.startswith(".") and self._name.fullmatch(entry.name[1:].removesuffix(".part")):
                    os.unlink(entry.path)  # of a run that was killed
            for number, path in self._existing():
                if number >= self.count:
                    path.unlink()

    def _existing(self) -> list[tuple[int, Path]]:
        matches = ((self._name.fullmatch(entry.name), entry) for entry in os.scandir(self._folder))
        return [(int(match.group(1)), Path(entry.path)) for match, entry in matches if match]
