"""What is known about a video before it is read, and what is wanted of one that is written."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from wfvae.errors import MediaError

ColorRange = Literal["tv", "pc"]
SourceKind = Literal["file", "pipe", "images", "raw"]


@dataclass(frozen=True)
class RawVideo:
    """The layout of a headerless stream of RGB frames, 3 bytes per pixel, row by row, no padding."""

    width: int
    height: int
    fps: Fraction = Fraction(24)

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1 or self.fps <= 0:
            raise MediaError(
                f"raw video of {self.width}x{self.height} at {self.fps} fps cannot be; give sizes of at least"
                " 1 and a rate above 0"
            )

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame."""
        return self.width * self.height * 3


@dataclass(frozen=True)
class VideoInfo:
    """A video source, as it presents itself after its first frame was decoded."""

    width: int
    """Width in pixels of the arrays that are read, that is after rotation."""
    height: int
    """Height in pixels of the arrays that are read, that is after rotation."""
    fps: Fraction
    """Average frame rate that the container states, or the best guess."""
    time_base: Fraction | None
    """Tick of the source's timestamps in seconds; None where the source has no timestamps (images,
    raw).
    """
    frames: int | None
    """Frames the container *states*. None where it states nothing, and it may be wrong: only
    reading to the end tells the truth.
    """
    pixel_format: str
    """FFmpeg's name of the stored pixel format, such as "yuv420p"."""
    color_range: ColorRange | None
    """"tv" (limited) or "pc" (full) as stored; None if the file does not say."""
    color_space: str | None
    """Matrix as stored ("bt709", "smpte170m", "rgb", ...); None if the file does not say."""
    color_primaries: str | None
    color_transfer: str | None
    rotation: int
    """Clockwise degrees (0, 90, 180, 270) by which the stored frames are turned on reading.
    Mirroring, if any, is undone as well.
    """
    variable_frame_rate: bool
    """True if the container's index or rates show unequal frame times. Best knowledge: False is no
    promise.
    """
    has_audio: bool
    kind: SourceKind
    sample_aspect_ratio: Fraction | None = None
    """Width of a stored pixel over its height, where stated and not 1. Frames are passed on
    unscaled.
    """


@dataclass(frozen=True)
class OutputVideo:
    """A video to be written. Everything but the size and the rate has a default that suits the
    destination.
    """

    width: int
    height: int
    fps: Fraction
    """Nominal rate; frames written without times are spaced by 1 / fps."""
    time_base: Fraction | None = None
    """Tick to which presentation times are rounded. None: 1 / fps. Give the source's own to carry a
    variable rate over.
    """
    codec: str | None = None
    """FFmpeg encoder. None: by suffix (mp4, mkv, mov: libx264; webm: libvpx-vp9; gif: gif)."""
    crf: float | None = None
    """Constant quality, on the scale of the encoder; lower is better and larger. None: visually
    near lossless.
    """
    pixel_format: str | None = None
    """None: yuv420p, or yuv444p where the size is odd and the encoder takes only even sizes, and
    for pictures below 8 pixels.
    """
    color_range: ColorRange | None = None
    """None: "tv"."""
    color_space: str | None = None
    """Matrix to encode with and to tag. None: "bt709"."""
    color_primaries: str | None = None
    """Tag only. None: those that go with the matrix."""
    color_transfer: str | None = None
    """Tag only. None: that which goes with the matrix."""
    audio_from: Path | None = None
    """A media file whose audio streams are copied, packet by packet, without re-encoding."""
    audio_end: Fraction | None = None
    """Leave out audio packets that begin at or after this time in seconds. None: copy all."""
    encoder_options: tuple[tuple[str, str], ...] = ()
    """Further options of the encoder, such as (("preset", "slow"),)."""
    threads: int = 4
    """Encoder threads. A fixed number and not the number of cores, because the encoded bytes depend
    on it.
    """

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise MediaError(
                f"cannot write a video of {self.width}x{self.height} pixels; give a width and height of at"
                " least 1"
            )
        if self.fps <= 0 or (self.time_base is not None and self.time_base <= 0):
            raise MediaError(
                f"cannot write a video at {self.fps} fps with a time base of {self.time_base}; both must be"
                " above 0"
            )
        if self.threads < 1:
            raise MediaError(f"threads is {self.threads}; give at least 1")

    @classmethod
    def like(cls, source: VideoInfo, **changes: Any) -> OutputVideo:
        """Size, rate, time base and colour tags of `source`, with `changes` to any field of
        `OutputVideo`.
        """
        unknown = set(changes) - {field.name for field in fields(cls)}
        if unknown:
            raise MediaError(
                f"unknown output setting {', '.join(sorted(unknown))}; see the fields of OutputVideo"
            )
        is_rgb = source.color_space == "rgb"
        carried = cls(
            width=source.width,
            height=source.height,
            fps=source.fps,
            time_base=source.time_base,
            color_range=None if is_rgb else source.color_range,
            color_space=None if is_rgb else source.color_space,
            color_primaries=source.color_primaries,
            color_transfer=source.color_transfer,
        )
        return replace(carried, **changes)
