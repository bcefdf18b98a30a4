"""Video to latents."""

import time
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

from msgspec.structs import replace

from wfvae.errors import LatentsError
from wfvae.files import Destination, remove_leftovers, remove_own
from wfvae.runtime.bundle import Bundle
from wfvae.runtime.chain import Chain
from wfvae.runtime.jobs.checkpoints import CHECKPOINT_SECONDS, DEPTH, START_OVER, Checkpoints, Note
from wfvae.runtime.jobs.report import Progress, Report, no_progress
from wfvae.runtime.jobs.sources import digest_latents, settings_of, skip_frames
from wfvae.runtime.latents.base import LatentsWriter, is_of_store
from wfvae.runtime.latents.latent_files import latents_destination, open_latents, open_latents_writer
from wfvae.runtime.media.video_info import RawVideo, VideoInfo
from wfvae.runtime.media.video_reader import PIPE, VideoReader, open_video
from wfvae.runtime.prefetch import Prefetch
from wfvae.runtime.stream import EncoderStream
from wfvae.spec.frames import padded_size
from wfvae.spec.latents import LATEST_START, LatentsInfo

_START_TICKS = 90000
"""Precision of the time of the first frame, per second: that of MPEG-TS."""
_COPIED_LATENTS = 16
"""Latents per piece when a finished store is copied to a clip format."""


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
    video_stream: int | None = None,
    deinterlace: bool = False,
    progress: Progress = no_progress,
) -> Report:
    """Encodes a video to a latents file (`.zarr`, `.safetensors` or `.npy`) in constant memory.

    Args:
        video: a file, a directory of images, or `-` for standard input.
        chunk: latents per step; the result does not depend on it.
        resume: continue an interrupted run of the same job; if there is none, begin.
        overwrite: replace an existing result.
        checkpoint_seconds: work that an interruption costs at most.
        raw: layout of a headerless pipe.
        fps: rate of a directory of images.
        keep_damaged: encode damaged frames as the decoder conceals them, instead of stopping there.
        video_stream: index of the video stream to read; None takes the file's default one.
        deinterlace: make one progressive frame of each interlaced one.

    Raises:
        MediaError: the video cannot be read.
        LatentsError: the destination cannot be written, or was changed since the interrupted run.
        ResourceError: the disk is full, or a step needs more memory than there is. Latents that
            were finished stay readable.

    Example:
        >>> from wfvae import WFVAE, open_bundle
        >>> from wfvae.export.bundle import export_bundle
        >>> from wfvae.runtime.media.video_info import OutputVideo
        >>> from wfvae.runtime.media.video_writer import open_video_writer
        >>> from wfvae.video.synthetic.clips import ProceduralClip
        >>> _ = export_bundle(WFVAE.from_pretrained("tiny"), Path("bundle"))
        >>> with open_video_writer("in.mp4", OutputVideo(32, 16, Fraction(25))) as writer:
        ...     writer.write(ProceduralClip(0, 16, 32, 9).frames(0, 9))
        >>> with open_bundle("bundle") as bundle:
        ...     report = encode_video(bundle, "in.mp4", "latents.zarr")
        >>> report.frames, report.latents
        (9, 3)
    """
    latents = Path(latents)
    in_place = latents.suffix.lower() == ".zarr"
    with ExitStack() as stack:
        destination = stack.enter_context(latents_destination(latents, overwrite or resume))
        store = destination.part("" if in_place else ".partial.zarr")
        remove_leftovers(store)
        reading: dict[str, Any] = {
            "keep_damaged": keep_damaged,
            "video_stream": video_stream,
            "deinterlace": deinterlace,
        }
        reader = stack.enter_context(open_video(video, raw=raw, fps=fps, **reading))
        info = reader.info
        chunk = chunk or bundle.default_chunk("encoder", height=info.height, width=info.width)
        stream = stack.enter_context(bundle.encoder(height=info.height, width=info.width, chunk=chunk))
        settings = settings_of(bundle, **reading)
        checkpoints = Checkpoints(store, settings, checkpoint_seconds, reads_pipe=str(video) == PIPE)
        interrupted = checkpoints.load() if resume and store.path.exists() else None
        began = time.perf_counter()
        note = None
        if interrupted is None:
            checkpoints.forget()
        else:
            snapshot, note = interrupted
            checkpoints.restore(stream, snapshot)
            skip_frames(reader, stream.frames_seen, note.source, video)
        resumed_at = stream.frames_seen
        # A run may have been killed between the last latent and the end of the job.
        if note is not None and (finished := _finished(store.path)):
            resumed_at, count = finished
            frames = resumed_at
        else:
            target = _latents_info(bundle, info)
            _encode(reader, stream, bundle.ratio * chunk, store, target, checkpoints, note, progress)
            frames, count = stream.frames_seen, stream.latents_given
        notices = reader.notices
        if not in_place:
            _copy(store, destination)
        checkpoints.forget()
        if not in_place:
            remove_own(store, is_of_store)
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
        engine_seconds=stream.engine_seconds,
        resumed_at=resumed_at,
        variable_frame_rate=info.variable_frame_rate,
        rotation=info.rotation,
        audio="left out" if info.has_audio else None,
        notices=notices,
    )


def _encode(
    reader: VideoReader,
    stream: EncoderStream,
    step: int,
    store: Destination,
    info: LatentsInfo,
    checkpoints: Checkpoints,
    note: Note | None,
    progress: Progress,
) -> None:
    """Encodes to the end of the video, from where `stream` stands, `step` frames at a time.

    `note` is that of an interrupted job.
    """
    source, written = Chain(), Chain()
    with ExitStack() as stack:
        writer = stack.enter_context(open_latents_writer(store, info, resume=note is not None))
        if note is not None:
            _cut_back(writer, stream.latents_given, note.written)
            source, written = Chain(note.source), Chain(writer.stored_digest(stream.latents_given))
        sink = stack.enter_context(checkpoints.sink(writer.append))
        chunks = source.over(reader.chunks(step))
        for frames, consumed in stack.enter_context(Prefetch(chunks, DEPTH)):
            part = stream.push(frames)
            written.extend(part)
            saved = checkpoints.take(stream, consumed, written.hexdigest) if checkpoints.due else None
            sink.put((part, saved))
            progress(stream.frames_seen, reader.info.frames)
        sink.put((stream.finish(), None))
        sink.close()
        writer.finish(stream.frames_seen)


def _cut_back(writer: LatentsWriter, count: int, expected: str | None) -> None:
    """Makes a store hold the first `count` latents, which have the hash `expected`."""
    path = writer.path
    problem = None
    if writer.latents_done < count:
        problem = f"it holds {writer.latents_done} latents, but the interrupted run had written {count}"
    else:
        try:
            if writer.stored_digest(count) != expected:
                problem = "it does not hold the latents that the interrupted run had written"
        except LatentsError as error:
            problem = str(error)
    if problem is not None:
        raise LatentsError(f"'{path}' was changed since: {problem}; {START_OVER}")
    writer.truncate(count)


def _finished(store: Path) -> tuple[int, int] | None:
    """Returns the frames and latents of a complete store, None for another one."""
    with open_latents(store) as reader:
        if not reader.complete:
            return None
        digest_latents(reader, store)
        return cast(int, reader.info.frames), reader.count


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
        color_primaries=video.color_primaries,
        color_transfer=video.color_transfer,
        mastering_display=video.mastering_display,
        content_light=video.content_light,
        sample_aspect_ratio=video.sample_aspect_ratio,
        start=video.start.limit_denominator(_START_TICKS) if video.start <= LATEST_START else None,
    )


def _copy(store: Destination, destination: Destination) -> None:
    """Copies a finished store to a clip format, piece by piece."""
    copied = Chain()
    with ExitStack() as stack:
        reader = stack.enter_context(open_latents(store.path))
        info = replace(reader.info, frames=None)
        writer = stack.enter_context(open_latents_writer(destination, info))
        for part, _ in copied.over(reader.chunks(_COPIED_LATENTS)):
            writer.append(part)
        if copied.hexdigest != reader.digest:
            raise LatentsError(f"another program changed '{store.path}'; {START_OVER}")
        writer.finish(cast(int, reader.info.frames))
