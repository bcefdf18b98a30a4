"""FFmpeg's names of colour tags, by their numbers in ITU-T H.273."""

from __future__ import annotations

from collections.abc import Mapping

from wfvae.errors import MediaError
from wfvae.runtime.media.video_info import ColorRange
from wfvae.video.stored_pixels import SWS_MATRICES


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
RANGES: Mapping[int, ColorRange] = {1: "tv", 2: "pc"}

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


def number_of(names: Mapping[int, str], name: str, what: str) -> int:
    """Returns the number of `name`; raises `MediaError` that lists the choices."""
    for number, known in names.items():
        if known == name:
            return number
    raise MediaError(f"unknown {what} '{name}'; choose one of {', '.join(names.values())}")
