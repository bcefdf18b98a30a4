"""Mapping an `OutputVideo` to an encoder of this FFmpeg and its settings."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.format import ContainerFormat, Flags

from wfvae.errors import MediaError
from wfvae.runtime.media.color import DEFAULT_SPACE, SPACE_OF_PRIMARIES, SWS_MATRIX, TAGS_OF_SPACE
from wfvae.runtime.media.failures import reason
from wfvae.runtime.media.hdr import hdr_parameters
from wfvae.runtime.media.video_info import ChromaSiting, ColorRange, OutputVideo

MUXERS = {f".{name}": name for name in ("mp4", "mov", "webm", "gif", "avi", "nut")}
MUXERS |= {".m4v": "mp4", ".mkv": "matroska", ".ts": "mpegts"}
TS_FORMATS = frozenset({"mpeg1video", "mpeg2video", "mpeg4", "h264", "hevc", "vvc", "dirac", "vc1", "cavs"})
HARDWARE = ("nvenc", "qsv", "vaapi", "amf", "videotoolbox", "v4l2m2m", "_mf", "vulkan", "mediacodec", "omx")
"""Parts of the names of encoders that need a device."""
FRAME_TICKS = frozenset({"mpeg1video", "mpeg2video"})
"""Encoders whose tick is that of the frame rate."""
GENERAL_ENCODERS = ("libx264", "libopenh264", "mpeg4")
WEBM_ENCODERS = ("libvpx-vp9", "libsvtav1", "libvpx")
ENCODERS_OF_MUXER = {"gif": ("gif",), "webm": WEBM_ENCODERS}
GIF_TICK, GIF_LEAST_TICKS = Fraction(1, 100), 2
"""Players show frames of one tick ten times as long."""
LARGEST_TICK_TERMS = {"mpeg4": 65535}
"""The denominator of a tick that an encoder's format can store."""
START_TICK = Fraction(1, 1000)
"""The coarsest tick of a video that does not start on a multiple of 1 / fps."""

PADS_ODD_SIZES = frozenset({"libvpx-vp9", "libvpx", "ffv1", "gif"})
"""Encoders that pad on their own and store the true size; the others subsample even sizes only."""
TINY = 8
"""Below it, chroma is not subsampled: swscale takes the chroma of the lower of two rows only."""
PIXEL_FORMATS = ("yuv420p", "yuvj420p", "nv12", "yuv422p", "yuv422p10le", "yuv444p", "yuv444p10le")
"""In order of preference, since most players show the first only."""
FULL_RANGE_ENCODERS = frozenset({"mjpeg", "ljpeg"})
"""Encoders of formats that define full range."""
DEFAULT_CRF = {"libx264": 16, "libx264rgb": 16, "libx265": 18, "libvpx-vp9": 22, "libvpx": 8, "libsvtav1": 20}
SPEED: Mapping[str, Mapping[str, str]] = {
    "libvpx-vp9": {"deadline": "good", "cpu-used": "4", "row-mt": "1"},
    "libvpx": {"deadline": "good", "cpu-used": "4"},
    "libsvtav1": {"preset": "8"},
}
MPEG4_QUALITY = {"flags": "+qscale", "global_quality": str(2 * 118)}
SQUARE_PIXELS = frozenset({"libvpx-vp9", "libvpx", "libsvtav1", "ffv1"})
"""Encoders of formats without a pixel aspect, which FFmpeg's wrapper cannot put into containers."""
CENTRE_SITED = frozenset({"mjpeg", "libwebp", "libwebp_anim", "mpeg1video", "flv", "h263"})
"""Encoders of formats in which chroma lies in the centre of its pixels, as in JPEG."""
X264_REPRODUCIBLE = "asm=avx2"
"""x264's AVX-512 code for macroblock trees reads memory that it did not write if a row is not a
multiple of 8 macroblocks, so that equal input gave up to six different files in 40 runs at 64x48.
With AVX2 it gives one, the same as without any assembly."""


@dataclass(frozen=True)
class EncoderPlan:
    """An `OutputVideo` with every default filled in."""

    codec: str
    pixel_format: str
    time_base: Fraction
    least_ticks: int
    """From one frame to the next."""
    resamples: bool
    """Whether frames that come sooner are left out, not refused."""
    color_range: ColorRange
    color_space: str
    color_primaries: str
    color_transfer: str
    chroma_siting: ChromaSiting
    sample_aspect_ratio: Fraction | None
    global_header: bool
    """Whether the container holds the codec's parameters; else they precede each key frame."""
    options: tuple[tuple[str, str], ...]
    left_out: tuple[str, ...]
    """What of the video the output cannot hold, a phrase each."""

    @classmethod
    def of(cls, video: OutputVideo, muxer: str) -> EncoderPlan:
        """Raises `MediaError` for settings that contradict each other or this FFmpeg.

        The names of colour tags are checked when an `OutputContainer` sets them.
        """
        codec = _encoder(muxer, video.codec)
        if not can_hold(muxer, codec):
            raise not_held(muxer, codec)
        tick = _tick(video, codec, muxer)
        space = video.color_space or SPACE_OF_PRIMARIES.get(video.color_primaries or "", DEFAULT_SPACE)
        if space not in SWS_MATRIX:
            problem = f"cannot encode with the colour matrix '{space}'"
            raise MediaError(f"{problem}; choose one of {', '.join(SWS_MATRIX)}")
        primaries, transfer = TAGS_OF_SPACE[space]
        return cls(
            codec=codec,
            pixel_format=_pixel_format(video, codec),
            time_base=tick,
            least_ticks=GIF_LEAST_TICKS if codec == "gif" else 1,
            resamples=codec == "gif" or (video.time_base is not None and tick > video.time_base),
            color_range="pc" if codec in FULL_RANGE_ENCODERS else video.color_range or "tv",
            color_space=space,
            color_primaries=video.color_primaries or primaries,
            color_transfer=video.color_transfer or transfer,
            chroma_siting="center" if codec in CENTRE_SITED else "left",
            sample_aspect_ratio=video.sample_aspect_ratio,
            global_header=has_global_header(muxer),
            options=tuple(_options(video, codec, muxer).items()),
            left_out=tuple(_left_out(video, codec)),
        )

    def refused(self, video: OutputVideo, error: BaseException) -> MediaError:
        """Returns the error for a video that the encoder does not take."""
        if any(name in self.codec for name in HARDWARE):
            problem = f"the encoder {self.codec} does not start here ({reason(error)})"
            return MediaError(f"{problem}: it needs a device or driver; choose another, such as libx264")
        wanted = f"{video.width}x{video.height} {self.pixel_format} at {video.fps} frames/s"
        problem = f"the encoder {self.codec} does not take {wanted} ({reason(error)})"
        return MediaError(f"{problem}; choose another, such as libx264, or other settings")


def muxer_for(path: Path) -> str:
    """Returns FFmpeg's name of the container for `path`."""
    muxer = MUXERS.get(path.suffix.lower())
    if muxer is None:
        problem = f"cannot tell the video format of '{path}' from its ending '{path.suffix}'"
        raise MediaError(f"{problem}; use one of {', '.join(MUXERS)}, or a directory for PNG files")
    return muxer


def has_global_header(muxer: str) -> bool:
    """Whether a container format holds codec parameters in its header."""
    try:
        flags = ContainerFormat(muxer, "w").flags
    except ValueError as error:
        problem = f"this FFmpeg has no container format '{muxer}'"
        raise MediaError(f"{problem}; try matroska, mp4, webm or mpegts") from error
    global_header: Any = Flags.global_header.value
    return bool(flags & global_header)


def can_hold(muxer: str, codec: str) -> bool:
    """Whether a container format has a place for what an encoder writes."""
    if muxer == "mpegts":  # FFmpeg stores any other as data that nothing can read
        return av.Codec(codec, "w").canonical_name in TS_FORMATS
    with av.open(io.BytesIO(), "w", format=muxer) as container:
        try:
            container.add_stream(codec, rate=25)
        except ValueError:
            return False
    return True


def not_held(muxer: str, codec: str, what: str = "") -> MediaError:
    """Returns the error for a container format that cannot hold what an encoder writes."""
    others = [end for end, other in MUXERS.items() if other != muxer and can_hold(other, codec)]
    problem = f"{muxer} files cannot hold {codec} video{what}"
    instead = f", or a file ending in {', '.join(others)}" if others else ""
    return MediaError(f"{problem}; choose another codec{instead}")


def _encoder(muxer: str, wanted: str | None) -> str:
    """Returns the encoder `wanted`, or the first of the muxer's usual ones that this FFmpeg has."""
    candidates = (wanted,) if wanted else ENCODERS_OF_MUXER.get(muxer, GENERAL_ENCODERS)
    for name in candidates:
        if _can_encode(name):
            return name
    known = (*GENERAL_ENCODERS, *WEBM_ENCODERS, "libx265", "ffv1", "gif")
    problem = f"this FFmpeg has no video encoder {' or '.join(candidates)}"
    raise MediaError(f"{problem}; choose one of {', '.join(filter(_can_encode, known))}")


def _can_encode(name: str) -> bool:
    try:
        return av.Codec(name, "w").type == "video"
    except (av.FFmpegError, ValueError):
        return False


def _tick(video: OutputVideo, codec: str, muxer: str) -> Fraction:
    """Returns the tick of the output: as asked for, or the nearest that the output can hold."""
    if codec == "gif":
        return GIF_TICK
    step = 1 / video.fps
    if muxer == "avi" or codec in FRAME_TICKS:
        return step  # AVI stores an empty frame for each tick without one
    tick = video.time_base or step
    if video.time_base is None and (video.start / step).denominator > 1:
        tick = step / math.ceil(step / START_TICK)
    return tick * math.ceil(Fraction(tick.denominator, LARGEST_TICK_TERMS.get(codec, tick.denominator)))


def _pixel_format(video: OutputVideo, codec: str) -> str:
    if codec == "gif":
        return "pal8"
    if video.pixel_format is not None:
        return video.pixel_format
    names = [offer.name for offer in av.Codec(codec, "w").video_formats or []]
    is_odd = codec not in PADS_ODD_SIZES and (video.width % 2 == 1 or video.height % 2 == 1)
    full_chroma = is_odd or min(video.width, video.height) < TINY
    preferred = ("yuv444p", "yuv444p10le", *PIXEL_FORMATS) if full_chroma else PIXEL_FORMATS
    return next((name for name in preferred if not names or name in names), names[0] if names else "yuv420p")


def _options(video: OutputVideo, codec: str, muxer: str) -> dict[str, str]:
    options = dict(SPEED.get(codec, {}))
    if codec in DEFAULT_CRF:
        options["crf"] = f"{DEFAULT_CRF[codec] if video.crf is None else video.crf:g}"
    elif video.crf is not None:
        problem = f"encoder {codec} has no constant-quality setting"
        raise MediaError(f"{problem}; leave crf out, or use one of {', '.join(DEFAULT_CRF)}")
    if codec == "mpeg4":
        options |= MPEG4_QUALITY
    if muxer == "avi":
        options["bf"] = "0"  # AVI has no presentation times: frames are shown as stored
    options |= dict(video.encoder_options)
    parameters = hdr_parameters(codec, video.mastering_display, video.content_light)
    if codec.startswith("libx264") and _has_avx512():
        parameters.setdefault("x264-params", []).insert(0, X264_REPRODUCIBLE)
    if codec == "libx265":
        parameters.setdefault("x265-params", []).append("log-level=error")  # else it reports on stderr
    for name, values in parameters.items():
        options[name] = ":".join([*values, *filter(None, [options.get(name)])])
    return options


def _left_out(video: OutputVideo, codec: str) -> Iterator[str]:
    """Yields what of `video` the encoder's format cannot store, a phrase each."""
    if video.sample_aspect_ratio not in (None, 1) and codec in SQUARE_PIXELS:
        yield f"the pixel aspect of {_ratio(video.sample_aspect_ratio)} is lost: {codec} stores none"
    hdr = video.mastering_display or video.content_light
    if hdr and not hdr_parameters(codec, video.mastering_display, video.content_light):
        yield f"HDR10 mastering data are lost: {codec} stores none, --codec libx264 and libx265 do"


def _ratio(value: Fraction | None) -> str:
    return "1:1" if value is None else f"{value.numerator}:{value.denominator}"


def _has_avx512() -> bool:
    found = np.show_config(mode="dicts").get("SIMD Extensions", {}).get("found", [])
    return any(name.startswith("AVX512") or name == "X86_V4" for name in found)
