"""Latents to video."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from wfvae.errors import LatentsError
from wfvae.runtime.backends.base import Array
from wfvae.runtime.jobs.job import CHECKPOINT_SECONDS, DEPTH, check_distinct, forget, load_snapshot
from wfvae.runtime.jobs.report import Progress, Report, TimedSession, no_progress
from wfvae.runtime.latents.latent_files import LatentsReader, open_latents
from wfvae.runtime.media.segmented_writer import SegmentedVideoWriter
from wfvae.runtime.media.video_info import OutputVideo
from wfvae.runtime.media.video_writer import PIPE, is_image_folder, open_video_writer
from wfvae.runtime.prefetch import BackgroundSink, prefetch
from wfvae.runtime.snapshot import Snapshot
from wfvae.runtime.stream import DecoderStream
from wfvae.spec.frames import video_frames
from wfvae.spec.latents import LatentsInfo

if TYPE_CHECKING:
    from wfvae.runtime.bundle import Bundle

SEGMENT_FRAMES = 48
"""Frames per resumable piece of a decoded video: each begins with a key frame."""
_FINGERPRINT_LATENTS = 16


def decode_video(
    bundle: Bundle,
    latents: str | Path,
    video: str | Path,
    *,
    chunk: int | None = None,
    resume: bool = False,
    overwrite: bool = True,
    any_bundle: bool = False,
    audio_from: Path | None = None,
    output: dict[str, Any] | None = None,
    container: str | None = None,
    segment_frames: int = SEGMENT_FRAMES,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    progress: Progress = no_progress,
    observe: Callable[[Array], None] | None = None,
) -> Report:
    """Decodes a latents file to a video in constant memory.

    Args:
        video: a file, a directory or pattern for PNG images, or `-` for standard output.
        resume: go on where an interrupted run of the same job stopped (files; images and pipes
            begin anew).
        any_bundle: accept latents of another model.
        audio_from: a media file whose audio goes along.
        output: further fields of `OutputVideo`, such as `crf`.
        container: format of a pipe.
        segment_frames: frames per piece that survives an interruption. The file's bytes depend on
            it, its meaning does not.
        checkpoint_seconds: time between two snapshots. After an interruption, what was decoded
            since the last one is decoded again, and written only from the first incomplete piece
            on.
        observe: called with each piece of the decoded video, (T, H, W, 3) uint8, in order.

    Raises:
        LatentsError: unreadable latents, NaN in them, or another bundle's.
        MediaError, ResourceError, BundleError: in one line.
    """
    check_distinct(audio_from, video)
    check_distinct(latents, video)
    with open_latents(latents) as reader:
        info = reader.info
        _check_origin(bundle, info, latents, any_bundle)
        if not reader.count:
            raise LatentsError(f"{latents} holds no latents yet; encode the video to it first")
        frames = info.frames if info.frames is not None else video_frames(reader.count, bundle.ratio)
        target = _output_video(info, {**(output or {}), "audio_from": audio_from})
        chunk = chunk or bundle.default_chunk("decoder", height=info.height, width=info.width)
        job = _Decoding(bundle, reader, frames, target, chunk, progress, observe)
        if _resumable(video):
            return job.segmented(latents, Path(video), resume, overwrite, segment_frames, checkpoint_seconds)
        return job.plain(latents, video, overwrite, container)


@dataclass
class _Decoding:
    """A decode job, to a file in segments or to anything else in one go."""

    bundle: Bundle
    reader: LatentsReader
    frames: int
    target: OutputVideo
    chunk: int
    progress: Progress
    observe: Callable[[Array], None] | None

    def segmented(
        self,
        source: str | Path,
        video: Path,
        resume: bool,
        overwrite: bool,
        segment_frames: int,
        checkpoint_seconds: float,
    ) -> Report:
        record = video.with_name(video.name + ".resume")
        note = self._origin()
        with ExitStack() as stack:
            writer = stack.enter_context(
                SegmentedVideoWriter.open(
                    video,
                    self.target,
                    segment_frames=segment_frames,
                    resume=resume,
                    overwrite=overwrite,
                    origin=note,
                )
            )
            stream = stack.enter_context(self._stream())
            snapshot = load_snapshot(record, note, resume, source)
            if snapshot is None:
                forget(record)
            pending = stream.feed.empty()
            position = 0  # frames that lie before `pending` in the video
            if (
                snapshot is not None
                and snapshot.counters["given"] - len(snapshot.attached["pending"]) <= writer.frames_done
            ):
                stream.restore(snapshot)
                pending = snapshot.attached["pending"]
                position = stream.feed.frames_given - len(pending)
            resumed_at = skip = writer.frames_done
            skip -= position
            began = checkpoint = time.perf_counter()

            def write(item: tuple[Array, Snapshot | None]) -> None:
                part, saved = item
                if len(part):
                    writer.write(part)
                if saved is not None:
                    saved.write(record)

            sink = stack.enter_context(BackgroundSink(write, DEPTH))
            done = position
            for part in stack.enter_context(closing(self._parts(stream, pending))):
                before, done = done, done + len(part)
                saved = None
                due = time.perf_counter() - checkpoint >= checkpoint_seconds
                if due and done // segment_frames > before // segment_frames:
                    # A segment ends inside this part; its rest goes into the snapshot, since only
                    # whole segments survive.
                    rest = part[len(part) - done % segment_frames :]
                    saved = replace(stream.capture(), note=note, attached={"pending": rest})
                    checkpoint = time.perf_counter()
                dropped = min(skip, len(part))
                skip -= dropped
                sink.put((part[dropped:], saved))
                self.progress(done, self.frames)
            sink.close()
            writer.finish()
        forget(record)
        return self._report(source, video, self.frames - resumed_at, began, stream, resumed_at)

    def plain(self, source: str | Path, video: str | Path, overwrite: bool, container: str | None) -> Report:
        with ExitStack() as stack:
            writer = stack.enter_context(
                open_video_writer(video, self.target, overwrite=overwrite, container=container)
            )
            stream = stack.enter_context(self._stream())
            began = time.perf_counter()
            sink = stack.enter_context(BackgroundSink(writer.write, DEPTH))
            for part in stack.enter_context(closing(self._parts(stream, stream.feed.empty()))):
                sink.put(part)
                self.progress(stream.feed.frames_given, self.frames)
            sink.close()
        return self._report(source, video, self.frames, began, stream, 0)

    def _origin(self) -> str:
        """Tells one source and model from another well enough to refuse to resume with the wrong
        one.
        """
        reader = self.reader
        digest = hashlib.sha256(
            json.dumps([reader.info.to_json(), reader.shape, self.bundle.identity], sort_keys=True).encode()
        )
        for index in sorted(
            {k * (reader.count - 1) // _FINGERPRINT_LATENTS for k in range(_FINGERPRINT_LATENTS + 1)}
        ):
            digest.update(reader.read(index, index + 1).tobytes())
        return digest.hexdigest()

    def _stream(self) -> DecoderStream:
        info = self.reader.info
        stream = self.bundle.decoder(
            height=info.height, width=info.width, frames=self.frames, chunk=self.chunk
        )
        stream.session = TimedSession(stream.session)
        return stream

    def _parts(self, stream: DecoderStream, pending: Array) -> Generator[Array, None, None]:
        """The video from where `stream` stands, after what it had given out but not written."""
        if len(pending):
            yield pending
        channels = int(stream.session.graph.inputs[0].shape[2])
        with prefetch(self.reader.chunks(self.chunk, start=stream.feed.latents_seen), DEPTH) as source:
            for latents in source:
                # Moments begin with the means.
                yield from self._observed(stream.push(latents[:, :channels]))
        yield from self._observed(stream.finish())

    def _observed(self, part: Array) -> Iterator[Array]:
        if len(part):
            if self.observe is not None:
                self.observe(part)
            yield part

    def _report(
        self,
        source: str | Path,
        video: str | Path,
        frames: int,
        began: float,
        stream: DecoderStream,
        resumed_at: int,
    ) -> Report:
        info = self.reader.info
        return Report(
            source=str(source),
            destination=str(video),
            frames=frames,
            latents=self.reader.count,
            height=info.height,
            width=info.width,
            fps=float(info.fps),
            seconds=time.perf_counter() - began,
            engine_seconds=cast("TimedSession", stream.session).seconds,
            resumed_at=resumed_at,
            complete=self.reader.complete,
        )


def _check_origin(bundle: Bundle, info: LatentsInfo, source: str | Path, any_bundle: bool) -> None:
    if info.temporal_ratio != bundle.ratio:
        raise LatentsError(
            f"the latents {source} have {info.temporal_ratio} frames each, and this bundle's have"
            f" {bundle.ratio}"
        )
    same = info.bundle_hash == bundle.identity or (
        info.model and info.model == bundle.manifest.checkpoint_sha256
    )
    if not same and not any_bundle:
        raise LatentsError(
            f"the latents {source} were made by another model (bundle {info.bundle_hash[:12] or 'unknown'},"
            f" this one is {bundle.identity[:12]}); decode them with the bundle that encoded them, or insist"
            " with --any-bundle"
        )


def _output_video(info: LatentsInfo, changes: dict[str, Any]) -> OutputVideo:
    known = {key: value for key, value in changes.items() if value is not None}
    is_rgb = info.color_space == "rgb"
    carried = {
        "color_range": None if is_rgb else info.color_range,
        "color_space": None if is_rgb else info.color_space,
        # A tick that frames at this rate do not fall on, such as Matroska's millisecond, would make
        # the rate uneven.
        "time_base": (
            info.time_base if info.time_base and (1 / info.fps / info.time_base).denominator == 1 else None
        ),
    }
    return OutputVideo(width=info.width, height=info.height, fps=info.fps, **{**carried, **known})


def _resumable(video: str | Path) -> bool:
    return (
        str(video) != PIPE and not is_image_folder(video) and Path(video).suffix.lower() not in ("", ".gif")
    )
