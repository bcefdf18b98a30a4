"""What is known about a video before it is read, and what is wanted of one that is written."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Literal

from wfvae.errors import MediaError
from wfvae.spec.latents import ASPECT_TERM_AT_MOST

ColorRange = Literal["tv", "pc"]
ChromaSiting = Literal["left", "center"]
"""Where a chroma sample lies among its pixels: at the left edge, as H.264, HEVC and MPEG-2 imply
it, or in the middle, as in JPEG."""
FieldOrder = Literal["top", "bottom"]
VideoPath = str | Path | BinaryIO
SourceKind = Literal["file", "pipe", "images", "raw"]


@dataclass(frozen=True)
class RawVideo:
    """The layout of headerless RGB frames: 3 bytes per pixel, row by row, no padding."""

    width: int
    height: int
    fps: Fraction = Fraction(24)

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1 or self.fps <= 0:
            problem = f"raw video of {self.width}x{self.height} at {self.fps} fps was given"
            raise MediaError(f"{problem}; expected sizes of at least 1 and a rate above 0")

    @property
    def frame_bytes(self) -> int:
        return self.width * self.height * 3


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """A video source, as it presents itself after its first frame was decoded."""

    width: int
    height: int
    """Size in pixels of the arrays that are read, after rotation."""
    fps: Fraction
    """Average frame rate that the container states, or the best guess."""
    time_base: Fraction | None = None
    """Tick of the source's timestamps in seconds; None without timestamps (images, raw)."""
    frames: int | None = None
    """Frames that the container *states*, None if none. Only reading gives the true count."""
    pixel_format: str
    """FFmpeg's name of the stored pixel format, such as "yuv420p"."""
    color_range: ColorRange | None = None
    """"tv" (limited) or "pc" (full) as stored; None if the file does not state it."""
    color_space: str | None = None
    """Matrix as stored ("bt709", "smpte170m", "rgb", ...); None if the file does not state it."""
    color_primaries: str | None = None
    color_transfer: str | None = None
    rotation: int = 0
    """Clockwise degrees (0, 90, 180, 270) by which frames are turned; mirroring is undone too."""
    variable_frame_rate: bool = False
    """True if index or rates show unequal frame times. False is no guarantee of equal ones."""
    has_audio: bool = False
    kind: SourceKind
    sample_aspect_ratio: Fraction | None = None
    """Width of a pixel over its height, if stated and not 1. Frames are not rescaled."""
    mastering_display: str | None = None
    content_light: str | None = None
    """HDR10 metadata, as `wfvae.runtime.media.hdr` writes them; None if the file states none."""
    field_order: FieldOrder | None = None
    """The field shown first, if the video is interlaced: rows of two moments in each frame."""
    start: Fraction = Fraction(0)
    """Seconds from the start of the file's earliest stream to the first frame."""
    video_stream: int | None = None
    """Index of the stream that is read, None without a container."""
    video_streams: tuple[int, ...] = ()
    """Indices of all video streams of the container, without cover art."""


@dataclass(frozen=True)
class OutputVideo:
    """A video to be written. All but size and rate have defaults that suit the destination."""

    width: int
    height: int
    fps: Fraction
    """Nominal rate; frames written without times are spaced by 1 / fps."""
    time_base: Fraction | None = None
    """Tick to which times are rounded, 1 / fps if None; the source's keeps a variable rate."""
    codec: str | None = None
    """FFmpeg encoder. None: by suffix (mp4, mkv, mov: libx264; webm: libvpx-vp9; gif: gif)."""
    crf: float | None = None
    """Constant quality on the encoder's scale, lower is better. None: visually near lossless."""
    pixel_format: str | None = None
    """None: yuv420p, or yuv444p for odd sizes that the encoder refuses and for sides below 8."""
    color_range: ColorRange | None = None
    """None: "tv"."""
    color_space: str | None = None
    """Matrix to encode with and to tag. None: "bt709"."""
    color_primaries: str | None = None
    color_transfer: str | None = None
    """Tags only. None: those that go with the matrix."""
    mastering_display: str | None = None
    content_light: str | None = None
    """HDR10 metadata, as `wfvae.runtime.media.hdr` writes them. Kept by x264, x265 and SVT-AV1."""
    sample_aspect_ratio: Fraction | None = None
    """Width of a pixel over its height; None: 1."""
    start: Fraction = Fraction(0)
    """Time of the first frame in seconds, where frames are written without times."""
    audio_from: Path | None = None
    """A media file whose audio streams are copied, packet by packet, without re-encoding."""
    encoder_options: tuple[tuple[str, str], ...] = ()
    """Further options of the encoder, such as (("preset", "slow"),)."""
    threads: int = 4
    """Encoder threads: a fixed number, because the encoded bytes depend on it."""

    def __post_init__(self) -> None:
        if min(self.width, self.height, self.fps, self.time_base or 1, self.threads) <= 0:
            problem = f"cannot write a video of {self.width}x{self.height} pixels at {self.fps} fps"
            raise MediaError(f"{problem}; give a size of at least 1, and rate, time base and threads above 0")
        aspect = self.sample_aspect_ratio or Fraction(1)
        if not 0 < aspect.numerator <= ASPECT_TERM_AT_MOST >= aspect.denominator:
            problem = f"cannot write a video with a pixel aspect of {aspect}"
            raise MediaError(f"{problem}; give a ratio of integers from 1 to {ASPECT_TERM_AT_MOST}")

    @classmethod
    def like(cls, source: VideoInfo, **changes: Any) -> OutputVideo:
        """Takes size, rate, time base, pixel aspect, colour tags and HDR10 metadata from `source`,
        other fields from `changes`.
        """
        same = ["width", "height", "fps", "time_base", "sample_aspect_ratio"]
        same += ["color_primaries", "color_transfer", "mastering_display", "content_light"]
        if source.color_space != "rgb":
            same += ["color_range", "color_space"]
        return cls(**{name: getattr(source, name) for name in same} | changes)
