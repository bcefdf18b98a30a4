"""The metadata of latents, the same in every file format. Specified in `docs/latents-format.md`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from wfvae.errors import LatentsError
from wfvae.spec.bounded import parse_object, to_fraction
from wfvae.spec.frames import SPATIAL_RATIO, latent_frames
from wfvae.spec.records import check_fields, read_as
from wfvae.spec.stream import LARGEST_SIDE

FORMAT: Final = "wfvae-latents/1"
Latents = npt.NDArray[np.float32] | npt.NDArray[np.float16]
DTYPES = (np.dtype(np.float32), np.dtype(np.float16))
ITEMS_PER_FINITE_CHECK = 1 << 22
FRAMES_AT_MOST = 2**53
ASPECT_TERM_AT_MOST = 2**16 - 1
"""H.264 and HEVC store a pixel's width and height in 16 bits each."""
_HIGHEST_RATE = 10**6
LATEST_START = 10**4
"""Seconds."""

Frames = Annotated[int, Meta(ge=1, le=FRAMES_AT_MOST)]
Side = Annotated[int, Meta(ge=1, le=LARGEST_SIDE)]
Name = Annotated[str, Meta(max_length=256)]
Factors = Annotated[tuple[float, ...], Meta(max_length=1 << 16)]
_POINT, _LEVELS = r"\(\d{1,5},\d{1,5}\)", r"\d{1,10},\d{1,10}"
MASTERING_DISPLAY = rf"G{_POINT}B{_POINT}R{_POINT}WP{_POINT}L\({_LEVELS}\)"
"""Pattern of the display that an HDR video was mastered on, in the units of HEVC."""
CONTENT_LIGHT = _LEVELS
"""Pattern of the light levels of an HDR video, MaxCLL and MaxFALL in cd/m²."""


class LatentsInfo(msgspec.Struct, frozen=True):
    """Metadata of latents (T', D, h, w), which are stored unscaled.

    Raises `LatentsError` on construction if a value is out of range.
    """

    frames: Frames | None
    """Frames of the video, T. None until the encoder has seen the last one."""
    height: Side
    width: Side
    """Size of the video in pixels, before padding."""
    padded_height: Side
    padded_width: Side
    """Size that the encoder saw, in pixels."""
    fps: Fraction
    kind: Literal["mean", "moments"]
    """"mean": D channels of the posterior's mean. "moments": D means, then D log-variances."""
    temporal_ratio: Literal[4, 8]
    """Video frames per latent, after the first frame."""
    scale: Factors = ()
    shift: Factors = ()
    """For diffusion: (z - shift) * scale, one number per channel or one for all."""
    bundle_hash: Name = ""
    model: Name = ""
    time_base: Fraction | None = None
    color_range: Name | None = None
    color_space: Name | None = None
    color_primaries: Name | None = None
    color_transfer: Name | None = None
    mastering_display: Annotated[str, Meta(pattern=rf"\A{MASTERING_DISPLAY}\Z")] | None = None
    content_light: Annotated[str, Meta(pattern=rf"\A{CONTENT_LIGHT}\Z")] | None = None
    sample_aspect_ratio: Fraction | None = None
    start: Fraction | None = None
    """Properties of the source video, to carry over to a decoded one: tick, colour tags, HDR10
    metadata, width of a pixel over its height, and seconds from the start of the file's earliest
    stream to the first frame.
    """
    version: Literal["wfvae-latents/1"] = FORMAT

    def __post_init__(self) -> None:
        check_fields(self, LatentsError, hook=_read_fraction)
        if self.height > self.padded_height or self.width > self.padded_width:
            padded = f"{self.padded_height}x{self.padded_width}"
            problem = f"a video of {self.height}x{self.width} (HxW) padded to {padded} cannot be"
            raise LatentsError(f"{problem}; padding only adds")
        if not 0 < self.fps <= _HIGHEST_RATE:
            raise LatentsError(f"a rate of {self.fps} fps cannot be; give one above 0, up to {_HIGHEST_RATE}")
        if not all(map(math.isfinite, self.scale + self.shift)):
            raise LatentsError(f"scale {self.scale} or shift {self.shift} is not finite; give finite numbers")
        if self.time_base is not None and self.time_base <= 0:
            raise LatentsError(f"a tick of {self.time_base} s cannot be; give one above 0")
        aspect = self.sample_aspect_ratio
        if aspect is not None and not 0 < aspect.numerator <= ASPECT_TERM_AT_MOST >= aspect.denominator:
            raise LatentsError(f"a pixel aspect of {aspect} cannot be; give two integers of 16 bits")
        if self.start is not None and not 0 <= self.start <= LATEST_START:
            raise LatentsError(f"a start at {self.start} s cannot be; give a time from 0 to {LATEST_START}")

    @property
    def expected_count(self) -> int | None:
        """How many latents `frames` frames make. None while T is unknown."""
        return None if self.frames is None else latent_frames(self.frames, self.temporal_ratio)

    def to_json(self) -> dict[str, Any]:
        """Returns a dict of JSON types, with fractions as "30000/1001"."""
        values: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self, enc_hook=str))
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any], name: str) -> LatentsInfo:
        """Reads what `to_json` returned, from the file `name`. Unknown keys are ignored."""
        if values.get("version") != FORMAT:
            problem = f"'{name}' carries no {FORMAT} metadata (version is {values.get('version')!r})"
            raise LatentsError(f"{problem}; expected latents written by wfvae")

        def wrong(problem: str) -> LatentsError:
            text = f"the metadata of '{name}' is incomplete or wrong: {problem}"
            return LatentsError(f"{text}; encode the video again")

        return read_as(cls, values, wrong, hook=_read_fraction)

    def differences(self, other: LatentsInfo) -> list[str]:
        """Names of the fields, except `frames`, that differ."""
        mine, theirs = self.to_json(), other.to_json()
        return [key for key in mine if key != "frames" and mine[key] != theirs[key]]

    def check_count(self, count: int, name: str) -> None:
        """Raises `LatentsError` if `count` latents cannot belong to `frames` frames."""
        if self.expected_count is not None and count != self.expected_count:
            made = f"{self.frames} frames at a ratio of {self.temporal_ratio} make {self.expected_count}"
            advice = "the number of frames is wrong, or latents are missing"
            raise LatentsError(f"'{name}' holds {count} latents, but {made}; {advice}")

    def check_shape(self, shape: tuple[int, ...], name: str, complete: bool) -> None:
        """Raises `LatentsError` if an array (T', D, h, w) cannot be the latents of this video.

        `complete` says that the array holds the whole video.
        """
        count, channels, *sides = shape
        padded = (self.padded_height, self.padded_width)
        if [side * SPATIAL_RATIO for side in sides] != list(padded):
            problem = f"'{name}' holds latents of {sides[0]}x{sides[1]}"
            expected = f"a video padded to {padded[0]}x{padded[1]}, 1/{SPATIAL_RATIO} of it"
            raise LatentsError(f"{problem}, and its metadata describe {expected}; encode the video again")
        if self.kind == "moments" and channels % 2:
            problem = f"'{name}' holds moments of {channels} channels"
            raise LatentsError(f"{problem}; expected as many log-variances as means, encode the video again")
        means = channels // 2 if self.kind == "moments" else channels
        for key, factors in (("scale", self.scale), ("shift", self.shift)):
            if len(factors) not in (0, means) and len(set(factors)) != 1:
                problem = f"the metadata of '{name}' have {len(factors)} numbers as {key}"
                raise LatentsError(f"{problem}; expected none, one, or one for each of {means} channels")
        if complete:
            self.check_count(count, name)


def _read_fraction(kind: type, value: Any) -> Any:
    return to_fraction(value)


def info_from_text(text: bytes | str, name: str) -> dict[str, Any]:
    """Parses a JSON object. Raises `LatentsError` for anything else."""

    def wrong(problem: str) -> LatentsError:
        return LatentsError(f"the metadata of '{name}' is no JSON object: {problem}; encode the video again")

    return parse_object(text, wrong)


def check_latents(latents: Any, name: str) -> None:
    """Raises `LatentsError` unless `latents` are finite float32 or float16 of rank 4, not empty."""
    is_array = isinstance(latents, np.ndarray)
    if not is_array or latents.ndim != 4 or latents.dtype not in DTYPES or 0 in latents.shape:
        given = f"{latents.dtype} {latents.shape}" if is_array else type(latents).__name__
        expected = "expected float32 or float16 of shape (T', D, h, w), none of them 0"
        raise LatentsError(f"latents for '{name}' are {given}; {expected}")
    check_finite(latents, 0, name)


def check_finite(latents: npt.NDArray[Any], first: int, name: str) -> None:
    """Raises `LatentsError` with the first latent, counted from `first`, that is not finite."""
    step = max(1, ITEMS_PER_FINITE_CHECK // max(1, latents[0].size)) if len(latents) else 1
    for start in range(0, len(latents), step):
        part = latents[start : start + step]
        good = np.isfinite(part).all(axis=tuple(range(1, part.ndim)))
        if not good.all():
            index = first + start + int(np.argmin(good))
            problem = f"latent {index} of '{name}' holds NaN or infinity"
            raise LatentsError(f"{problem}; it cannot be decoded, encode the video again")
