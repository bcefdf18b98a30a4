"""Between stored pixels and RGB, with both ends of each conversion named; how pixels are to be read
is in `wfvae.video.stored_pixels`.

All arrays are uint8 RGB of shape (H, W, 3), full range 0..255, C-contiguous.
"""

from __future__ import annotations

import av
import numpy as np
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from wfvae.errors import MediaError
from wfvae.runtime.media.video_info import ColorRange as RangeName
from wfvae.video.stored_pixels import (
    LIMITED_TO_FULL,
    SWS_MATRICES,
    RGBArray,
    is_limited_grey,
    may_be_transparent,
    over_black,
    range_of,
    sws_matrix,
)

# FFmpeg's enums AVColorSpace, AVColorPrimaries and AVColorTransferCharacteristic (ITU-T H.273), by
# FFmpeg's names.
SPACES = {
    0: "rgb",
    1: "bt709",
    4: "fcc",
    5: "bt470bg",
    6: "smpte170m",
    7: "smpte240m",
    8: "ycgco",
    9: "bt2020nc",
    10: "bt2020c",
}
PRIMARIES = {
    1: "bt709", 4: "bt470m", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "film", 9: "bt2020", 10: "smpte428", 11: "smpte431",
    12: "smpte432", 22: "ebu3213",
}  # fmt: skip
TRANSFERS = {
    1: "bt709", 4: "gamma22", 5: "gamma28", 6: "smpte170m", 7: "smpte240m", 8: "linear", 9: "log", 10: "log_sqrt", 11: "iec61966-2-4",
    12: "bt1361e", 13: "iec61966-2-1", 14: "bt2020-10", 15: "bt2020-12", 16: "smpte2084", 17: "smpte428", 18: "arib-std-b67",
}  # fmt: skip
RANGES: dict[int, RangeName] = {1: "tv", 2: "pc"}

SWS_MATRIX = {name: SWS_MATRICES[number] for number, name in SPACES.items() if number in SWS_MATRICES}
"""swscale's own numbers of the matrices it can compute with, by name."""

# The tags that go with a matrix when nothing else is said: (primaries, transfer).
TAGS_OF_SPACE = {
    "bt709": ("bt709", "bt709"),
    "fcc": ("bt470m", "gamma22"),
    "bt470bg": ("bt470bg", "smpte170m"),
    "smpte170m": ("smpte170m", "smpte170m"),
    "smpte240m": ("smpte240m", "smpte240m"),
    "bt2020nc": ("bt2020", "bt2020-10"),
}

# Without accurate rounding and full chroma interpolation swscale repeats chroma samples and is off
# by up to 3 of 255 in flat colours, with them by 0.5. Bit-exact makes the result the same on every
# CPU.
SCALER = int(
    Interpolation.BILINEAR
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.BITEXACT
)
PLANAR_ORDER = (1, 2, 0, 3)


def name_of(names: dict[int, str], number: int) -> str | None:
    """FFmpeg's name for an enum value, None for unspecified and reserved ones."""
    return names.get(number)


def number_of(names: dict[int, str], name: str, what: str) -> int:
    """The enum value of `name`; raises `MediaError` with the choices."""
    for number, known in names.items():
        if known == name:
            return number
    raise MediaError(f"unknown {what} '{name}'; choose one of {', '.join(names.values())}")


def matrix_of(frame: av.VideoFrame) -> int:
    """swscale's number of the matrix to read a frame with. Raises `MediaError` for matrices that it
    cannot compute.
    """
    matrix = sws_matrix(frame)
    if matrix is None:
        space = SPACES.get(frame.colorspace, frame.colorspace)
        raise MediaError(
            f"colour matrix '{space}' is not supported; convert the video to one of {', '.join(SWS_MATRIX)}"
            " first"
        )
    return matrix


class RGBConverter:
    """Turns decoded frames of any pixel format into RGB. One per stream: it holds swscale's tables."""

    def __init__(self, codec: str) -> None:
        self._codec = codec
        self._reformatter = VideoReformatter()

    def convert(self, frame: av.VideoFrame) -> RGBArray:
        """`frame` as (H, W, 3), as stored (not rotated).

        Alpha is blended over black: transparent pixels may hold any colour, which must not come to
        light. High bit depths are rounded to 8. HDR transfer curves are kept as code values, not
        tone-mapped.
        """
        if frame.format.name == "rgb24":
            return np.ascontiguousarray(frame.to_ndarray(), dtype=np.uint8)
        if may_be_transparent(frame):
            return over_black(self._scaled(frame, 4))
        rgb = self._scaled(frame, 3)
        return LIMITED_TO_FULL[rgb] if is_limited_grey(frame, self._codec) else rgb

    def _scaled(self, frame: av.VideoFrame, channels: int) -> RGBArray:
        """(H, W, channels), RGB or RGBA. From YUV by way of planes: the same bits as swscale's
        packed output, in a quarter of the time.
        """
        planar = (
            not frame.format.is_rgb and not frame.format.has_palette and len(frame.format.components) >= 3
        )
        pixel_format = {3: ("rgb24", "gbrp"), 4: ("rgba", "gbrap")}[channels][planar]
        matrix = matrix_of(frame)
        out = self._reformatter.reformat(
            frame,
            format=pixel_format,
            src_colorspace=matrix,
            dst_colorspace=matrix,
            src_color_range=int(range_of(frame, self._codec)),
            dst_color_range=int(ColorRange.JPEG),
            interpolation=SCALER,
            threads=1,
        )
        if not planar:
            return np.ascontiguousarray(out.to_ndarray(), dtype=np.uint8)
        array: RGBArray = np.empty((frame.height, frame.width, channels), np.uint8)
        for channel, plane in zip(PLANAR_ORDER, out.planes, strict=False):
            array[..., channel] = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[
                : frame.height, : frame.width
            ]
        return array


class YUVConverter:
    """Turns RGB arrays into frames of the encoder's pixel format, with the matrix and range that
    the stream is tagged with.
    """

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
