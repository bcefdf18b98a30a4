"""How the pixels that a video stores are interpreted: matrix, range, chroma siting, transparency,
rotation.

The runtime and training share this interpretation, so that a model is trained on what it is later
given. swscale alone would take every untagged matrix for BT.601, every grey frame for full range,
and untagged chroma for centre-sited.
"""

import io
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import ColorRange

RGBArray = npt.NDArray[np.uint8]

SWS_MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}
"""swscale's number of each colour matrix that it can compute, by the number in ITU-T H.273."""

_FULL_RANGE_CODECS = "png apng bmp tiff mjpeg gif rawvideo ffv1 huffyuv ffvhuff utvideo jpeg2000 pgm ppm"
FULL_RANGE_CODECS = frozenset(_FULL_RANGE_CODECS.split())
"""Codecs whose untagged grey or YUV frames hold full range, as images and intermediate files do."""

_UNTAGGED = frozenset({0, 2, 3})
"""RGB, unspecified and reserved: the values of video that states no matrix."""


def sws_matrix(frame: av.VideoFrame) -> int | None:
    """swscale's number of the matrix of a frame, None if swscale cannot compute it (such as YCgCo).

    As in players, untagged video counts as BT.709 from 1280 wide or above 576 high, else as BT.601.
    """
    if frame.colorspace in _UNTAGGED:
        is_hd = frame.width >= 1280 or frame.height > 576
        return SWS_MATRICES[1 if is_hd else 6]
    return SWS_MATRICES.get(frame.colorspace)


def range_of(frame: av.VideoFrame, codec: str) -> ColorRange:
    """The range of a frame's levels: as tagged, else full if the format or codec implies it."""
    if frame.color_range in (ColorRange.MPEG, ColorRange.JPEG):
        return ColorRange(frame.color_range)
    full = codec in FULL_RANGE_CODECS or frame.format.is_rgb or frame.format.name.startswith("yuvj")
    return ColorRange.JPEG if full else ColorRange.MPEG


def is_limited_grey(frame: av.VideoFrame, codec: str) -> bool:
    """Whether the frame needs `LIMITED_TO_FULL`, since swscale does not stretch grey levels."""
    is_grey = len(frame.format.components) == 1 and not frame.format.is_rgb
    return is_grey and range_of(frame, codec) == ColorRange.MPEG


_EBML_CHROMA_SITING = b"\x55\xb7\x81"
"""Identifier and size of Matroska's element ChromaSitingHorz."""


def assume_left_siting(stream: Any) -> None:
    """Makes a video stream's decoder place untagged chroma samples at the left of their pixels.

    Players do so, too, as H.264, HEVC and MPEG-2 define it. Decoders of formats that define or
    state another siting, such as JPEG, use theirs. Call it before the first frame is decoded.
    """
    if not _container_states_siting(stream):
        stream.codec_context.options = {**stream.codec_context.options, "chroma_sample_location": "left"}


def _container_states_siting(stream: Any) -> bool:
    """Whether a container says where chroma samples lie: Matroska may, YUV4MPEG does.

    PyAV has no attribute for it, so the stream's header is written as Matroska and searched. A
    codec for which FFmpeg writes no such header counts as untagged.
    """
    kind = stream.container.format.name
    if not kind.startswith("matroska"):
        return bool(kind == "yuv4mpegpipe")
    header = io.BytesIO()
    with suppress(av.FFmpegError, ValueError), av.open(header, "w", format="matroska") as copy:
        copy.add_stream_from_template(stream, opaque=True)
        copy.start_encoding()
    return _EBML_CHROMA_SITING in header.getvalue()


LIMITED_TO_FULL: RGBArray = np.clip(np.rint((np.arange(256) - 16) * (255 / 219)), 0, 255).astype(np.uint8)
"""Maps levels 16..235 to 0..255, indexed by the former."""


def may_be_transparent(frame: av.VideoFrame) -> bool:
    """Whether its format has alpha, of its own or in a palette."""
    return bool(frame.format.has_palette or any(component.is_alpha for component in frame.format.components))


def over_black(rgba: RGBArray) -> RGBArray:
    """Blends (H, W, 4) with straight alpha over black: (H, W, 3), rounded to nearest.

    Transparent pixels may hold any colour, which must not become visible.
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
        """Clockwise degrees; if the frame is also mirrored, the rotation that comes first."""
        if self.transpose:
            return 90 if self.mirror_x else 270
        return 180 if self.mirror_y else 0

    def apply(self, frame: RGBArray) -> RGBArray:
        """Turns a stored frame (h, w, 3) into the displayed one (H, W, 3), contiguous."""
        if self.transpose:
            frame = frame.transpose(1, 0, 2)
        if self.mirror_x:
            frame = frame[:, ::-1]
        if self.mirror_y:
            frame = frame[::-1]
        return np.ascontiguousarray(frame)


_BY_ANGLE = {
    90: Orientation(transpose=True, mirror_y=True),
    180: Orientation(mirror_x=True, mirror_y=True),
    270: Orientation(transpose=True, mirror_x=True),
}
"""By counter-clockwise degrees."""


def orientation_of(frame: av.VideoFrame) -> Orientation:
    """Reads the orientation from a frame's display matrix.

    The matrix is nine 16.16 fixed-point numbers, rows (a b u), (c d v), (x y w): a stored point
    (x, y) is displayed at (a x + c y, b x + d y). Angles are rounded to multiples of 90 degrees.
    """
    try:
        side_data: Any = frame.side_data
        matrix = side_data[SideDataType.DISPLAYMATRIX]
    except KeyError:
        return Orientation()
    except ValueError:  # beside side data that PyAV does not know (EXIF), it gives the angle only
        return _BY_ANGLE.get(frame.rotation % 360, Orientation())
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)
