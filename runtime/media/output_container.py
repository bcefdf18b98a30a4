"""A container opened for writing: one video stream, and the audio that is copied beside it."""

from __future__ import annotations

import weakref
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
from av.codec.context import Flags as CodecFlags
from av.container.core import Flags as ContainerFlags

from wfvae.errors import MediaError
from wfvae.files import commit, discard, remove_leftovers, temporary_name
from wfvae.runtime.media.audio_copy import AudioCopy
from wfvae.runtime.media.color import PRIMARIES, RANGES, SPACES, TRANSFERS, number_of
from wfvae.runtime.media.encoder_plan import EncoderPlan
from wfvae.runtime.media.encoding import Clock, GIFEncoder, StreamEncoder
from wfvae.runtime.media.failures import Failure
from wfvae.runtime.media.video_info import OutputVideo
from wfvae.video.stored_pixels import RGBArray

MOVFLAGS_OF_FILE = "faststart"
MOVFLAGS_OF_PIPE = "frag_keyframe+empty_moov+default_base_moof"


class OutputContainer:
    """Writes the header on construction, so that a codec or audio that does not fit fails there.

    Equal input gives equal bytes: the file holds no random ids, library versions or times of day.
    """

    def __init__(self, target: Any, muxer: str, video: OutputVideo, plan: EncoderPlan, movflags: str) -> None:
        self._tick = plan.time_base
        self._clock = Clock(video.fps, self._tick)
        self._audio: AudioCopy | None = None
        self._container: Any = None
        try:
            self._container = _open(target, muxer, movflags)
            self._container.flags |= ContainerFlags.bitexact.value
            self._stream = _add_video_stream(self._container, video, plan)
            if video.audio_from is not None:
                self._audio = AudioCopy(video.audio_from, self._container)
            self._container.start_encoding()
            encoder = GIFEncoder if plan.codec == "gif" else StreamEncoder
            self._encoder = encoder(self._container, self._stream, video, plan)
        except BaseException:
            self.abort()
            raise

    @property
    def reorder_depth(self) -> int:
        """How many frames the encoder may decode before it shows the first."""
        depth: int = self._stream.codec_context.reorder_depth
        return max(0, depth)

    def write(self, frame: RGBArray, time: Fraction | None = None) -> None:
        """Encodes one frame (H, W, 3), shown at `time` in seconds or 1 / fps after the previous."""
        self.encode(frame, self._clock.advance(time))

    def encode(self, frame: RGBArray, tick: int) -> None:
        """Encodes one frame, shown at `tick`, and copies the audio before it."""
        self._encoder.encode(frame, tick)
        self._copy_audio(tick * self._tick)

    def mux(self, packet: Any) -> None:
        """Muxes a packet that was encoded elsewhere with the same plan, and the audio before it."""
        packet.stream = self._stream
        self._container.mux_one(packet)
        self._copy_audio(packet.dts * self._tick)

    def finish(self) -> None:
        """Encodes the frames that are still held, and closes the container."""
        self._encoder.flush()
        self.close()

    def close(self) -> None:
        """Muxes the rest of the audio and closes the container."""
        self._copy_audio(None)
        if self._audio is not None:
            self._audio.close()
        self._container.close()

    def abort(self) -> None:
        """Closes the container in any state; the file is about to be removed."""
        if self._audio is not None:
            self._audio.close()
        if self._container is not None:
            with suppress(*Failure):  # the failure that led here is the one to report
                self._container.close()

    def _copy_audio(self, until: Fraction | None) -> None:
        if self._audio is not None:
            self._audio.copy(until)


class OutputFile(OutputContainer):
    """A container file that appears at `path` only when it is complete."""

    def __init__(self, path: Path, muxer: str, video: OutputVideo, plan: EncoderPlan) -> None:
        self._path, self._partial = path, temporary_name(path)
        remove_leftovers(path)
        # An interrupt between here and the caller's `with` block must not leave the file behind.
        self._discard = weakref.finalize(self, discard, self._partial)
        super().__init__(f"file:{self._partial}", muxer, video, plan, MOVFLAGS_OF_FILE)

    def close(self) -> None:
        super().close()
        commit(self._partial, self._path)
        self._discard.detach()

    def abort(self) -> None:
        super().abort()
        self._discard()


class _WriteOnly:
    """A pipe without the `seek` and `close` that a file has, which FFmpeg must not call."""

    def __init__(self, pipe: BinaryIO) -> None:
        self.write = pipe.write


class OutputPipe(OutputContainer):
    """A container that can be read while it is written, into a pipe."""

    def __init__(self, pipe: BinaryIO, muxer: str, video: OutputVideo, plan: EncoderPlan) -> None:
        self._pipe = pipe
        super().__init__(_WriteOnly(pipe), muxer, video, plan, MOVFLAGS_OF_PIPE)

    def close(self) -> None:
        super().close()
        self._pipe.flush()


def _open(target: Any, muxer: str, movflags: str) -> Any:
    options = {"movflags": movflags} if muxer in ("mp4", "mov") else {}
    try:
        return av.open(target, "w", format=muxer, container_options=options)
    except ValueError as error:
        raise MediaError(
            f"this FFmpeg has no container format '{muxer}'; try matroska, mp4, webm or mpegts"
        ) from error


def _add_video_stream(container: Any, video: OutputVideo, plan: EncoderPlan) -> Any:
    """Adds a stream that is set up and tagged for `plan`; its encoder is not opened."""
    settings = {"rate": video.fps, "options": dict(plan.options), "time_base": plan.time_base}
    try:
        stream = container.add_stream(plan.codec, **settings)
    except ValueError as error:
        raise MediaError(
            f"a {container.format.name} file cannot hold {plan.codec} video; choose another codec or ending"
        ) from error
    stream.width, stream.height, stream.pix_fmt = video.width, video.height, plan.pixel_format
    context = stream.codec_context
    context.time_base = plan.time_base
    context.thread_count = video.threads
    context.flags |= CodecFlags.bitexact
    tags = {
        "colorspace": number_of(SPACES, plan.color_space, "colour matrix"),
        "color_range": number_of(RANGES, plan.color_range, "colour range"),
        "color_primaries": number_of(PRIMARIES, plan.color_primaries, "colour primaries"),
        "color_trc": number_of(TRANSFERS, plan.color_transfer, "transfer characteristic"),
    }
    if plan.codec == "gif":
        return stream
    if av.VideoFormat(plan.pixel_format).is_rgb:
        tags |= {"colorspace": 0, "color_range": 2}
    for name, number in tags.items():
        setattr(context, name, number)
    return stream
