"""A container opened for writing: one video stream, and the audio that is copied beside it."""

from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
from av.codec.context import Flags as CodecFlags
from av.container.core import Flags as ContainerFlags

from wfvae.errors import MediaError
from wfvae.files import Destination
from wfvae.runtime.media.color import PRIMARIES, RANGES, SPACES, TRANSFERS, number_of
from wfvae.runtime.media.container_input import discard_all_but, open_container, start_of
from wfvae.runtime.media.encoder_plan import EncoderPlan
from wfvae.runtime.media.encoding import Clock, GIFEncoder, StreamEncoder
from wfvae.runtime.media.failures import Failure, translated
from wfvae.runtime.media.timeline import audio_on_one_clock, clock_restarts
from wfvae.runtime.media.video_info import OutputVideo
from wfvae.video.stored_pixels import RGBArray
from wfvae.video.streams import default_stream, video_streams


class AudioCopy:
    """All audio streams of `source`, added to `container` and copied packet by packet.

    A codec that the container cannot hold is refused at once; nothing is transcoded. Times count
    from the start of the source's earliest stream, as a reader's frame times do.
    """

    def __init__(self, source: Path, container: Any) -> None:
        self._name, self._container = str(source), container
        self._input = open_container(source, str(source))
        try:
            self._origin = start_of(self._input)
            self._outputs = {stream.index: self._add(stream) for stream in self._input.streams.audio}
            self._packets = self._mended_packets()
            self._pending: Any = self._next()
        except BaseException:
            self._input.close()
            raise

    def copy(self, until: Fraction | None) -> None:
        """Muxes the packets that begin before `until` seconds, all if None."""
        while self._pending is not None and (until is None or self._begin(self._pending) < until):
            packet, self._pending = self._pending, self._next()
            self._retarget(packet)
            self._container.mux_one(packet)

    def close(self) -> None:
        self._input.close()

    def refused(self) -> MediaError | None:
        """Returns the error for a container whose header could not be written with this audio."""
        streams = self._input.streams.audio
        return self._not_held(streams[0]) if streams else None

    def _not_held(self, stream: Any) -> MediaError:
        codec = stream.codec_context.name if stream.codec_context else "unknown"
        kind = f"the {codec} audio of '{self._name}', as it is stored there"
        problem = f"a {self._container.format.name} file cannot hold {kind}"
        advice = "write to .mkv, which holds any, or leave the audio out (--no-audio)"
        return MediaError(f"{problem}; {advice}")

    def _add(self, stream: Any) -> Any:
        try:
            added = self._container.add_stream_from_template(stream, opaque=True)
        except Failure as error:
            raise self._not_held(stream) from error
        added.metadata.update(stream.metadata)  # language and title
        added.disposition = stream.disposition  # which one is the default
        return added

    def _mended_packets(self) -> Iterator[Any]:
        streams, restarts = list(self._input.streams.audio), clock_restarts(self._input)
        if not streams:
            return iter(())
        # Video is read beside it only where the clock may restart, and the two must stay in step.
        videos = [default_stream(videos)] if restarts and (videos := video_streams(self._input)) else []
        discard_all_but(self._input, streams + videos)
        packets = self._input.demux(*streams, *videos)
        return audio_on_one_clock(packets, restarts=restarts, with_video=bool(videos))

    def _next(self) -> Any:
        """Returns the next packet, None at the end."""
        with translated(f"reading the audio of '{self._name}'"):
            return next(self._packets, None)

    def _begin(self, packet: Any) -> Fraction:
        stamp = packet.pts if packet.pts is not None else packet.dts
        return (stamp or 0) * Fraction(packet.time_base) - self._origin

    def _retarget(self, packet: Any) -> None:
        """Makes a packet one of the output's, with times that count from the start."""
        offset = round(self._origin / Fraction(packet.time_base))
        packet.stream = self._outputs[packet.stream.index]
        if packet.pts is not None:
            packet.pts -= offset
        if packet.dts is not None:
            packet.dts -= offset


class OutputContainer:
    """Writes the header on construction, so that a codec or audio that does not fit fails there.

    Equal input gives equal bytes: the file holds no random ids, library versions or times of day.
    """

    def __init__(self, target: Any, muxer: str, video: OutputVideo, plan: EncoderPlan, movflags: str) -> None:
        self._tick = plan.time_base
        self._clock = Clock.of(video, plan)
        self._muxer, self._plan, self._written, self._resampled = muxer, plan, 0, 0
        self._audio: AudioCopy | None = None
        self._container: Any = None
        try:
            self._container = _open(target, muxer, movflags)
            self._container.flags |= ContainerFlags.bitexact.value
            self._stream = _add_video_stream(self._container, video, plan)
            if video.audio_from is not None:
                self._audio = AudioCopy(video.audio_from, self._container)
            try:
                self._stream.codec_context.open(strict=False)
            except Failure as error:
                raise plan.refused(video, error) from error
            self._write_header()
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

    @property
    def notices(self) -> list[str]:
        """What of the video is not in the output, a phrase each."""
        if not self._resampled:
            return list(self._plan.left_out)
        most = f"{float(1 / (self._plan.least_ticks * self._tick)):g} frames a second"
        left_out = f"{self._resampled} of {self._written} frames were left out"
        return [*self._plan.left_out, f"{left_out}: this {self._muxer} file holds {most} at most"]

    def write(self, frame: RGBArray, time: Fraction | None = None) -> None:
        """Encodes one frame (H, W, 3), shown at `time` in seconds or 1 / fps after the previous.

        Leaves it out if it comes too soon after the frame before for the output's format.
        """
        tick = self._clock.advance(time)
        self._written += 1
        if tick is None:
            self._resampled += 1
        else:
            self.encode(frame, tick)

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

    def _write_header(self) -> None:
        try:
            self._container.start_encoding()
        except (av.error.InvalidDataError, av.error.ArgumentError, av.error.PatchWelcomeError) as error:
            refused = None if self._audio is None else self._audio.refused()
            if refused is None:
                raise
            raise refused from error

    def _copy_audio(self, until: Fraction | None) -> None:
        if self._audio is not None:
            self._audio.copy(until)


class OutputFile(OutputContainer):
    """A container file that appears at its destination only when it is complete.

    It releases the destination when it is closed or aborted.
    """

    def __init__(self, destination: Destination, muxer: str, video: OutputVideo, plan: EncoderPlan) -> None:
        self._destination = destination
        try:
            self._work = destination.create_file()
            super().__init__(f"file:{self._work}", muxer, video, plan, movflags="faststart")
        except BaseException:
            destination.release()
            raise

    def close(self) -> None:
        super().close()
        self._destination.commit(self._work)
        self._destination.release()

    def abort(self) -> None:
        super().abort()
        self._destination.release()


class _WriteOnly:
    """A pipe without the `seek` and `close` that a file has, which FFmpeg must not call."""

    def __init__(self, pipe: BinaryIO) -> None:
        self.write = pipe.write


class OutputPipe(OutputContainer):
    """A container that can be read while it is written, into a pipe."""

    def __init__(self, pipe: BinaryIO, muxer: str, video: OutputVideo, plan: EncoderPlan) -> None:
        self._pipe = pipe
        movflags = "frag_keyframe+empty_moov+default_base_moof"
        super().__init__(_WriteOnly(pipe), muxer, video, plan, movflags)

    def close(self) -> None:
        super().close()
        self._pipe.flush()


def _open(target: Any, muxer: str, movflags: str) -> Any:
    options = {"movflags": movflags} if movflags and muxer in ("mp4", "mov") else {}
    return av.open(target, "w", format=muxer, container_options=options)


def _add_video_stream(container: Any, video: OutputVideo, plan: EncoderPlan) -> Any:
    """Adds a stream that is set up and tagged for `plan`; its encoder is not opened."""
    options = dict(plan.options) | {"chroma_sample_location": plan.chroma_siting}
    settings = {"rate": video.fps, "options": options, "time_base": plan.time_base}
    stream = container.add_stream(plan.codec, **settings)
    stream.width, stream.height, stream.pix_fmt = video.width, video.height, plan.pixel_format
    context = stream.codec_context
    context.time_base = plan.time_base
    if plan.sample_aspect_ratio is not None:
        context.sample_aspect_ratio = plan.sample_aspect_ratio
    context.thread_count = video.threads
    context.flags |= CodecFlags.bitexact
    # Segments are written to another container, for the one of the plan.
    context.flags &= ~CodecFlags.global_header
    context.flags |= CodecFlags.global_header if plan.global_header else 0
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
