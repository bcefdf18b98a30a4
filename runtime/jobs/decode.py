"""Latents to video."""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np

from wfvae.errors import LatentsError, StateError
from wfvae.runtime.backends.base import Array
from wfvae.runtime.bundle import Bundle
from wfvae.runtime.chain import Chain
from wfvae.runtime.jobs.checkpoints import CHECKPOINT_SECONDS, DEPTH, START_OVER, Checkpoints, Note
from wfvae.runtime.jobs.report import Progress, Report, no_progress
from wfvae.runtime.jobs.sources import digest_latents, require_distinct, require_origin, settings_of
from wfvae.runtime.latents.base import LatentsReader
from wfvae.runtime.latents.latent_files import open_latents
from wfvae.runtime.media.image_folder import is_image_folder
from wfvae.runtime.media.segmented_writer import SegmentedVideoWriter
from wfvae.runtime.media.video_info import OutputVideo
from wfvae.runtime.media.video_writer import PIPE, VideoWriter, open_video_writer, video_destination
from wfvae.runtime.prefetch import BackgroundSink, Prefetch
from wfvae.runtime.snapshot import Snapshot
from wfvae.runtime.stream import DecoderStream
from wfvae.spec.frames import video_frames
from wfvae.spec.latents import LatentsInfo

SEGMENT_FRAMES = 48
"""Frames per resumable piece of a decoded video: each begins with a key frame."""
_PENDING = "pending"
"""Name of decoded frames, in a snapshot, that belong to a segment which was not finished."""


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
        chunk: latents per step; the result does not depend on it.
        resume: continue an interrupted run of the same job (files; images and pipes start over).
        overwrite: replace an existing result.
        any_bundle: accept latents of another model.
        audio_from: a media file whose audio is copied. The video begins as long after the file's
            start as it did in the file that was encoded.
        output: further fields of `OutputVideo`, such as `crf`.
        container: format of a pipe.
        segment_frames: frames per piece that survives an interruption. The file's bytes depend on
            it, its content does not.
        checkpoint_seconds: time between two snapshots. After an interruption, what was decoded
            since the last one is decoded again.
        observe: called with each piece of the decoded video, (T, H, W, 3) uint8, in order.

    Raises:
        LatentsError: the latents are unreadable, hold NaN, or are another bundle's.
        MediaError: the video cannot be written.
        ResourceError: the disk is full, or a step needs more memory than there is.
    """
    require_distinct(audio_from, video)
    require_distinct(latents, video)
    with ExitStack() as stack:
        destination = video_destination(Path(video), overwrite) if _is_segmented(video) else None
        if destination is not None:
            stack.enter_context(destination)
        reader = stack.enter_context(open_latents(latents))
        require_origin(bundle, reader, latents, any_bundle)
        info = reader.info
        height, width = info.height, info.width
        frames = info.frames if info.frames is not None else video_frames(reader.count, bundle.ratio)
        chunk = chunk or bundle.default_chunk("decoder", height=height, width=width)
        target = _output_video(info, {**(output or {}), "audio_from": audio_from})
        stream = stack.enter_context(bundle.decoder(height=height, width=width, frames=frames, chunk=chunk))
        began = time.perf_counter()
        job = _Decoding(reader, stream, chunk, frames, progress, observe, reader.digest)
        if destination is not None:
            job.source = digest_latents(reader, latents)
            settings = settings_of(bundle)
            checkpoints = Checkpoints(destination, settings, checkpoint_seconds)
            segments = SegmentedVideoWriter(
                destination,
                target,
                segment_frames=segment_frames,
                resume=resume,
                overwrite=overwrite,
                origin={"bundle": bundle.identity, "source": job.source, **settings},
            )
            stack.enter_context(segments)
            interrupted = checkpoints.load() if resume else None
            resumed_at = job.to_segments(segments, segment_frames, checkpoints, interrupted)
            notices = segments.notices
        else:
            writer = open_video_writer(video, target, overwrite=overwrite, container=container)
            job.to_writer(writer)
            resumed_at, notices = 0, writer.notices
        return Report(
            source=str(latents),
            destination=str(video),
            frames=frames - resumed_at,
            latents=reader.count,
            height=height,
            width=width,
            fps=float(info.fps),
            seconds=time.perf_counter() - began,
            engine_seconds=stream.engine_seconds,
            resumed_at=resumed_at,
            complete=reader.complete,
            notices=notices,
        )


@dataclass
class _Decoding:
    """A decode job: to a file in segments, or to anything else in one go."""

    reader: LatentsReader
    stream: DecoderStream
    chunk: int
    frames: int
    progress: Progress
    observe: Callable[[Array], None] | None
    source: str | None
    """Hash of all latents, None if unknown."""

    def to_writer(self, video_writer: VideoWriter) -> None:
        """Decodes to images, a GIF or a pipe."""
        with video_writer as writer, BackgroundSink(writer.write, DEPTH) as sink:
            with closing(self._parts()) as parts:
                for part in parts:
                    sink.put(part)
                    self.progress(self.stream.frames_given, self.frames)
            sink.close()

    def to_segments(
        self,
        writer: SegmentedVideoWriter,
        segment_frames: int,
        checkpoints: Checkpoints,
        interrupted: tuple[Snapshot, Note] | None,
    ) -> int:
        """Decodes to a file that can be resumed. Returns the frames of an earlier run."""
        resumed_at = writer.frames_done
        pending, done = None, 0
        source = cast(str, self.source)
        if interrupted is None:
            checkpoints.forget()
        else:
            snapshot, note = interrupted
            if note.source != source:
                raise StateError(f"the interrupted job was about other latents; give those, or {START_OVER}")
            self.stream.require(snapshot)
            held = snapshot.attached.get(_PENDING)
            expected = (self.reader.info.height, self.reader.info.width, 3)
            if held is None or held.shape[1:] != expected or held.dtype != np.uint8:
                raise StateError("the snapshot of the interrupted run is damaged; run it without --resume")
            position = snapshot.counters["given"] - len(held)
            if position <= resumed_at:
                checkpoints.restore(self.stream, snapshot)
                pending, done = held, position
        to_skip = resumed_at - done  # frames that are in finished segments
        with checkpoints.sink(writer.write) as sink, closing(self._parts(pending)) as parts:
            for part in parts:
                before, done = done, done + len(part)
                saved = None
                # Only whole segments survive an interruption; the snapshot holds the rest.
                if done // segment_frames > before // segment_frames and checkpoints.due:
                    rest = part[len(part) - done % segment_frames :]
                    saved = checkpoints.take(self.stream, source, attached={_PENDING: rest})
                skipped = min(to_skip, len(part))
                to_skip -= skipped
                sink.put((part[skipped:], saved))
                self.progress(done, self.frames)
            sink.close()
            writer.finish()
        checkpoints.forget()
        return resumed_at

    def _parts(self, pending: Array | None = None) -> Generator[Array, None, None]:
        """Yields `pending`, and then the video from where the stream stands."""
        if pending is not None and len(pending):
            yield pending
        stream, consumed = self.stream, Chain()
        for latents in self.reader.chunks(self.chunk, stop=stream.latents_seen):
            consumed.extend(latents)
        pieces = consumed.over(self.reader.chunks(self.chunk, start=stream.latents_seen))
        with Prefetch(pieces, DEPTH) as source:
            for latents, _ in source:
                yield from self._observed(stream.push(latents[:, : stream.channels]))
        # Before the end, which completes the video.
        if self.source is not None and consumed.hexdigest != self.source:
            raise LatentsError("the latents were changed while they were decoded; decode them again")
        yield from self._observed(stream.finish())

    def _observed(self, part: Array) -> Iterator[Array]:
        if len(part):
            if self.observe is not None:
                self.observe(part)
            yield part


def _output_video(info: LatentsInfo, changes: dict[str, Any]) -> OutputVideo:
    given = {key: value for key, value in changes.items() if value is not None}
    is_rgb = info.color_space == "rgb"
    # Copied audio counts from the start of the file that the video was encoded from.
    start = (info.start or Fraction(0)) if "audio_from" in given else Fraction(0)
    # In a tick that frames at this rate do not fall on, such as Matroska's millisecond, the rate
    # would be uneven.
    fits = info.time_base and all((time / info.time_base).denominator == 1 for time in (1 / info.fps, start))
    carried = {
        "color_range": None if is_rgb else info.color_range,
        "color_space": None if is_rgb else info.color_space,
        "color_primaries": info.color_primaries,
        "color_transfer": info.color_transfer,
        "mastering_display": info.mastering_display,
        "content_light": info.content_light,
        "sample_aspect_ratio": info.sample_aspect_ratio,
        "time_base": info.time_base if fits else None,
        "start": start,
    }
    return OutputVideo(width=info.width, height=info.height, fps=info.fps, **{**carried, **given})


def _is_segmented(video: str | Path) -> bool:
    if str(video) == PIPE or is_image_folder(video):
        return False
    return Path(video).suffix.lower() not in ("", ".gif")
