"""How the pixels that a video stores are to be read: matrix, range, transparency, rotation.

One reading for the runtime and for training, so that a model is trained on what it will be given.

swscale guesses where it is not told: it takes every unnamed matrix for BT.601 and every grey frame
for full range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import ColorRange

RGBArray = npt.NDArray[np.uint8]

SWS_MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}
"""Colour matrices by their number in ITU-T H.273, to swscale's own numbers; swscale cannot compute
the others.
"""

FULL_RANGE_CODECS = frozenset(
    {
        "png",
        "apng",
        "bmp",
        "tiff",
        "mjpeg",
        "gif",
        "rawvideo",
        "ffv1",
        "huffyuv",
        "ffvhuff",
        "utvideo",
        "jpeg2000",
        "pgm",
        "ppm",
    }
)
"""Codecs whose untagged grey or YUV frames hold full range, as images and intermediate files do."""

_BT709, _SMPTE170M = 1, 6
_UNNAMED = frozenset({0, 2, 3})
"""RGB, unspecified and reserved: what video that says nothing of its matrix has."""
_HD_WIDTH, _HD_HEIGHT = 1280, 576


def sws_matrix(frame: av.VideoFrame) -> int | None:
    """swscale's number of the matrix to read a frame with; None if swscale cannot compute it
    (YCgCo, constant-luminance BT.2020).

    Untagged video counts as BT.709 from 1280 wide or above 576 high, as BT.601 below, as players
    do.
    """
    if frame.colorspace in _UNNAMED:
        is_hd = frame.width >= _HD_WIDTH or frame.height > _HD_HEIGHT
        return SWS_MATRICES[_BT709 if is_hd else _SMPTE170M]
    return SWS_MATRICES.get(frame.colorspace)


def range_of(frame: av.VideoFrame, codec: str) -> ColorRange:
    """The range of a frame's levels: as it says, else full where the format or the codec implies
    it, else limited.
    """
    if frame.color_range in (ColorRange.MPEG, ColorRange.JPEG):
        return ColorRange(frame.color_range)
    full = codec in FULL_RANGE_CODECS or frame.format.is_rgb or frame.format.name.startswith("yuvj")
    return ColorRange.JPEG if full else ColorRange.MPEG


def is_limited_grey(frame: av.VideoFrame, codec: str) -> bool:
    """Whether swscale, which passes grey levels as they are, leaves it to `LIMITED_TO_FULL` to
    stretch them.
    """
    return (
        len(frame.format.components) == 1
        and not frame.format.is_rgb
        and range_of(frame, codec) == ColorRange.MPEG
    )


def _limited_to_full() -> RGBArray:
    levels = (np.arange(256) - 16) * (255 / 219)
    table: RGBArray = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    return table


LIMITED_TO_FULL = _limited_to_full()
"""Levels 16..235 to 0..255, to be indexed by the former."""


def may_be_transparent(frame: av.VideoFrame) -> bool:
    """Whether its format has alpha, of its own or in a palette."""
    return bool(frame.format.has_palette or any(component.is_alpha for component in frame.format.components))


def over_black(rgba: RGBArray) -> RGBArray:
    """(H, W, 4) with straight alpha -> (H, W, 3) over black, rounded to nearest.

    Transparent pixels may hold any colour, which must not come to light.
    """
    alpha = rgba[..., 3:]
    if alpha.min() == 255:
        return np.ascontiguousarray(rgba[..., :3])
    blended = (rgba[..., :3].astype(np.uint16) * alpha + 127) // 255
    return blended.astype(np.uint8)


@dataclass(frozen=True)
class Orientation:
    """How stored frames are turned for display: first transposed, then mirrored."""

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    @property
    def rotation(self) -> int:
        """Clockwise degrees; with a mirroring left over, the angle of the rotation that precedes
        it.
        """
        if self.transpose:
            return 90 if self.mirror_x else 270
        return 180 if self.mirror_y else 0

    def apply(self, frame: RGBArray) -> RGBArray:
        """(h, w, 3) stored -> (H, W, 3) displayed, contiguous."""
        if self.transpose:
            frame = frame.transpose(1, 0, 2)
        if self.mirror_x:
            frame = frame[:, ::-1]
        if self.mirror_y:
            frame = frame[::-1]
        return np.ascontiguousarray(frame)


def orientation_of(frame: av.VideoFrame) -> Orientation:
    """The orientation in the frame's display matrix: nine 16.16 fixed-point numbers, rows (a b u),
    (c d v), (x y w).

    A stored point (x, y) is displayed at (a x + c y, b x + d y). Angles that are no multiple of 90
    degrees go to the nearest one.
    """
    try:
        side_data: Any = frame.side_data
        matrix = side_data[SideDataType.DISPLAYMATRIX]
    except KeyError:
        return Orientation()
    except (
        ValueError
    ):  # beside data of a kind that PyAV does not know, such as EXIF, only the angle can be had
        return Orientation(
            *{90: (True, False, True), 180: (False, True, True), 270: (True, True, False)}.get(
                frame.rotation % 360, ()
            )
        )
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)
