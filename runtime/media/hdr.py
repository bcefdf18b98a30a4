"""HDR10 metadata: the display that a video was mastered on, and the light levels of its content.

Both are texts in the units of HEVC's messages, chromaticities in 0.00002 and luminance in 0.0001
cd/m²; the levels are MaxCLL and MaxFALL in cd/m²:

    G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1)
    1000,400
"""

import re
import struct
from typing import Any

import av
from av.sidedata.sidedata import Type

from wfvae.errors import MediaError
from wfvae.spec.latents import CONTENT_LIGHT, MASTERING_DISPLAY

_CHROMATICITY, _LUMINANCE = 50000, 10000
"""Steps in 1."""
_PARAMETERS = {
    "libx264": ("x264-params", "mastering-display", "cll"),
    "libx265": ("x265-params", "master-display", "max-cll"),
    "libsvtav1": ("svtav1-params", "mastering-display", "content-light"),
}
"""By encoder: the option, and its parameters for the display and for the light levels."""
_MASTERING_STRUCT = "=20i2i"
"""FFmpeg's AVMasteringDisplayMetadata: rational numbers of red, green, blue and white (x, y), of
the least and the highest luminance, and whether chromaticities and luminance are set."""


def mastering_display(frame: av.VideoFrame) -> str | None:
    """Returns the mastering display that a decoded frame states, None without one."""
    data = _side_data(frame, Type.MASTERING_DISPLAY_METADATA)
    if len(data) != struct.calcsize(_MASTERING_STRUCT):
        return None
    *parts, has_chromaticities, has_luminance = struct.unpack(_MASTERING_STRUCT, data)
    pairs = list(zip(parts[::2], parts[1::2], strict=True))
    if not (has_chromaticities and has_luminance) or any(below <= 0 for _, below in pairs):
        return None
    units = [_CHROMATICITY] * 8 + [_LUMINANCE] * 2
    values = [round(above * unit / below) for (above, below), unit in zip(pairs, units, strict=True)]
    red_x, red_y, green_x, green_y, blue_x, blue_y, white_x, white_y, low, high = values
    chromaticities = f"G({green_x},{green_y})B({blue_x},{blue_y})R({red_x},{red_y})WP({white_x},{white_y})"
    return f"{chromaticities}L({high},{low})"


def content_light(frame: av.VideoFrame) -> str | None:
    """Returns the light levels that a decoded frame states, None without any."""
    data = _side_data(frame, Type.CONTENT_LIGHT_LEVEL)
    return "{},{}".format(*struct.unpack("=2I", data)) if len(data) == 8 else None


def _side_data(frame: av.VideoFrame, kind: Type) -> bytes:
    try:
        side_data: Any = frame.side_data
        return bytes(side_data[kind])
    except (KeyError, ValueError):  # the latter beside side data that PyAV does not know
        return b""


def hdr_parameters(codec: str, mastering: str | None, light: str | None) -> dict[str, list[str]]:
    """Returns the parameters, by option, that make an encoder state HDR10 metadata.

    Empty for an encoder that cannot. Raises `MediaError` for malformed metadata.
    """
    _check(mastering, MASTERING_DISPLAY, "mastering display")
    _check(light, CONTENT_LIGHT, "content light levels")
    if codec not in _PARAMETERS or not (mastering or light):
        return {}
    option, display, levels = _PARAMETERS[codec]
    if mastering and codec == "libsvtav1":
        mastering = _in_units(mastering)
    return {option: [f"{name}={value}" for name, value in ((display, mastering), (levels, light)) if value]}


def _check(text: str | None, pattern: str, what: str) -> None:
    if text is not None and not re.fullmatch(pattern, text):
        raise MediaError(f"'{text}' is no {what}; expected text such as wfvae.runtime.media.hdr describes")


def _in_units(mastering: str) -> str:
    """Writes chromaticities as numbers of 0..1, and luminance in cd/m²."""

    def convert(match: re.Match[str]) -> str:
        unit = _LUMINANCE if match[1] == "L" else _CHROMATICITY
        return f"{match[1]}({int(match[2]) / unit:.5f},{int(match[3]) / unit:.5f})"

    return re.sub(r"([A-Z]+)\((\d+),(\d+)\)", convert, mastering)
