"""Conversion between stored pixels and RGB arrays.

All arrays are uint8 RGB of shape (H, W, 3), full range 0..255, C-contiguous. How stored pixels are
interpreted is defined in `wfvae.video.stored_pixels`.
"""

from __future__ import annotations

import av
import numpy as np
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from wfvae.errors import MediaError
from wfvae.runtime.media.color_tags import SPACES, SWS_MATRIX
from wfvae.runtime.media.video_info import ColorRange as RangeName
from wfvae.video.stored_pixels import (
    LIMITED_TO_FULL,
    RGBArray,
    is_limited_grey,
    may_be_transparent,
    over_black,
    range_of,
    sws_matrix,
)

# Without accurate rounding and full chroma interpolation swscale repeats chroma samples and is off
# by up to 3 of 255 in flat colours, with them by 0.5. Bit-exact gives the same result on every CPU.
SCALER = int(
    Interpolation.BILINEAR
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.BITEXACT
)
FULL_RANGE = int(ColorRange.JPEG)
PLANAR_ORDER = (1, 2, 0, 3)


def _reformat(
    reformatter: VideoReformatter,
    frame: av.VideoFrame,
    pixel_format: str,
    matrix: int,
    source_range: int,
    result_range: int,
) -> av.VideoFrame:
    """Converts a frame with swscale, with every setting that it would guess given."""
    return reformatter.reformat(
        frame,
        format=pixel_format,
        src_colorspace=matrix,
        dst_colorspace=matrix,
        src_color_range=source_range,
        dst_color_range=result_range,
        interpolation=SCALER,
        threads=1,
    )


class RGBConverter:
    """Converts frames of any pixel format to RGB. One per stream: it holds swscale's tables.

    Alpha is blended over black. High bit depths are rounded to 8. HDR transfer curves are kept as
    code values, not tone-mapped.
    """

    def __init__(self, codec: str) -> None:
        self._codec = codec
        self._reformatter = VideoReformatter()

    def convert(self, frame: av.VideoFrame) -> RGBArray:
        """Converts a frame to (H, W, 3), as stored (not rotated)."""
        if frame.format.name == "rgb24":
            return np.ascontiguousarray(frame.to_ndarray(), dtype=np.uint8)
        if may_be_transparent(frame):
            return over_black(self._scaled(frame, 4))
        rgb = self._scaled(frame, 3)
        return LIMITED_TO_FULL[rgb] if is_limited_grey(frame, self._codec) else rgb

    def _scaled(self, frame: av.VideoFrame, channels: int) -> RGBArray:
        """(H, W, channels), RGB or RGBA.

        YUV is converted by way of planes: the bits of swscale's packed output in a quarter of the
        time.
        """
        matrix = sws_matrix(frame)
        if matrix is None:
            raise MediaError(
                f"colour matrix '{SPACES.get(frame.colorspace, frame.colorspace)}' is not supported; convert"
                f" the video to one of {', '.join(SWS_MATRIX)} first"
            )
        packed = frame.format.is_rgb or frame.format.has_palette or len(frame.format.components) < 3
        pixel_format = {3: ("gbrp", "rgb24"), 4: ("gbrap", "rgba")}[channels][packed]
        levels = int(range_of(frame, self._codec))
        out = _reformat(self._reformatter, frame, pixel_format, matrix, levels, FULL_RANGE)
        if packed:
            return np.ascontiguousarray(out.to_ndarray(), dtype=np.uint8)
        array: RGBArray = np.empty((frame.height, frame.width, channels), np.uint8)
        for channel, plane in zip(PLANAR_ORDER, out.planes, strict=False):
            rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
            array[..., channel] = rows[: frame.height, : frame.width]
        return array


class YUVConverter:
    """Converts RGB arrays to frames of the encoder's pixel format, matrix and range."""

    def __init__(self, pixel_format: str, space: str, color_range: RangeName) -> None:
        self._pixel_format = pixel_format
        self._matrix = SWS_MATRIX[space]
        limited = color_range == "tv" and not av.VideoFormat(pixel_format).is_rgb
        self._range = int(ColorRange.MPEG) if limited else FULL_RANGE
        self._reformatter = VideoReformatter()

    def convert(self, rgb: RGBArray) -> av.VideoFrame:
        """Converts (H, W, 3) to a frame without a timestamp."""
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
        return _reformat(self._reformatter, frame, self._pixel_format, self._matrix, FULL_RANGE, self._range)
