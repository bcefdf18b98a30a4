"""Colours: FFmpeg's names of colour tags, and conversion between stored pixels and RGB arrays.

Arrays are uint8 RGB of shape (H, W, 3), full range 0..255, C-contiguous. How stored pixels are
interpreted is defined in `wfvae.video.stored_pixels`.
"""

from collections.abc import Mapping
from fractions import Fraction

import av
import numpy as np
from av.filter import Graph
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from wfvae.errors import MediaError
from wfvae.runtime.media.video_info import ChromaSiting
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


def _numbered(names: str) -> dict[int, str]:
    """Names in the order of their numbers, "-" for a reserved or unspecified number."""
    return {number: name for number, name in enumerate(names.split()) if name != "-"}


SPACES = _numbered("rgb bt709 - - fcc bt470bg smpte170m smpte240m ycgco bt2020nc bt2020c")
PRIMARIES = _numbered(
    "- bt709 - - bt470m bt470bg smpte170m smpte240m film bt2020 smpte428 smpte431 smpte432"
    " - - - - - - - - - ebu3213"
)
TRANSFERS = _numbered(
    "- bt709 - - gamma22 gamma28 smpte170m smpte240m linear log log_sqrt iec61966-2-4 bt1361e"
    " iec61966-2-1 bt2020-10 bt2020-12 smpte2084 smpte428 arib-std-b67"
)
RANGES: Mapping[int, RangeName] = {1: "tv", 2: "pc"}

SWS_MATRIX = {name: SWS_MATRICES[number] for number, name in SPACES.items() if number in SWS_MATRICES}
"""swscale's own numbers of the matrices that it can compute, by name."""

DEFAULT_SPACE = "bt709"
TAGS_OF_SPACE = {
    "bt709": ("bt709", "bt709"),
    "fcc": ("bt470m", "gamma22"),
    "bt470bg": ("bt470bg", "smpte170m"),
    "smpte170m": ("smpte170m", "smpte170m"),
    "smpte240m": ("smpte240m", "smpte240m"),
    "bt2020nc": ("bt2020", "bt2020-10"),
}
"""The primaries and the transfer that go with a matrix if none are given."""

SPACE_OF_PRIMARIES = {"bt2020": "bt2020nc"}
"""The matrix that goes with primaries if none is given."""

# Without accurate rounding and full chroma interpolation swscale repeats chroma samples and is off
# by up to 3 of 255 in flat colours, with them by 0.5. Bit-exact gives the same result on every CPU.
READING_SCALER = int(
    Interpolation.BILINEAR
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.BITEXACT
)
# For writing: bicubic halves chroma with 1.3 dB less error than bilinear. Full chroma input keeps
# swscale from averaging pairs of pixels first, which shifts the chroma.
WRITING_SCALER = int(
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.BITEXACT
)
FULL_RANGE = int(ColorRange.JPEG)
PLANAR_ORDER = (1, 2, 0, 3)


def number_of(names: Mapping[int, str], name: str, what: str) -> int:
    """Returns the number of `name`; raises `MediaError` that lists the choices."""
    for number, known in names.items():
        if known == name:
            return number
    raise MediaError(f"unknown {what} '{name}'; choose one of {', '.join(names.values())}")


class _Scaler:
    """swscale, given every setting that it would guess."""

    def __init__(self, flags: int) -> None:
        self._reformat = VideoReformatter().reformat
        self._flags = flags

    def scale(self, frame: av.VideoFrame, to: str, matrix: int, levels: int, to_levels: int) -> av.VideoFrame:
        size, matrices, ranges = (None, None), (matrix, matrix), (levels, to_levels)
        return self._reformat(frame, *size, to, *matrices, self._flags, *ranges, threads=1)


class FrameTagger:
    """Tags frames of one size and format, through FFmpeg's filter `setparams`.

    For the properties of a frame that PyAV has no attribute for.
    """

    def __init__(self, example: av.VideoFrame, **tags: str) -> None:
        self._graph = Graph()
        self._graph.threads = 1
        tick = Fraction(1, 1000)
        size = example.width, example.height
        source = self._graph.add_buffer(None, *size, example.format, time_base=tick)
        values = ":".join(f"{name}={value}" for name, value in tags.items())
        self._graph.link_nodes(source, self._graph.add("setparams", values), self._graph.add("buffersink"))
        self._graph.configure()

    def tag(self, frame: av.VideoFrame) -> av.VideoFrame:
        """Returns the frame with the tags, its pixels shared."""
        self._graph.vpush(frame)
        return self._graph.vpull()


class RGBConverter:
    """Converts frames of any pixel format to RGB. One per stream: it holds swscale's tables.

    Alpha is blended over black. High bit depths are rounded to 8. HDR transfer curves are kept as
    code values, not tone-mapped.
    """

    def __init__(self, codec: str) -> None:
        self._codec = codec
        self._scaler = _Scaler(READING_SCALER)

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
            problem = f"colour matrix '{SPACES.get(frame.colorspace, frame.colorspace)}' is not supported"
            raise MediaError(f"{problem}; convert the video to one of {', '.join(SWS_MATRIX)} first")
        packed = frame.format.is_rgb or frame.format.has_palette or len(frame.format.components) < 3
        pixel_format = {3: ("gbrp", "rgb24"), 4: ("gbrap", "rgba")}[channels][packed]
        levels = int(range_of(frame, self._codec))
        out = self._scaler.scale(frame, pixel_format, matrix, levels, FULL_RANGE)
        if packed:
            return np.ascontiguousarray(out.to_ndarray(), dtype=np.uint8)
        array: RGBArray = np.empty((frame.height, frame.width, channels), np.uint8)
        for channel, plane in zip(PLANAR_ORDER, out.planes, strict=False):
            rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
            array[..., channel] = rows[: frame.height, : frame.width]
        return array


class YUVConverter:
    """Converts RGB arrays to frames of the encoder's pixel format, matrix, range and siting."""

    def __init__(self, pixel_format: str, space: str, color_range: RangeName, siting: ChromaSiting) -> None:
        self._pixel_format = pixel_format
        self._matrix = SWS_MATRIX[space]
        limited = color_range == "tv" and not av.VideoFormat(pixel_format).is_rgb
        self._range = int(ColorRange.MPEG) if limited else FULL_RANGE
        self._siting = siting
        self._tagger: FrameTagger | None = None
        self._scaler = _Scaler(WRITING_SCALER)

    def convert(self, rgb: RGBArray) -> av.VideoFrame:
        """Converts (H, W, 3) to a frame without a timestamp."""
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
        if self._tagger is None:
            # swscale places the chroma samples where the tag of the RGB frame says: in the centre
            # of their pixels without one, which no decoder of 4:2:0 video but JPEG's assumes.
            self._tagger = FrameTagger(frame, chroma_location=self._siting)
        frame = self._tagger.tag(frame)
        return self._scaler.scale(frame, self._pixel_format, self._matrix, FULL_RANGE, self._range)
