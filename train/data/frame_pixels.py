"""From a decoded frame to the pixels that the model trains on: RGB, upright, resized, cropped.

Matrices, ranges, alpha and rotation are read as at inference (`wfvae.video.stored_pixels`). Sample
aspect ratios are ignored there and here: the model sees stored pixels.
"""

import av
import numpy as np
from av.video.reformatter import ColorRange, VideoReformatter

from wfvae.train.data.video_file import UnusableError
from wfvae.video.scaling import SCALER, cover_size, crop_centre
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
        return crop_centre(picture, self._size)

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
            interpolation=SCALER,
            threads=1,
        )
        return np.asarray(out.to_ndarray(), np.uint8)
