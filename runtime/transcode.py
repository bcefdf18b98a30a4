"""Files through a bundle: video to latents, latents to video, video to video. Reading, inference and writing overlap.

Encode and decode can be interrupted at any moment, even by SIGKILL, and resumed to the same bits: what is finished lies on disk
in whole pieces (appended latents, complete video segments), and beside it a snapshot of the stream as it was at such a point.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from wfvae.errors import LatentsError, MediaError, ResourceError, StateError
from wfvae.plan import padded_size, video_frames
from wfvae.runtime.backend import Array, BoolArray, FloatArray, StepSession, StreamState
from wfvae.runtime.latents.latent_files import LatentsReader, open_latents, open_latents_writer
from wfvae.runtime.latents.latents_info import LatentsInfo
from wfvae.runtime.media.segmented_writer import SegmentedVideoWriter
from wfvae.runtime.media.video_info import OutputVideo, RawVideo, VideoInfo
from wfvae.runtime.media.video_reader import VideoReader, open_video
from wfvae.runtime.media.video_writer import VideoWriter, open_video_writer
from wfvae.runtime.prefetch import BackgroundSink, prefetch
from wfvae.runtime.snapshot import Snapshot
from wfvae.runtime.stream import DecoderStream, EncoderStream

if TYPE_CHECKING:
    from wfvae.runtime.bundle import Bundle

Progress = Callable[[int, int | None], None]
"""Called with frames done and frames in all, None if unknown."""

SEGMENT_FRAMES = 240
"""Frames per resumable piece of a decoded video."""
CHECKPOINT_SECONDS = 30.0
"""Time between two snapshots of an encoding stream."""
_DEPTH = 2
_FINGERPRINT_BYTES = 1 << 20


def no_progress(done: int, total: int | None) -> None:
    """Shows nothing."""


@dataclass(frozen=True)
class Report:
    """What a job did."""

    source: str
    destination: str
    frames: int
    """Video frames that went through in this run."""
    latents: int
    height: int
    width: int
    fps: float
    """Frame rate of the video."""
    seconds: float
    """Wall time."""
    engine_seconds: float
    """Time inside the backend."""
    resumed_at: int
    """Frames that an earlier run had finished."""
    complete: bool = True
    """False where the latents were of a stream that had not been finished."""

    @property
    def frames_per_second(self) -> float:
        """Throughput of this run."""
        return self.frames / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "frames_per_second": self.frames_per_second}


class _TimedSession:
    """Measures the time spent in a session."""

    def __init__(self, session: StepSession) -> None:
        self.graph = session.graph
        self.seconds = 0.0
        self._session = session

    def new_state(self, batch: int, height: int, width: int) -> StreamState:
        return self._session.new_state(batch, height, width)

    def step(self, state: StreamState, x: FloatArray, start: BoolArray, end: BoolArray) -> FloatArray:
        began = time.perf_counter()
        result = self._session.step(state, x, start, end)
        self.seconds += time.perf_counter() - began
        return result


# Encode ---------------------------------------------------------------------------------------------------------------------


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
        MediaError, LatentsError, ResourceError, BundleError: in one line; latents that were finished stay readable.
    """
    latents = Path(latents)
    store = latents if latents.suffix == ".zarr" else latents.with_name(latents.name + ".partial.zarr")
    record = store.with_name(store.name + ".resume")
    if not resume and not overwrite and latents.exists():
        raise LatentsError(f"{latents} exists; choose another name, or allow overwriting")
    with ExitStack() as stack:
        reader = stack.enter_context(open_video(video, raw=raw, fps=fps, keep_damaged=keep_damaged))
        info = reader.info
        stream = stack.enter_context(_encoder(bundle, info, chunk))
        timed = cast("_TimedSession", stream.session)
        note = _fingerprint(video)
        snapshot = _load_snapshot(record, note, resume, video)
        if snapshot is not None:
            stream.restore(snapshot)
        writer = stack.enter_context(open_latents_writer(store, _latents_info(bundle, info), resume=snapshot is not None))
        if snapshot is not None:
            writer.truncate(stream.feed.latents_given)
            reader.seek_frames(stream.feed.frames_seen)
        else:
            record.unlink(missing_ok=True)
        resumed_at = stream.feed.frames_seen
        began = checkpoint = time.perf_counter()

        def write(item: tuple[FloatArray, Snapshot | None]) -> None:
            part, saved = item
            if len(part):
                writer.append(part)
            if saved is not None:
                _save_snapshot(saved, record)

        sink = stack.enter_context(BackgroundSink(write, _DEPTH))
        step = bundle.ratio * (chunk or _default_chunk())
        source = stack.enter_context(prefetch(reader.chunks(step), _DEPTH))
        for frames in source:
            part = stream.push(frames)
            due = time.perf_counter() - checkpoint >= checkpoint_seconds
            sink.put((part, replace(stream.capture(), note=note) if due else None))
            checkpoint = time.perf_counter() if due else checkpoint
            progress(stream.feed.frames_seen, info.frames)
        sink.put((stream.finish(), None))
        sink.close()
        writer.finish(stream.feed.frames_seen)
        count = stream.feed.latents_given
        frames_seen = stream.feed.frames_seen
    if store != latents:
        _convert(store, latents)
        shutil.rmtree(store)
    record.unlink(missing_ok=True)
    progress(frames_seen, frames_seen)
    return Report(
        source=str(video),
        destination=str(latents),
        frames=frames_seen - resumed_at,
        latents=count,
        height=info.height,
        width=info.width,
        fps=float(info.fps),
        seconds=time.perf_counter() - began,
        engine_seconds=timed.seconds,
        resumed_at=resumed_at,
    )


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
    with open_latents(store) as reader, open_latents_writer(destination, replace(reader.info, frames=None)) as writer:
        for part in reader.chunks(16):
            writer.append(part)
        writer.finish(cast(int, reader.info.frames))


# Decode ---------------------------------------------------------------------------------------------------------------------


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
    progress: Progress = no_progress,
    observe: Callable[[Array], None] | None = None,
) -> Report:
    """Decodes a latents file to a video in constant memory.

    Args:
        video: a file, a directory or pattern for PNG images, or `-` for standard output.
        resume: go on where an interrupted run of the same job stopped (files; images and pipes begin anew).
        any_bundle: accept latents of another model.
        audio_from: a media file whose audio goes along.
        output: further fields of `OutputVideo`, such as `crf`.
        container: format of a pipe.
        segment_frames: how much work an interruption may cost at most. The file's bytes depend on it, its meaning does not.
        observe: called with each piece of the decoded video, (T, H, W, 3) uint8, in order.

    Raises:
        LatentsError: unreadable latents, NaN in them, or another bundle's.
        MediaError, ResourceError, BundleError: in one line.
    """
    with open_latents(latents) as reader:
        info = reader.info
        _check_origin(bundle, info, latents, any_bundle)
        frames = info.frames if info.frames is not None else video_frames(reader.count, bundle.ratio)
        target = _output_video(info, {**(output or {}), "audio_from": audio_from})
        job = _Decoding(bundle, reader, frames, target, chunk or _default_chunk(), progress, observe)
        if _resumable(video):
            return job.segmented(latents, Path(video), resume, overwrite, segment_frames)
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

    def segmented(self, source: str | Path, video: Path, resume: bool, overwrite: bool, segment_frames: int) -> Report:
        record = video.with_name(video.name + ".resume")
        note = f"{self.reader.info.bundle_hash}:{self.reader.count}:{self.frames}:{segment_frames}"
        with ExitStack() as stack:
            writer = stack.enter_context(
                SegmentedVideoWriter.open(video, self.target, segment_frames=segment_frames, resume=resume, overwrite=overwrite)
            )
            stream = stack.enter_context(self._stream())
            snapshot = _load_snapshot(record, note, resume, source)
            pending = stream.feed.empty()
            position = 0  # frames that lie before `pending` in the video
            if snapshot is not None and snapshot.counters["given"] - len(snapshot.attached["pending"]) <= writer.frames_done:
                stream.restore(snapshot)
                pending = snapshot.attached["pending"]
                position = stream.feed.frames_given - len(pending)
            resumed_at = skip = writer.frames_done
            skip -= position
            began = time.perf_counter()

            def write(item: tuple[Array, Snapshot | None]) -> None:
                part, saved = item
                if len(part):
                    writer.write(part)
                if saved is not None:
                    _save_snapshot(saved, record)

            sink = stack.enter_context(BackgroundSink(write, _DEPTH))
            done = position
            for part in self._parts(stream, pending):
                before, done = done, done + len(part)
                saved = None
                if done // segment_frames > before // segment_frames:
                    # A segment ends inside this part; its rest goes into the snapshot, since only whole segments survive.
                    rest = part[len(part) - done % segment_frames :]
                    saved = replace(stream.capture(), note=note, attached={"pending": rest})
                dropped = min(skip, len(part))
                skip -= dropped
                sink.put((part[dropped:], saved))
                self.progress(done, self.frames)
            sink.close()
            writer.finish()
        record.unlink(missing_ok=True)
        return self._report(source, video, self.frames - resumed_at, began, stream, resumed_at)

    def plain(self, source: str | Path, video: str | Path, overwrite: bool, container: str | None) -> Report:
        with ExitStack() as stack:
            writer = stack.enter_context(open_video_writer(video, self.target, overwrite=overwrite, container=container))
            stream = stack.enter_context(self._stream())
            began = time.perf_counter()
            sink = stack.enter_context(BackgroundSink(writer.write, _DEPTH))
            for part in self._parts(stream, stream.feed.empty()):
                sink.put(part)
                self.progress(stream.feed.frames_given, self.frames)
            sink.close()
        return self._report(source, video, self.frames, began, stream, 0)

    def _stream(self) -> DecoderStream:
        info = self.reader.info
        stream = self.bundle.decoder(height=info.height, width=info.width, frames=self.frames, chunk=self.chunk)
        stream.session = _TimedSession(stream.session)
        return stream

    def _parts(self, stream: DecoderStream, pending: Array) -> Iterator[Array]:
        """The video from where `stream` stands, after what it had given out but not written."""
        if len(pending):
            yield pending
        channels = int(stream.session.graph.inputs[0].shape[2])
        with prefetch(self.reader.chunks(self.chunk, start=stream.feed.latents_seen), _DEPTH) as source:
            for latents in source:
                # Moments begin with the means.
                yield from self._observed(stream.push(latents[:, :channels]))
        yield from self._observed(stream.finish())

    def _observed(self, part: Array) -> Iterator[Array]:
        if len(part):
            if self.observe is not None:
                self.observe(part)
            yield part

    def _report(self, source: str | Path, video: str | Path, frames: int, began: float, stream: DecoderStream, resumed_at: int) -> Report:
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
            engine_seconds=cast("_TimedSession", stream.session).seconds,
            resumed_at=resumed_at,
            complete=self.reader.complete,
        )


def _check_origin(bundle: Bundle, info: LatentsInfo, source: str | Path, any_bundle: bool) -> None:
    if info.temporal_ratio != bundle.ratio:
        raise LatentsError(f"the latents {source} have {info.temporal_ratio} frames each, and this bundle's have {bundle.ratio}")
    same = info.bundle_hash == bundle.identity or (info.model and info.model == bundle.manifest.checkpoint_sha256)
    if not same and not any_bundle:
        raise LatentsError(
            f"the latents {source} were made by another model (bundle {info.bundle_hash[:12] or 'unknown'}, this one is "
            f"{bundle.identity[:12]}); decode them with the bundle that encoded them, or insist with --any-bundle"
        )


def _output_video(info: LatentsInfo, changes: dict[str, Any]) -> OutputVideo:
    known = {key: value for key, value in changes.items() if value is not None}
    carried = {"color_range": info.color_range, "color_space": None if info.color_space == "rgb" else info.color_space}
    return OutputVideo(width=info.width, height=info.height, fps=info.fps, **{**carried, **known})


def _resumable(video: str | Path) -> bool:
    text = str(video)
    return text != "-" and "%" not in text and not text.endswith("/") and not Path(text).is_dir() and Path(text).suffix not in ("", ".gif")


# Reconstruct ----------------------------------------------------------------------------------------------------------------


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
    output: dict[str, Any] | None = None,
    container: str | None = None,
    progress: Progress = no_progress,
    observe: Callable[[Array, Array], None] | None = None,
) -> Report:
    """Encodes and decodes a video in one pass, in constant memory, with its audio, timestamps and colour tags.

    Args:
        observe: called with each piece of the video and of its reconstruction, both (T, H, W, 3) uint8.

    The other arguments are those of `encode_video` and `decode_video`.
    """
    with ExitStack() as stack:
        reader = stack.enter_context(open_video(video, raw=raw, fps=fps, keep_damaged=keep_damaged))
        info = reader.info
        encoder = stack.enter_context(_encoder(bundle, info, chunk))
        decoder = stack.enter_context(bundle.decoder(height=info.height, width=info.width, chunk=chunk or _default_chunk()))
        decoder.session = _TimedSession(decoder.session)
        audio = Path(video) if info.has_audio and info.kind == "file" else None
        changes = {"audio_from": audio, **{key: value for key, value in (output or {}).items() if value is not None}}
        target = OutputVideo.like(info, **changes)
        writer: VideoWriter = stack.enter_context(open_video_writer(out, target, overwrite=overwrite, container=container))
        began = time.perf_counter()
        sink: BackgroundSink[tuple[Array, list[Fraction]]] = BackgroundSink(lambda item: writer.write(*item), _DEPTH)
        stack.enter_context(sink)
        source = stack.enter_context(prefetch(_batches(reader, bundle.ratio * (chunk or _default_chunk())), _DEPTH))
        channels = int(decoder.session.graph.inputs[0].shape[2])
        waiting = _Waiting()
        for frames, times in source:
            waiting.add(frames, times)
            part = decoder.push(encoder.push(frames)[:, :channels])
            _pass_on(part, waiting, sink, observe)
            progress(decoder.feed.frames_given, info.frames)
        rest = [decoder.push(encoder.finish()[:, :channels]), decoder.finish(encoder.feed.frames_seen)]
        for part in rest:
            _pass_on(part, waiting, sink, observe)
        sink.close()
        frames_seen = encoder.feed.frames_seen
    progress(frames_seen, frames_seen)
    sessions = (cast("_TimedSession", stream.session) for stream in (encoder, decoder))
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
    )


class _Waiting:
    """Input frames and their times, until their reconstruction is ready: a bounded number, the stream's delay."""

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


def _pass_on(part: Array, waiting: _Waiting, sink: BackgroundSink[Any], observe: Callable[[Array, Array], None] | None) -> None:
    # The last latent may stand for fewer frames than it decodes to.
    part = part[: len(waiting.frames)]
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


# Shared ---------------------------------------------------------------------------------------------------------------------


def _default_chunk() -> int:
    from wfvae.runtime.bundle import DEFAULT_CHUNK

    return DEFAULT_CHUNK


def _encoder(bundle: Bundle, info: VideoInfo, chunk: int | None) -> EncoderStream:
    stream = bundle.encoder(height=info.height, width=info.width, chunk=chunk or _default_chunk())
    stream.session = _TimedSession(stream.session)
    return stream


def _fingerprint(source: str | Path) -> str:
    """Tells one source from another well enough to refuse to resume with the wrong one."""
    if str(source) == "-":
        return "pipe"
    path = Path(source)
    digest = hashlib.sha256()
    if path.is_dir():
        for entry in sorted(path.iterdir()):
            digest.update(f"{entry.name}:{entry.stat().st_size};".encode())
    else:
        with path.open("rb") as file:
            digest.update(file.read(_FINGERPRINT_BYTES))
        digest.update(str(path.stat().st_size).encode())
    return digest.hexdigest()


def _load_snapshot(record: Path, note: str, resume: bool, source: str | Path) -> Snapshot | None:
    if not resume or not record.exists():
        return None
    if note == "pipe":
        raise MediaError("a job that reads a pipe cannot be resumed, since what was read is gone; give a file")
    snapshot = Snapshot.read(record)
    if snapshot.note != note:
        raise StateError(
            f"the interrupted job was about another source or other settings than {source}; run it without --resume to begin anew"
        )
    return snapshot


def _save_snapshot(snapshot: Snapshot, record: Path) -> None:
    try:
        snapshot.write(record)
    except OSError as error:
        raise ResourceError(f"cannot save the snapshot {record}: {error.strerror}; free some space and go on with --resume") from error
