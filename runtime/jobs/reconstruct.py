"""Video to its reconstruction, in one pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from wfvae.runtime.backends.base import Array
from wfvae.runtime.jobs.job import DEPTH, check_distinct, timed_encoder
from wfvae.runtime.jobs.report import Progress, Report, TimedSession, no_progress
from wfvae.runtime.media.video_info import OutputVideo, RawVideo
from wfvae.runtime.media.video_reader import VideoReader, open_video
from wfvae.runtime.media.video_writer import PIPE, RAW, VideoWriter, is_image_folder, open_video_writer
from wfvae.runtime.prefetch import BackgroundSink, prefetch

if TYPE_CHECKING:
    from wfvae.runtime.bundle import Bundle


def reconstruct_video(
    bundle: Bundle,
    video: str | Path,
    out: str | Path,
    *,
    chunk: int | None = None,
    overwrite: bool = True,
    raw: RawVideo | None = None,
    fps: Fraction | None = None,
    keep_damaged: bool = False,
    audio: bool = True,
    output: dict[str, Any] | None = None,
    container: str | None = None,
    progress: Progress = no_progress,
    observe: Callable[[Array, Array], None] | None = None,
) -> Report:
    """Encodes and decodes a video in one pass, in constant memory, with its audio, timestamps and
    colour tags.

    Args:
        audio: copy the audio of a file, unless the output is of a kind that holds none (GIF,
            images, raw frames).
        observe: called with each piece of the video and of its reconstruction, both (T, H, W, 3)
            uint8.

    The other arguments are those of `encode_video` and `decode_video`.
    """
    check_distinct(video, out)
    with ExitStack() as stack:
        reader = stack.enter_context(open_video(video, raw=raw, fps=fps, keep_damaged=keep_damaged))
        info = reader.info
        encoder_chunk = chunk or bundle.default_chunk("encoder", height=info.height, width=info.width)
        encoder = stack.enter_context(timed_encoder(bundle, info, encoder_chunk))
        decoder = stack.enter_context(bundle.decoder(height=info.height, width=info.width, chunk=chunk))
        decoder.session = TimedSession(decoder.session)
        copied = audio and info.has_audio and info.kind == "file" and _holds_audio(out, container)
        given = {key: value for key, value in (output or {}).items() if value is not None}
        changes = {"audio_from": Path(video) if copied else None, **given}
        target = OutputVideo.like(info, **changes)
        writer: VideoWriter = stack.enter_context(
            open_video_writer(out, target, overwrite=overwrite, container=container)
        )
        began = time.perf_counter()
        sink: BackgroundSink[tuple[Array, list[Fraction]]] = BackgroundSink(
            lambda item: writer.write(*item), DEPTH
        )
        stack.enter_context(sink)
        source = stack.enter_context(prefetch(_batches(reader, bundle.ratio * encoder_chunk), DEPTH))
        channels = int(decoder.session.graph.inputs[0].shape[2])
        waiting = _Waiting()
        for frames, times in source:
            waiting.add(frames, times)
            part = decoder.push(encoder.push(frames)[:, :channels])
            _pass_on(part, waiting, sink, observe)
            progress(decoder.feed.frames_given, info.frames)
        # Queued, not decoded: the last latent may hold more frames than the video has, which only
        # `finish` is told.
        decoder.feed.push(encoder.finish()[:, :channels])
        _pass_on(decoder.finish(encoder.feed.frames_seen), waiting, sink, observe)
        sink.close()
        frames_seen = encoder.feed.frames_seen
    progress(frames_seen, frames_seen)
    sessions = (cast("TimedSession", stream.session) for stream in (encoder, decoder))
    return Report(
        source=str(video),
        destination=str(out),
        frames=frames_seen,
        latents=encoder.feed.latents_given,
        height=info.height,
        width=info.width,
        fps=float(info.fps),
        seconds=time.perf_counter() - began,
        engine_seconds=sum(session.seconds for session in sessions),
        resumed_at=0,
        variable_frame_rate=info.variable_frame_rate,
        rotation=info.rotation,
        audio=("copied" if copied else "left out") if info.has_audio else None,
    )


def _holds_audio(out: str | Path, container: str | None) -> bool:
    """Whether files of this kind may have audio at all."""
    if str(out) == PIPE:
        return container not in (RAW, "gif")
    return not is_image_folder(out) and Path(out).suffix.lower() != ".gif"


class _Waiting:
    """Input frames and their times, until their reconstruction is ready: a bounded number, the
    stream's delay.
    """

    def __init__(self) -> None:
        self.frames: list[Array] = []
        self.times: list[Fraction] = []

    def add(self, frames: Array, times: list[Fraction]) -> None:
        self.frames += list(frames)
        self.times += times

    def take(self, count: int) -> tuple[Array, list[Fraction]]:
        frames, self.frames = np.stack(self.frames[:count]), self.frames[count:]
        times, self.times = self.times[:count], self.times[count:]
        return frames, times


def _pass_on(
    part: Array, waiting: _Waiting, sink: BackgroundSink[Any], observe: Callable[[Array, Array], None] | None
) -> None:
    if len(part):
        frames, times = waiting.take(len(part))
        sink.put((part, times))
        if observe is not None:
            observe(frames, part)


def _batches(reader: VideoReader, count: int) -> Iterator[tuple[Array, list[Fraction]]]:
    frames: list[Array] = []
    times: list[Fraction] = []
    for frame, when in reader.frames_with_times():
        frames.append(frame)
        times.append(when)
        if len(frames) == count:
            yield np.stack(frames), times
            frames, times = [], []
    if frames:
        yield np.stack(frames), times
