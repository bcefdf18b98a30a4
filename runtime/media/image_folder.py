"""A directory of images, read and written as a video."""

import io
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.codec import CodecContext

from wfvae.errors import MediaError, WFVAEError
from wfvae.files import Destination, followed, remove_leftovers
from wfvae.runtime.media.color import RGBConverter
from wfvae.runtime.media.container_input import info_of_frame, limit_size
from wfvae.runtime.media.encoder_plan import MUXERS
from wfvae.runtime.media.failures import Failure, reason, translate, translated
from wfvae.runtime.media.webp import ANIMATED_WEBP, is_animated_webp
from wfvae.spec.bounded import read_bytes
from wfvae.video.picture_size import most_pixels, size_options
from wfvae.video.stored_pixels import RGBArray, orientation_of

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"})
_IMAGES_ONLY = {
    "format_whitelist": "png_pipe,jpeg_pipe,webp_pipe,tiff_pipe,bmp_pipe",
    "protocol_whitelist": "file",
}
"""A file could be a playlist that opens other files, or a description that opens ports."""
_FILE_BYTES = 1 << 31
NUMBER_FORMAT = re.compile(r"%0?\d*d")


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key by which "frame10" comes after "frame9"; case decides only between equal names."""
    parts = re.split(r"(\d+)", name)
    key = [(0, int(part), "") if part.isdecimal() else (1, 0, part.lower()) for part in parts if part]
    return [*key, (2, 0, name)]


def is_image_folder(destination: str | Path) -> bool:
    """Whether this is a directory, a name that ends in "/", or a pattern of image names."""
    name, path = str(destination), Path(destination)
    return name.endswith(("/", os.sep)) or path.is_dir() or is_image_pattern(path)


def is_image_pattern(path: Path) -> bool:
    """Whether a name holds a number's place, as "%06d.png" does; "100%done.mp4" is a video."""
    return NUMBER_FORMAT.search(path.name) is not None and path.suffix.lower() not in MUXERS


class ImageSource:
    """The images of a directory in natural order. Hidden files and other files are ignored."""

    notices = ()
    """Images need none."""

    def __init__(self, folder: Path, fps: Fraction) -> None:
        with translated(f"listing '{folder}'"):
            files = [entry.name for entry in os.scandir(folder) if entry.is_file()]
        images = (n for n in files if not n.startswith(".") and Path(n).suffix.lower() in SUFFIXES)
        self._folder, self._names = folder, sorted(images, key=natural_key)
        self._index = 0
        if not self._names:
            endings = ", ".join(sorted(SUFFIXES))
            raise MediaError(f"no images in '{folder}'; expected files ending in {endings}")
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
                image = f"frame {self._index} ('{self._names[self._index]}' in '{self._folder}')"
                before = f"the frames before it are {self.info.width}x{self.info.height}"
                raise MediaError(f"{image} is {width}x{height}, but {before}; give all images one size")
            self._index += 1
            yield array, (self._index - 1) / self.info.fps

    def _decode(self, index: int) -> tuple[RGBArray, av.VideoFrame]:
        """Returns an image as RGB and as stored."""
        path = self._folder / self._names[index]

        def unreadable(problem: str) -> MediaError:
            text = f"cannot read image '{path}' (frame {index}): {problem}"
            return MediaError(f"{text}; replace the file or remove it")

        try:
            # From bytes, because FFmpeg would read "%" in a name as a pattern, and would take the
            # format from the suffix instead of the content.
            data = io.BytesIO(read_bytes(path, unreadable, _FILE_BYTES))
            with av.open(data, "r", options=_IMAGES_ONLY | size_options()) as container:
                stream = container.streams.video[0]
                limit_size(stream, f"the image '{path}'")
                frame = next(container.decode(stream))
                array = RGBConverter(stream.codec_context.name).convert(frame)
                return orientation_of(frame).apply(array), frame
        except WFVAEError:
            raise
        except (*Failure, IndexError, StopIteration) as error:
            if is_animated_webp(path):
                raise MediaError(f"'{path}' (frame {index}) {ANIMATED_WEBP}") from error
            if isinstance(error, av.error.ArgumentError):  # what FFmpeg says of its `max_pixels`
                pixels = f"an image of more than {most_pixels()} pixels"
                raise unreadable(f"{reason(error)}; {pixels} does not fit the memory") from error
            raise unreadable(reason(error)) from error


class PNGFolder:
    """Numbered PNG files, each of which appears under its name only when it is complete.

    Finished files stay if the writer is aborted. `finish` removes higher-numbered files of the same
    pattern, left from a longer video before, so that the directory holds this video and no other.
    """

    notices = ()

    def __init__(self, folder: Path, pattern: str, width: int, height: int, *, overwrite: bool) -> None:
        if len(NUMBER_FORMAT.findall(pattern)) != 1:
            raise MediaError(f"'{pattern}' has more than one place for a number; give one, such as %06d.png")
        self._folder, self._pattern = folder, pattern
        self._name = re.compile(NUMBER_FORMAT.sub(r"(\\d+)", re.escape(pattern)))
        with translated(f"creating the directory '{folder}'"):
            folder.mkdir(parents=True, exist_ok=True)
        self._destination = Destination(folder / NUMBER_FORMAT.sub("%d", pattern))  # of all frames
        if not overwrite and any(self._existing()):
            self._destination.release()
            problem = f"'{folder}' already holds frames named like '{pattern}'"
            raise MediaError(f"{problem}; choose another directory or allow overwriting")
        remove_leftovers(self._destination, self._name.pattern)
        self._encoder: Any = CodecContext.create("png", "w")
        self._encoder.width, self._encoder.height, self._encoder.pix_fmt = width, height, "rgb24"
        self._encoder.time_base = Fraction(1, 25)
        self._count = 0

    def write(self, frame: RGBArray, time: Fraction | None = None) -> None:
        name = NUMBER_FORMAT.sub(lambda place: place[0] % self._count, self._pattern)
        target = followed(self._folder / name)
        with Destination(target, owner=self._destination) as place:
            try:
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                picture.pts = self._count
                work = place.create_file()
                work.write_bytes(b"".join(bytes(packet) for packet in self._encoder.encode(picture)))
                place.commit(work, sync=False)
            except Failure as error:
                raise translate(error, f"writing '{target}'") from error
        self._count += 1

    def finish(self) -> None:
        with translated(f"removing old frames from '{self._folder}'"):
            for number, path in self._existing():
                if number >= self._count:
                    path.unlink()
        self._destination.release()

    def abort(self) -> None:
        """Ends writing. Finished files stay."""
        self._destination.release()

    def _existing(self) -> Iterator[tuple[int, Path]]:
        for path in list(self._folder.iterdir()):
            if match := self._name.fullmatch(path.name):
                yield int(match.group(1)), path
