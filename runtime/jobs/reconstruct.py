"""Video to its reconstruction, in one pass."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from wfvae.runtime.backends.base import Array
from wfvae.runtime.bundle import Bundle
from wfvae.runtime.jobs.checkpoints import DEPTH
from wfvae.runtime.jobs.report import Progress, Report, no_progress
from wfvae.runtime.jobs.sources import require_distinct
from wfvae.runtime.media.image_folder import is_image_folder
from wfvae.runtime.media.video_info import OutputVideo, RawVideo
from wfvae.runtime.media.video_reader import VideoReader, open_video
from wfvae.runtime.media.video_writer import PIPE, RAW, open_video_writer
from wfvae.runtime.prefetch import BackgroundSink, Prefetch
from wfvae.runtime.reconstruction import ReconstructionStream


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
    video_stream: int | None = None,
    deinterlace: bool = False,
    audio: bool = True,
    output: dict[str, Any] | None = None,
    container: str | None = None,
    progress: Progress = no_progress,
) -> Report:
    """Encodes and decodes a video in one pass, in constant memory, with its audio, timestamps,
    pixel aspect, colour tags and HDR10 metadata.

    Args:
        audio: copy the audio of a file, unless the output cannot hold any (GIF, images, raw
            frames).

    The other arguments and the errors are those of `encode_video` and `decode_video`.
    """
    require_distinct(video, out)
    with ExitStack() as stack:
        reader = stack.enter_context(
            open_video(
                video,
                raw=raw,
                fps=fps,
                keep_damaged=keep_damaged,
                video_stream=video_stream,
                deinterlace=deinterlace,
            )
        )
        info = reader.info
        stream = stack.enter_context(ReconstructionStream(bundle, info.height, info.width, chunk))
        copied = audio and info.has_audio and info.kind == "file" and _can_hold_audio(out, container)
        given = {key: value for key, value in (output or {}).items() if value is not None}
        target = OutputVideo.like(info, **{"audio_from": Path(video) if copied else None, **given})
        writer = stack.enter_context(open_video_writer(out, target, overwrite=overwrite, container=container))
        sink: BackgroundSink[tuple[Array, list[Fraction]]]
        sink = stack.enter_context(BackgroundSink(lambda item: writer.write(*item), DEPTH))
        times: list[Fraction] = []

        def pass_on(part: Array) -> None:
            if len(part):
                sink.put((part, times[: len(part)]))
                del times[: len(part)]

        began = time.perf_counter()
        batches = _batches(reader, bundle.ratio * stream.chunk)
        for frames, frame_times in stack.enter_context(Prefetch(batches, DEPTH)):
            times += frame_times
            pass_on(stream.push(frames)[1])
            progress(stream.decoder.frames_given, info.frames)
        pass_on(stream.finish()[1])
        sink.close()
    progress(stream.encoder.frames_seen, stream.encoder.frames_seen)
    return Report(
        source=str(video),
        destination=str(out),
        frames=stream.encoder.frames_seen,
        latents=stream.encoder.latents_given,
        height=info.height,
        width=info.width,
        fps=float(info.fps),
        seconds=time.perf_counter() - began,
        engine_seconds=stream.engine_seconds,
        resumed_at=0,
        variable_frame_rate=info.variable_frame_rate,
        rotation=info.rotation,
        audio=("copied" if copied else "left out") if info.has_audio else None,
        notices=reader.notices + writer.notices,
    )


def _can_hold_audio(out: str | Path, container: str | None) -> bool:
    if str(out) == PIPE:
        return container not in (RAW, "gif")
    return not is_image_folder(out) and Path(out).suffix.lower() != ".gif"


def _batches(reader: VideoReader, count: int) -> Iterator[tuple[Array, list[Fraction]]]:
    """Yields `count` frames at a time (fewer at the end), with their times."""
    source = iter(reader.frames_with_times())
    while batch := list(islice(source, count)):
        frames, times = zip(*batch, strict=True)
        yield np.stack(frames), list(times)
