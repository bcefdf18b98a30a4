"""Video to latents."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from wfvae.errors import LatentsError
from wfvae.files import discard_tree
from wfvae.runtime.backends.base import FloatArray
from wfvae.runtime.jobs.job import (
    CHECKPOINT_SECONDS,
    DEPTH,
    FROM_PIPE,
    fingerprint,
    forget,
    load_snapshot,
    timed_encoder,
)
from wfvae.runtime.jobs.report import Progress, Report, TimedSession, no_progress
from wfvae.runtime.latents.latent_files import (
    LatentsWriter,
    check_latents_destination,
    open_latents,
    open_latents_writer,
)
from wfvae.runtime.media.video_info import RawVideo, VideoInfo
from wfvae.runtime.media.video_reader import VideoReader, open_video
from wfvae.runtime.prefetch import BackgroundSink, prefetch
from wfvae.runtime.snapshot import Snapshot
from wfvae.runtime.stream import EncoderStream
from wfvae.spec.frames import padded_size
from wfvae.spec.latents import LatentsInfo

if TYPE_CHECKING:
    from wfvae.runtime.bundle import Bundle


def encode_video(
    bundle: Bundle,
    video: str | Path,
    latents: str | Path,
    *,
    chunk: int | None = None,
    resume: bool = False,
    overwrite: bool = True,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    raw: RawVideo | None = None,
    fps: Fraction | None = None,
    keep_damaged: bool = False,
    progress: Progress = no_progress,
) -> Report:
    """Encodes a video to a latents file (`.zarr`, `.safetensors` or `.npy`) in constant memory.

    Args:
        video: a file, a directory of images, or `-` for standard input.
        chunk: latents per step; the result does not depend on it.
        resume: go on where an interrupted run of the same job stopped; without one, begin.
        overwrite: replace an existing result.
        checkpoint_seconds: how much work an interruption may cost at most.
        raw: layout of a headerless pipe.
        fps: rate of a directory of images.
        keep_damaged: encode damaged frames as the decoder conceals them, instead of stopping there.

    Raises:
        MediaError, LatentsError, ResourceError, BundleError: in one line; latents that were
            finished stay readable.
    """
    latents = Path(latents)
    store = (
        latents if latents.suffix.lower() == ".zarr" else latents.with_name(latents.name + ".partial.zarr")
    )
    record = store.with_name(store.name + ".resume")
    check_latents_destination(latents, overwrite=overwrite or resume)
    with ExitStack() as stack:
        reader = stack.enter_context(open_video(video, raw=raw, fps=fps, keep_damaged=keep_damaged))
        info = reader.info
        chunk = chunk or bundle.default_chunk("encoder", height=info.height, width=info.width)
        stream = stack.enter_context(timed_encoder(bundle, info, chunk))
        snapshot = load_snapshot(record, fingerprint(video), resume and store.exists(), video)
        began = time.perf_counter()
        if snapshot is not None:
            stream.restore(snapshot)
        finished = None if snapshot is None else _finished(store)
        if finished is None:
            job = _Encoding(reader, stream, store, record, _latents_info(bundle, info), snapshot is not None)
            resumed_at = stream.feed.frames_seen
            frames, count = job.run(bundle.ratio * chunk, fingerprint(video), checkpoint_seconds, progress)
        else:
            # Killed between the last latent and the end of the job.
            frames, count = finished
            resumed_at = frames
        engine_seconds = cast("TimedSession", stream.session).seconds
    if store != latents:
        _convert(store, latents)
    forget(record)
    if store != latents:
        discard_tree(store)
    progress(frames, frames)
    return Report(
        source=str(video),
        destination=str(latents),
        frames=frames - resumed_at,
        latents=count,
        height=info.height,
        width=info.width,
        fps=float(info.fps),
        seconds=time.perf_counter() - began,
        engine_seconds=engine_seconds,
        resumed_at=resumed_at,
        variable_frame_rate=info.variable_frame_rate,
        rotation=info.rotation,
        audio="left out" if info.has_audio else None,
    )


@dataclass
class _Encoding:
    """An encode job into a store, from the beginning or from where a restored stream stands."""

    reader: VideoReader
    stream: EncoderStream
    store: Path
    record: Path
    info: LatentsInfo
    resumed: bool

    def run(self, step: int, note: str, checkpoint_seconds: float, progress: Progress) -> tuple[int, int]:
        """Encodes to the end. Returns the video's frames and latents."""
        feed = self.stream.feed
        with ExitStack() as stack:
            writer = stack.enter_context(open_latents_writer(self.store, self.info, resume=self.resumed))
            if self.resumed:
                self._go_on(writer)
            else:
                forget(self.record)

            def write(item: tuple[FloatArray, Snapshot | None]) -> None:
                part, saved = item
                if len(part):
                    writer.append(part)
                if saved is not None:
                    saved.write(self.record)

            sink = stack.enter_context(BackgroundSink(write, DEPTH))
            source = stack.enter_context(prefetch(self.reader.chunks(step), DEPTH))
            checkpoint = time.perf_counter()
            for frames in source:
                part = self.stream.push(frames)
                due = note != FROM_PIPE and time.perf_counter() - checkpoint >= checkpoint_seconds
                sink.put((part, replace(self.stream.capture(), note=note) if due else None))
                checkpoint = time.perf_counter() if due else checkpoint
                progress(feed.frames_seen, self.reader.info.frames)
            sink.put((self.stream.finish(), None))
            sink.close()
            writer.finish(feed.frames_seen)
        return feed.frames_seen, feed.latents_given

    def _go_on(self, writer: LatentsWriter) -> None:
        given = self.stream.feed.latents_given
        if writer.latents_done < given:
            raise LatentsError(
                f"{self.store} holds {writer.latents_done} latents, but the interrupted run had written"
                f" {given}; it was changed since, run without --resume to begin anew"
            )
        writer.truncate(given)
        self.reader.seek_frames(self.stream.feed.frames_seen)


def _finished(store: Path) -> tuple[int, int] | None:
    """Frames and latents of a complete store, None of another."""
    with open_latents(store) as reader:
        return (cast(int, reader.info.frames), reader.count) if reader.complete else None


def _latents_info(bundle: Bundle, video: VideoInfo) -> LatentsInfo:
    model = bundle.manifest.model
    rows, columns = padded_size(video.height, video.width)
    return LatentsInfo(
        frames=None,
        height=video.height,
        width=video.width,
        padded_height=rows,
        padded_width=columns,
        fps=video.fps,
        time_base=video.time_base,
        kind=cast(Any, bundle.manifest.latents),
        temporal_ratio=cast(Any, bundle.ratio),
        scale=tuple(model["scale"]),
        shift=tuple(model["shift"]),
        bundle_hash=bundle.identity,
        model=bundle.manifest.checkpoint_sha256,
        color_range=video.color_range,
        color_space=video.color_space,
    )


def _convert(store: Path, destination: Path) -> None:
    """Copies a finished store to a clip format, piece by piece."""
    with (
        open_latents(store) as reader,
        open_latents_writer(destination, replace(reader.info, frames=None)) as writer,
    ):
        for part in reader.chunks(16):
            writer.append(part)
        writer.finish(cast(int, reader.info.frames))
