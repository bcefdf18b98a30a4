"""What is made of each video: which frames, which size, which latents."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Literal

import msgspec

from wfvae.errors import InputError
from wfvae.spec.bounded import to_fraction
from wfvae.spec.records import Record, check_fields
from wfvae.spec.stream import Size

Count = Annotated[int, msgspec.Meta(ge=1)]


class ClipOptions(Record, frozen=True, kw_only=True):
    """The frames and latents of each sample. Two runs with equal options give equal samples.

    Raises `InputError` on construction if options contradict each other.
    """

    frames: Count | None = None
    """Frames of a window; None: the whole video."""
    stride: Count = 1
    """Take every n-th frame."""
    fps: str | None = None
    """Rate to resample to before `stride`, such as "24" or "30000/1001"; None: the video's."""
    size: tuple[Size, Size] | None = None
    """Height and width to scale to; None: the video's."""
    crop: Literal["centre", "none"] = "centre"
    """How a video of another aspect gets `size`: cut at the centre, or stretched."""
    windows: Literal["all", "first"] | Count = "all"
    """Windows taken of a video: all, the first, or the first n, without overlap or rest."""
    output: Literal["mean", "moments"] = "mean"
    """The posterior's mean (D channels), or mean and log-variance (2 D channels)."""
    dtype: Literal["fp32", "fp16"] = "fp32"
    """Type of the stored latents."""
    preview: bool = False
    """Store each sample's first frame as JPEG."""

    def __post_init__(self) -> None:
        check_fields(self, InputError)
        if self.frames is None and self.windows != "all":
            raise InputError(f"windows is {self.windows!r} without a number of frames; give frames, too")
        if self.fps is not None and self.rate <= 0:
            raise InputError(f"fps is {self.fps!r}; expected a rate above 0")

    @property
    def rate(self) -> Fraction:
        """`fps` as a number; 0 where the video's own rate is kept."""
        try:
            return to_fraction(self.fps or 0)
        except ValueError as error:
            raise InputError(f"fps is {self.fps!r}; expected a rate such as 24 or 30000/1001") from error

    @property
    def window_limit(self) -> int | None:
        """The most windows of one video; None: no limit."""
        if self.frames is None or self.windows == "first":
            return 1
        return None if self.windows == "all" else self.windows

    @property
    def window_span(self) -> int | None:
        """Frames from one window's first frame to the next one's, after resampling."""
        return None if self.frames is None else self.frames * self.stride
