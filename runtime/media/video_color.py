"""Between stored pixels and RGB: matrices, ranges, alpha, palettes, rotation.

swscale guesses where it is not told: it takes every unnamed matrix for BT.601 and every grey frame for full range. So both ends of each
conversion are named here. All arrays are uint8 RGB of shape (H, W, 3), full range 0..255, C-contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from wfvae.errors import MediaError
from wfvae.runtime.media.video_info import ColorRange as RangeName

RGBArray = npt.NDArray[np.uint8]

# FFmpeg's enums AVColorSpace, AVColorPrimaries and AVColorTransferCharacteristic (ITU-T H.273), by FFmpeg's names.
SPACES = {0: "rgb", 1: "bt709", 4: "fcc", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "ycgco", 9: "bt2020nc", 10: "bt2020c"}
PRIMARIES = {
    1: "bt709", 4: "bt470m", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "film", 9: "bt2020", 10: "smpte428", 11: "smpte431",
    12: "smpte432", 22: "ebu3213",
}  # fmt: skip
TRANSFERS = {
    1: "bt709", 4: "gamma22", 5: "gamma28", 6: "smpte170m", 7: "smpte240m", 8: "linear", 9: "log", 10: "log_sqrt", 11: "iec61966-2-4",
    12: "bt1361e", 13: "iec61966-2-1", 14: "bt2020-10", 15: "bt2020-12", 16: "smpte2084", 17: "smpte428", 18: "arib-std-b67",
}  # fmt: skip
RANGES: dict[int, RangeName] = {1: "tv", 2: "pc"}

# swscale's own numbers of the matrices it can compute with.
SWS_MATRIX = {"bt709": 1, "fcc": 4, "bt470bg": 5, "smpte170m": 5, "smpte240m": 7, "bt2020nc": 9}

# The tags that go with a matrix when nothing else is said: (primaries, transfer).
TAGS_OF_SPACE = {
    "bt709": ("bt709", "bt709"),
    "fcc": ("bt470m", "gamma22"),
    "bt470bg": ("bt470bg", "smpte170m"),
    "smpte170m": ("smpte170m", "smpte170m"),
    "smpte240m": ("smpte240m", "smpte240m"),
    "bt2020nc": ("bt2020", "bt2020-10"),
}

# Codecs whose untagged grey or YUV frames hold full range, as images and intermediate files do.
FULL_RANGE_CODECS = frozenset(
    {"png", "apng", "bmp", "tiff", "mjpeg", "gif", "rawvideo", "ffv1", "huffyuv", "ffvhuff", "utvideo", "jpeg2000", "pgm", "ppm"}
)

# Without accurate rounding and full chroma interpolation swscale repeats chroma samples and is off by up to 3 of 255 in flat colours, with
# them by 0.5. Bit-exact makes the result the same on every CPU.
SCALER = int(Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.BITEXACT)
PLANAR_ORDER = (1, 2, 0, 3)

HD_WIDTH, HD_HEIGHT = 1280, 576


def name_of(names: dict[int, str], number: int) -> str | None:
    """FFmpeg's name for an enum value, None for unspecified and reserved ones."""
    return names.get(number)


def number_of(names: dict[int, str], name: str, what: str) -> int:
    """The enum value of `name`; raises `MediaError` with the choices."""
    for number, known in names.items():
        if known == name:
            return number
    raise MediaError(f"unknown {what} '{name}'; choose one of {', '.join(names.values())}")


def matrix_of(space: str | None, width: int, height: int) -> str:
    """The matrix to read with. Untagged video counts as BT.709 from 1280 wide or above 576 high, as BT.601 below, as players do.

    Raises `MediaError` for matrices that swscale cannot compute (YCgCo, constant-luminance BT.2020).
    """
    if space is None or space == "rgb":
        return "bt709" if width >= HD_WIDTH or height > HD_HEIGHT else "smpte170m"
    if space not in SWS_MATRIX:
        raise MediaError(f"colour matrix '{space}' is not supported; convert the video to one of {', '.join(SWS_MATRIX)} first")
    return space


@dataclass(frozen=True)
class Orientation:
    """How stored frames are turned for display: first transposed, then mirrored."""

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    @property
    def rotation(self) -> int:
        """Clockwise degrees; with a mirroring left over, the angle of the rotation that precedes it."""
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
    """The orientation in the frame's display matrix: nine 16.16 fixed-point numbers, rows (a b u), (c d v), (x y w).

    A stored point (x, y) is displayed at (a x + c y, b x + d y). Angles that are no multiple of 90 degrees go to the nearest one.
    """
    try:
        side_data: Any = frame.side_data
        matrix = side_data[SideDataType.DISPLAYMATRIX]
    except KeyError:
        return Orientation()
    except ValueError:  # beside data of a kind that PyAV does not know, such as EXIF, only the angle can be had
        return Orientation(*{90: (True, False, True), 180: (False, True, True), 270: (True, True, False)}.get(frame.rotation % 360, ()))
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)


class RGBConverter:
    """Turns decoded frames of any pixel format into RGB. One per stream: it holds swscale's tables."""

    def __init__(self, codec: str) -> None:
        self._full_range_codec = codec in FULL_RANGE_CODECS
        self._reformatter = VideoReformatter()

    def convert(self, frame: av.VideoFrame) -> RGBArray:
        """`frame` as (H, W, 3), as stored (not rotated).

        Alpha is blended over black: transparent pixels may hold any colour, which must not come to light. High bit depths are rounded to 8.
        HDR transfer curves are kept as code values, not tone-mapped.
        """
        name, components = frame.format.name, frame.format.components
        if name == "rgb24":
            return np.ascontiguousarray(frame.to_ndarray(), dtype=np.uint8)
        if frame.format.has_palette or any(component.is_alpha for component in components):
            return _over_black(self._scaled(frame, 4))
        rgb = self._scaled(frame, 3)
        if len(components) == 1 and self._source_range(frame) == ColorRange.MPEG:
            rgb = LIMITED_TO_FULL[rgb]  # swscale ignores the range of grey frames and passes their values as they are
        return rgb

    def _source_range(self, frame: av.VideoFrame) -> ColorRange:
        if frame.color_range in RANGES:
            return ColorRange(frame.color_range)
        full = self._full_range_codec or frame.format.name.startswith("yuvj")
        return ColorRange.JPEG if full else ColorRange.MPEG

    def _scaled(self, frame: av.VideoFrame, channels: int) -> RGBArray:
        """(H, W, channels), RGB or RGBA. From YUV by way of planes: the same bits as swscale's packed output, in a quarter of the time."""
        planar = not frame.format.is_rgb and not frame.format.has_palette and len(frame.format.components) >= 3
        pixel_format = {3: ("rgb24", "gbrp"), 4: ("rgba", "gbrap")}[channels][planar]
        matrix = SWS_MATRIX[matrix_of(name_of(SPACES, frame.colorspace), frame.width, frame.height)]
        out = self._reformatter.reformat(
            frame,
            format=pixel_format,
            src_colorspace=matrix,
            dst_colorspace=matrix,
            src_color_range=int(self._source_range(frame)),
            dst_color_range=int(ColorRange.JPEG),
            interpolation=SCALER,
            threads=1,
        )
        if not planar:
            return np.ascontiguousarray(out.to_ndarray(), dtype=np.uint8)
        array: RGBArray = np.empty((frame.height, frame.width, channels), np.uint8)
        for channel, plane in zip(PLANAR_ORDER, out.planes, strict=False):
            array[..., channel] = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width]
        return array


def _over_black(rgba: RGBArray) -> RGBArray:
    """(H, W, 4) with straight alpha -> (H, W, 3) over black, rounded to nearest."""
    alpha = rgba[..., 3:]
    if alpha.min() == 255:
        return np.ascontiguousarray(rgba[..., :3])
    blended = (rgba[..., :3].astype(np.uint16) * alpha + 127) // 255
    return blended.astype(np.uint8)


def _limited_to_full() -> RGBArray:
    levels = (np.arange(256) - 16) * (255 / 219)
    table: RGBArray = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    return table


LIMITED_TO_FULL = _limited_to_full()


class YUVConverter:
    """Turns RGB arrays into frames of the encoder's pixel format, with the matrix and range that the stream is tagged with."""

    def __init__(self, pixel_format: str, space: str, color_range: RangeName) -> None:
        self._pixel_format = pixel_format
        self._matrix = SWS_MATRIX[space]
        self._range = int(ColorRange.MPEG if color_range == "tv" else ColorRange.JPEG)
        self._is_rgb = av.VideoFormat(pixel_format).is_rgb
        self._reformatter = VideoReformatter()

    def convert(self, rgb: RGBArray) -> av.VideoFrame:
        """(H, W, 3) -> a frame without timestamp."""
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
        return self._reformatter.reformat(
            frame,
            format=self._pixel_format,
            src_colorspace=self._matrix,
            dst_colorspace=self._matrix,
            src_color_range=int(ColorRange.JPEG),
            dst_color_range=int(ColorRange.JPEG) if self._is_rgb else self._range,
            interpolation=SCALER,
            threads=1,
        )
