"""Choosing an encoder, and feeding one stream of a container."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.codec.context import Flags as CodecFlags
from av.container.core import Flags as ContainerFlags

from wfvae.errors import InputError, MediaError
from wfvae.runtime.media.video_color import (
    PRIMARIES,
    RANGES,
    SPACES,
    SWS_MATRIX,
    TAGS_OF_SPACE,
    TRANSFERS,
    YUVConverter,
    number_of,
)
from wfvae.runtime.media.video_info import ColorRange, OutputVideo
from wfvae.video.stored_pixels import RGBArray

GENERAL_ENCODERS = ("libx264", "libopenh264", "mpeg4")
WEBM_ENCODERS = ("libvpx-vp9", "libsvtav1", "libvpx")
MUXERS = {
    ".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm", ".gif": "gif",
    ".avi": "avi", ".ts": "mpegts", ".nut": "nut",
}  # fmt: skip
GIF_TICK = Fraction(1, 100)

# Sub-sampled chroma needs even sizes, except where the encoder pads on its own and stores the true
# size.
PADS_ODD_SIZES = frozenset({"libvpx-vp9", "libvpx", "ffv1", "gif"})
# Of two rows swscale takes the chroma of the lower one only; where every pixel counts, chroma is
# not sub-sampled.
TINY = 8
DEFAULT_CRF: Mapping[str, float] = {
    "libx264": 16,
    "libx264rgb": 16,
    "libx265": 18,
    "libvpx-vp9": 22,
    "libvpx": 8,
    "libsvtav1": 20,
}
SPEED: Mapping[str, Mapping[str, str]] = {
    "libvpx-vp9": {"deadline": "good", "cpu-used": "4", "row-mt": "1"},
    "libvpx": {"deadline": "good", "cpu-used": "4"},
    "libsvtav1": {"preset": "8"},
}
# x264's AVX-512 code for macroblock trees reads memory it did not write where a row is not a
# multiple of 8 macroblocks, so that equal input gave up to six different files in 40 runs at 64x48.
# With AVX2 it gives one, the same as without any assembly.
X264_REPRODUCIBLE = "asm=avx2"
MPEG4_QSCALE, QSCALE_UNIT = 2, 118


def muxer_for(path: Path, container: str | None) -> str:
    """FFmpeg's name of the container for `path`, or `container` if given; raises `MediaError` with
    the choices.
    """
    if container is not None:
        return container
    muxer = MUXERS.get(path.suffix.lower())
    if muxer is None:
        raise MediaError(
            f"cannot tell the video format of '{path}' from its ending '{path.suffix}'; "
            f"use one of {', '.join(MUXERS)}, or a directory for PNG files"
        )
    return muxer


def encoder_for(muxer: str, wanted: str | None) -> str:
    """The encoder to use: `wanted`, or the first of the muxer's usual ones that this FFmpeg has;
    raises `MediaError` with the choices.
    """
    usual: tuple[str, ...] = GENERAL_ENCODERS
    if muxer == "gif":
        usual = ("gif",)
    elif muxer == "webm":
        usual = WEBM_ENCODERS
    candidates = usual if wanted is None else (wanted,)
    for name in candidates:
        if _can_encode(name):
            return name
    available = [
        name for name in (*GENERAL_ENCODERS, *WEBM_ENCODERS, "libx265", "ffv1", "gif") if _can_encode(name)
    ]
    raise MediaError(
        f"this FFmpeg has no video encoder {' or '.join(candidates)}; choose one of {', '.join(available)}"
    )


def _can_encode(name: str) -> bool:
    try:
        return av.Codec(name, "w").type == "video"
    except (av.FFmpegError, ValueError):
        return False


def open_output(target: Any, muxer: str, options: dict[str, str]) -> Any:
    """A container opened for writing; raises `MediaError` if this FFmpeg has no such muxer."""
    try:
        return av.open(target, "w", format=muxer, container_options=options)
    except ValueError as error:
        raise MediaError(
            f"this FFmpeg has no container format '{muxer}'; try matroska, mp4, webm or mpegts"
        ) from error


@dataclass(frozen=True)
class EncoderPlan:
    """An `OutputVideo` with every default filled in."""

    codec: str
    pixel_format: str
    time_base: Fraction
    color_range: ColorRange
    color_space: str
    color_primaries: str
    color_transfer: str
    options: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, video: OutputVideo, muxer: str) -> EncoderPlan:
        """Raises `MediaError` for settings that contradict each other or that this FFmpeg does not
        know.
        """
        codec = encoder_for(muxer, video.codec)
        space = video.color_space or "bt709"
        if space not in SWS_MATRIX:
            raise MediaError(
                f"cannot encode with the colour matrix '{space}'; choose one of {', '.join(SWS_MATRIX)}"
            )
        if video.color_range not in (None, "tv", "pc"):
            raise MediaError(f"unknown colour range '{video.color_range}'; choose tv (limited) or pc (full)")
        primaries, transfer = TAGS_OF_SPACE[space]
        plan = cls(
            codec=codec,
            pixel_format=_pixel_format(video, codec),
            time_base=GIF_TICK if codec == "gif" else video.time_base or 1 / video.fps,
            color_range=video.color_range or "tv",
            color_space=space,
            color_primaries=video.color_primaries or primaries,
            color_transfer=video.color_transfer or transfer,
            options=tuple(_options(video, codec, muxer).items()),
        )
        number_of(PRIMARIES, plan.color_primaries, "colour primaries")
        number_of(TRANSFERS, plan.color_transfer, "transfer characteristic")
        return plan


def _pixel_format(video: OutputVideo, codec: str) -> str:
    odd = video.width % 2 == 1 or video.height % 2 == 1
    if codec == "gif":
        return "pal8"
    offered = av.Codec(codec, "w").video_formats or []
    names = [offer.name for offer in offered]
    if video.pixel_format is None:
        full_chroma = (odd and codec not in PADS_ODD_SIZES) or min(video.width, video.height) < TINY
        return "yuv444p" if full_chroma and (not names or "yuv444p" in names) else "yuv420p"
    if names and video.pixel_format not in names:
        raise MediaError(
            f"encoder {codec} does not take the pixel format '{video.pixel_format}'; choose one of"
            f" {', '.join(names)}"
        )
    chroma = av.VideoFormat(video.pixel_format)
    if odd and codec not in PADS_ODD_SIZES and (chroma.chroma_width(2) == 1 or chroma.chroma_height(2) == 1):
        raise MediaError(
            f"{codec} needs even sizes for {video.pixel_format}, got {video.width}x{video.height}; use"
            " yuv444p or leave it open"
        )
    return video.pixel_format


def _options(video: OutputVideo, codec: str, muxer: str) -> dict[str, str]:
    options = dict(SPEED.get(codec, {}))
    if codec in DEFAULT_CRF:
        options["crf"] = f"{DEFAULT_CRF[codec] if video.crf is None else video.crf:g}"
    elif video.crf is not None:
        raise MediaError(
            f"encoder {codec} has no constant-quality setting; leave crf out, or use one of"
            f" {', '.join(DEFAULT_CRF)}"
        )
    if codec == "mpeg4":
        options |= {"flags": "+qscale", "global_quality": str(MPEG4_QSCALE * QSCALE_UNIT)}
    if muxer == "avi":
        options["bf"] = "0"  # AVI has no presentation times: frames are shown in the order they are stored
    options |= dict(video.encoder_options)
    if codec.startswith("libx264") and _has_avx512():
        options["x264-params"] = ":".join(filter(None, (X264_REPRODUCIBLE, options.get("x264-params"))))
    return options


def _has_avx512() -> bool:
    extensions = np.show_config(mode="dicts")
    found = extensions.get("SIMD Extensions", {}).get("found", [])
    return any(name.startswith("AVX512") or name == "X86_V4" for name in found)


def add_video_stream(container: Any, video: OutputVideo, plan: EncoderPlan) -> Any:
    """A stream in `container`, set up and tagged for `plan`, its encoder not yet opened."""
    try:
        stream = container.add_stream(
            plan.codec, rate=video.fps, options=dict(plan.options), time_base=plan.time_base
        )
    except ValueError as error:
        raise MediaError(
            f"a {container.format.name} file cannot hold {plan.codec} video; choose another codec or file"
            " ending"
        ) from error
    stream.width, stream.height, stream.pix_fmt = video.width, video.height, plan.pixel_format
    context = stream.codec_context
    context.time_base = plan.time_base
    context.thread_count = video.threads
    # Without this an encoder may put its version or the time of day into the stream, and equal
    # input would not give equal bytes.
    context.flags |= CodecFlags.bitexact
    if plan.codec == "gif":
        return stream
    is_rgb = av.VideoFormat(plan.pixel_format).is_rgb
    context.colorspace = 0 if is_rgb else number_of(SPACES, plan.color_space, "colour matrix")
    context.color_range = (
        2 if is_rgb else next(number for number, name in RANGES.items() if name == plan.color_range)
    )
    context.color_primaries = number_of(PRIMARIES, plan.color_primaries, "colour primaries")
    context.color_trc = number_of(TRANSFERS, plan.color_transfer, "transfer characteristic")
    return stream


def make_reproducible(container: Any) -> None:
    """No random ids and no library versions in the file: equal input gives equal bytes."""
    container.flags |= ContainerFlags.bitexact.value


class Clock:
    """Presentation times of successive frames, on the output's tick."""

    def __init__(self, fps: Fraction, tick: Fraction) -> None:
        self._fps, self._tick = fps, tick
        self._next = Fraction(0)
        self.last: int | None = None
        self.count = 0

    def resume(self, count: int, last: int) -> None:
        """Go on after frame number `count` - 1, which was shown at tick `last`."""
        self.count, self.last = count, last
        self._next = (
            Fraction(count) / self._fps
            if last == self._on_grid(count - 1)
            else last * self._tick + 1 / self._fps
        )

    def advance(self, time: Fraction | None) -> int:
        """The tick of the next frame: `time` in seconds, or 1 / fps after the previous. Raises
        `MediaError` if it does not increase.
        """
        seconds = self._next if time is None else Fraction(time)
        tick = round(seconds / self._tick)
        if self.last is not None and tick <= self.last:
            raise MediaError(
                f"frame {self.count} at {float(seconds):.6f} s does not come after frame {self.count - 1} on"
                f" a tick of {self._tick} s; give strictly increasing times, and the source's own time_base"
                " if its frame rate varies"
            )
        self.last = tick
        self._next = seconds + 1 / self._fps
        self.count += 1
        return tick

    def _on_grid(self, index: int) -> int:
        return round(Fraction(index) / self._fps / self._tick)


class StreamEncoder:
    """Converts RGB frames, encodes them and muxes the packets. Holds only what the encoder looks
    ahead.
    """

    def __init__(self, container: Any, stream: Any, video: OutputVideo, plan: EncoderPlan) -> None:
        self._container, self._stream = container, stream
        self._tick = plan.time_base
        self._converter = YUVConverter(plan.pixel_format, plan.color_space, plan.color_range)
        self._duration = max(1, round(1 / video.fps / plan.time_base))

    def encode(self, frame: RGBArray, tick: int) -> None:
        """Encode one frame (H, W, 3), shown at `tick`."""
        picture = self._converter.convert(frame)
        picture.pts, picture.time_base = tick, self._tick
        self._mux(self._stream.encode(picture))

    def flush(self) -> None:
        """Encode what is still held back."""
        self._mux(self._stream.encode(None))

    def _mux(self, packets: Sequence[Any]) -> None:
        for packet in packets:
            packet.duration = (
                self._duration
            )  # the last one's makes the file's duration; the others follow from the times
            self._container.mux_one(packet)


def checked_frames(
    frames: npt.NDArray[np.uint8], times: Sequence[Fraction] | None, video: OutputVideo
) -> npt.NDArray[np.uint8]:
    """`frames` if they are uint8 (T, H, W, 3) of the video's size, with T times if any; raises
    `InputError` otherwise.
    """
    shape = (video.height, video.width, 3)
    if (
        not isinstance(frames, np.ndarray)
        or frames.dtype != np.uint8
        or frames.ndim != 4
        or frames.shape[1:] != shape
    ):
        got = f"{frames.dtype} {frames.shape}" if isinstance(frames, np.ndarray) else type(frames).__name__
        raise InputError(
            f"frames to write are {got}; expected uint8 (T, {video.height}, {video.width}, 3), RGB, 0..255"
        )
    if times is not None and len(times) != len(frames):
        raise InputError(
            f"{len(times)} times were given for {len(frames)} frames; give one time in seconds per frame, or"
            " none"
        )
    return frames
