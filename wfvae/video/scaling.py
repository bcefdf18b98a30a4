"""Scaling pictures: the size that covers a wanted one, and the scaler that does not alias."""

import math

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from wfvae.video.stored_pixels import RGBArray

# Bicubic, which swscale widens when it shrinks a picture, so that fine detail does not alias.
# Accurate rounding and full chroma interpolation keep flat colours exact, bit-exact makes the
# result the same on every CPU.
SCALER = int(
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


def crop_centre(picture: RGBArray, size: tuple[int, int]) -> RGBArray:
    """Returns the middle (height, width) of a picture, contiguous."""
    height, width = size
    top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
    return np.ascontiguousarray(picture[top : top + height, left : left + width])


class PictureScaler:
    """Scales RGB pictures to one size. Holds swscale's tables."""

    def __init__(self, size: tuple[int, int], *, stretch: bool) -> None:
        """`size` is (height, width). `stretch` changes the aspect; else the centre is cut out."""
        self._size, self._stretch = size, stretch
        self._reformatter = VideoReformatter()

    def scale(self, picture: RGBArray) -> RGBArray:
        """Scales a picture (H, W, 3) uint8."""
        if picture.shape[:2] == self._size:
            return picture
        height, width = picture.shape[:2]
        height, width = self._size if self._stretch else cover_size(height, width, self._size)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        scaled = self._reformatter.reformat(frame, width, height, interpolation=SCALER, threads=1)
        return crop_centre(np.asarray(scaled.to_ndarray(), np.uint8), self._size)
