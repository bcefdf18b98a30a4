"""From a decoded frame to the pixels that the model trains on: RGB, upright, resized, cropped.

The same reading of matrices, ranges, alpha and rotation as at inference, so that the model is trained on what it will be given. Sample
aspect ratios are left alone there and here: the model sees stored pixels.
"""

from __future__ import annotations

import math
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from wfvae.train.data.video_container import UnusableError

__all__ = ["PixelReader", "cover_size"]

RGBFrame = npt.NDArray[np.uint8]

# Bicubic, which swscale widens when it shrinks a picture, so that fine detail does not alias. Accurate rounding and full chroma
# interpolation keep flat colours exact, bit-exact makes the result the same on every CPU.
_SCALER = int(Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.BITEXACT)

# Matrices (ITU-T H.273) to swscale's own numbers; swscale cannot compute the others.
_MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}
_RGB, _UNSPECIFIED, _RESERVED = 0, 2, 3
_BT709, _BT601 = 1, 5
_HD_WIDTH, _HD_HEIGHT = 1280, 576

_FULL_RANGE_CODECS = frozenset(
    {"png", "apng", "bmp", "tiff", "mjpeg", "gif", "rawvideo", "ffv1", "huffyuv", "ffvhuff", "utvideo", "jpeg2000", "pgm", "ppm"}
)
"""Codecs whose untagged frames hold full range, as images and intermediate files do."""


def cover_size(height: int, width: int, wanted: tuple[int, int]) -> tuple[int, int]:
    """The size of a picture resized, with its aspect kept, to cover `wanted` (height, width) with nothing to spare on one axis."""
    if height * wanted[1] <= width * wanted[0]:
        return wanted[0], max(wanted[1], math.floor(width * wanted[0] / height + 0.5))
    return max(wanted[0], math.floor(height * wanted[1] / width + 0.5)), wanted[1]


class PixelReader:
    """Turns the frames of one stream into pictures of one size. Holds swscale's tables."""

    def __init__(self, codec: str, size: tuple[int, int]) -> None:
        """`codec` by FFmpeg's name; `size` is (height, width) of the pictures."""
        self._full_range_codec = codec in _FULL_RANGE_CODECS
        self._size = size
        self._reformatter = VideoReformatter()

    def read(self, frame: av.VideoFrame) -> RGBFrame:
        """A frame of any format and size -> (H, W, 3) uint8 RGB: turned upright, resized to cover the size, centre-cropped.

        Raises:
            UnusableError: its colour matrix cannot be computed with.
        """
        transpose, mirror_x, mirror_y = _turns(frame)
        height, width = self._size
        resized = cover_size(frame.height, frame.width, (width, height) if transpose else (height, width))
        picture = self._resized(frame, *resized)
        if transpose:
            picture = picture.transpose(1, 0, 2)
        if mirror_x:
            picture = picture[:, ::-1]
        if mirror_y:
            picture = picture[::-1]
        top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
        return np.ascontiguousarray(picture[top : top + height, left : left + width])

    def _resized(self, frame: av.VideoFrame, height: int, width: int) -> RGBFrame:
        """(height, width, 3), as stored. Transparent pixels may hold any colour: they are blended over black before any resizing."""
        components = frame.format.components
        if frame.format.has_palette or any(component.is_alpha for component in components):
            frame = av.VideoFrame.from_ndarray(_over_black(self._converted(frame, frame.height, frame.width, "rgba")), format="rgb24")
        picture = self._converted(frame, height, width, "rgb24")
        if len(components) == 1 and not frame.format.is_rgb and self._range(frame) == ColorRange.MPEG:
            levels = (picture.astype(np.float32) - 16) * np.float32(255 / 219)  # swscale passes grey values as they are
            picture = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
        return picture

    def _converted(self, frame: av.VideoFrame, height: int, width: int, pixel_format: str) -> RGBFrame:
        matrix = _matrix(frame)
        out = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format=pixel_format,
            src_colorspace=matrix,
            dst_colorspace=matrix,
            src_color_range=int(self._range(frame)),
            dst_color_range=int(ColorRange.JPEG),
            interpolation=_SCALER,
            threads=1,
        )
        return np.asarray(out.to_ndarray(), np.uint8)

    def _range(self, frame: av.VideoFrame) -> ColorRange:
        if frame.color_range in (ColorRange.MPEG, ColorRange.JPEG):
            return ColorRange(frame.color_range)
        name = frame.format.name
        full = self._full_range_codec or frame.format.is_rgb or name.startswith("yuvj")
        return ColorRange.JPEG if full else ColorRange.MPEG


def _matrix(frame: av.VideoFrame) -> int:
    """swscale's number of the frame's matrix; untagged video counts as BT.709 from HD size on, as BT.601 below, as players do."""
    if frame.colorspace in (_RGB, _UNSPECIFIED, _RESERVED):
        return _BT709 if frame.width >= _HD_WIDTH or frame.height > _HD_HEIGHT else _BT601
    if frame.colorspace not in _MATRICES:
        raise UnusableError(f"its colour matrix (number {int(frame.colorspace)} of H.273) is not supported")
    return _MATRICES[frame.colorspace]


def _over_black(rgba: RGBFrame) -> RGBFrame:
    """(H, W, 4) with straight alpha -> (H, W, 3), rounded to nearest."""
    blended = (rgba[..., :3].astype(np.uint16) * rgba[..., 3:] + 127) // 255
    return np.ascontiguousarray(blended.astype(np.uint8))


def _turns(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """(transpose, then mirror x, then mirror y) that show a frame upright, from its display matrix.

    The matrix is nine 16.16 fixed-point numbers, rows (a b u), (c d v), (x y w); a stored point (x, y) is shown at (a x + c y, b x + d y).
    """
    try:
        side_data: Any = frame.side_data
        matrix = side_data[SideDataType.DISPLAYMATRIX]
    except KeyError:
        return False, False, False
    except ValueError:  # beside data of a kind that PyAV does not know only the angle can be had
        turned = {90: (True, False, True), 180: (False, True, True), 270: (True, True, False)}
        return turned.get(frame.rotation % 360, (False, False, False))
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, a < 0, d < 0
    return True, c < 0, b < 0
