"""From a decoded frame to the pixels that the model trains on: RGB, upright, resized, cropped.

Matrices, ranges, alpha and rotation are read as at inference (`wfvae.video.stored_pixels`). Sample
aspect ratios are ignored there and here: the model sees stored pixels.
"""

import math

import av
import numpy as np
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from wfvae.train.data.video_file import UnusableError
from wfvae.video.stored_pixels import (
    LIMITED_TO_FULL,
    RGBArray,
    is_limited_grey,
    may_be_transparent,
    orientation_of,
    over_black,
    range_of,
    sws_matrix,
)

# Bicubic, which swscale widens when it shrinks a picture, so that fine detail does not alias.
# Accurate rounding and full chroma interpolation keep flat colours exact, bit-exact makes the
# result the same on every CPU.
_SCALER = int(
    Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.BITEXACT
)


def cover_size(height: int, width: int, wanted: tuple[int, int]) -> tuple[int, int]:
    """Returns the size of a picture resized, with its aspect kept, to just cover `wanted`.

    >>> cover_size(720, 1280, (256, 256))
    (256, 455)
    """
    if height * wanted[1] <= width * wanted[0]:
        return wanted[0], max(wanted[1], math.floor(width * wanted[0] / height + 0.5))
    return max(wanted[0], math.floor(height * wanted[1] / width + 0.5)), wanted[1]


class PixelReader:
    """Turns the frames of one stream into pictures of one size. Holds swscale's tables."""

    def __init__(self, codec: str, size: tuple[int, int]) -> None:
        """`codec` by FFmpeg's name; `size` is (height, width) of the pictures."""
        self._codec = codec
        self._size = size
        self._reformatter = VideoReformatter()

    def read(self, frame: av.VideoFrame) -> RGBArray:
        """Returns a frame upright, resized to cover the size and centre-cropped: (H, W, 3) uint8.

        Raises:
            UnusableError: its colour matrix is not supported.
        """
        orientation = orientation_of(frame)
        height, width = self._size
        stored = (width, height) if orientation.transpose else (height, width)
        picture = orientation.apply(self._resized(frame, *cover_size(frame.height, frame.width, stored)))
        top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
        return np.ascontiguousarray(picture[top : top + height, left : left + width])

    def _resized(self, frame: av.VideoFrame, height: int, width: int) -> RGBArray:
        # Transparent pixels may hold any colour: they are blended over black before any resizing.
        limited_grey = is_limited_grey(frame, self._codec)
        if may_be_transparent(frame):
            whole = self._converted(frame, frame.height, frame.width, "rgba")
            frame = av.VideoFrame.from_ndarray(over_black(whole), format="rgb24")
        picture = self._converted(frame, height, width, "rgb24")
        return LIMITED_TO_FULL[picture] if limited_grey else picture

    def _converted(self, frame: av.VideoFrame, height: int, width: int, pixel_format: str) -> RGBArray:
        matrix = sws_matrix(frame)
        if matrix is None:
            number = int(frame.colorspace)
            raise UnusableError(f"its colour matrix (number {number} of H.273) is not supported")
        out = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format=pixel_format,
            src_colorspace=matrix,
            dst_colorspace=matrix,
            src_color_range=int(range_of(frame, self._codec)),
            dst_color_range=int(ColorRange.JPEG),
            interpolation=_SCALER,
            threads=1,
        )
        return np.asarray(out.to_ndarray(), np.uint8)
