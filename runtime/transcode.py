"""Files through a bundle: video to latents, latents to video, video to video. Reading, inference and writing overlap.

Encode and decode can be interrupted at any moment, even by SIGKILL, and resumed to the same bits: what is finished lies on disk
in whole pieces (appended latents, complete video segments), and beside it a snapshot of the stream as it was at such a point.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from wfvae.errors import LatentsError, MediaError, StateError
from wfvae.plan import padded_size, video_frames
from wfvae.runtime.backend import Array, BoolArray, FloatArray, StepSession, StreamState
from wfvae.runtime.latents.latent_files import LatentsReader, LatentsWriter, check_latents_destination, open_latents, open_latents_writer
from wfvae.runtime.latents.latents_info import LatentsInfo
from wfvae.runtime.leftovers import discard_tree
from wfvae.runtime.media.segmented_writer import SegmentedVideoWriter
from wfvae.runtime.media.video_info import OutputVideo, RawVideo, VideoInfo
from wfvae.runtime.media.video_reader import VideoReader, open_video
from wfvae.runtime.media.video_writer import NUMBERED, PIPE, RAW, VideoWriter, is_image_folder, open_video_writer
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
_FINGERPRINT_LATENTS = 16
_FROM_PIPE = "pipe"


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
    variable_frame_rate: bool = False
    """Whether the source's frames are unevenly spaced. `reconstruct` keeps their times; latents keep the average rate only."""
    rotation: int = 0
    """Clockwise degrees by which the source's frames were turned, as it asks for."""
    audio: str | None = None
    """`copied`, `left out`, or None where there was none."""

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
    store = latents if latents.suffix.lower() == ".zarr" else latents.with_name(latents.name + ".partial.zarr")
    record = store.with_name(store.name + ".resume")
    check_latents_destination(latents, overwrite=overwrite or resume)
    with ExitStack() as stack:
        reader = stack.enter_context(open_video(video, raw=raw, fps=fps, keep_damaged=keep_damaged))
        info = reader.info
        stream = stack.enter_context(_encoder(bundle, info, chunk))
        snapshot = _load_snapshot(record, _fingerprint(video), resume and store.exists(), video)
        began = time.perf_counter()
        if snapshot is not None:
            stream.restore(snapshot)
        finished = None if snapshot is None else _finished(store)
        if finished is None:
            job = _Encoding(reader, stream, store, record, _latents_info(bundle, info), snapshot is not None)
            resumed_at = stream.feed.frames_seen
            frames, count = job.run(bundle.ratio * (chunk or _default_chunk()), _fingerprint(video), checkpoint_seconds, progress)
        else:
            # Killed between the last latent and the end of the job.
            frames, count = finished
            resumed_at = frames
        engine_seconds = cast("_TimedSession", stream.session).seconds
    if store != latents:
        _convert(store, latents)
    _forget(record)
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
                _forget(self.record)

            def write(item: tuple[FloatArray, Snapshot | None]) -> None:
                part, saved = item
                if len(part):
                    writer.append(part)
                if saved is not None:
                    saved.write(self.record)

            sink = stack.enter_context(BackgroundSink(write, _DEPTH))
            source = stack.enter_context(prefetch(self.reader.chunks(step), _DEPTH))
            checkpoint = time.perf_counter()
            for frames in source:
                part = self.stream.push(frames)
                due = note != _FROM_PIPE and time.perf_counter() - checkpoint >= checkpoint_seconds
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
                f"{self.store} holds {writer.latents_done} latents, but the interrupted run had written {given}; "
                "it was changed since, run without --resume to begin anew"
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
    _check_distinct(audio_from, video)
    _check_distinct(latents, video)
    with open_latents(latents) as reader:
        info = reader.info
        _check_origin(bundle, info, latents, any_bundle)
        if not reader.count:
            raise LatentsError(f"{latents} holds no latents yet; encode the video to it first")
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
        note = self._origin()
        with ExitStack() as stack:
            writer = stack.enter_context(
                SegmentedVideoWriter.open(
                    video, self.target, segment_frames=segment_frames, resume=resume, overwrite=overwrite, origin=note
                )
            )
            stream = stack.enter_context(self._stream())
            snapshot = _load_snapshot(record, note, resume, source)
            if snapshot is None:
                _forget(record)
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
                    saved.write(record)

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
        _forget(record)
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

    def _origin(self) -> str:
        """Tells one source and model from another well enough to refuse to resume with the wrong one."""
        reader = self.reader
        digest = hashlib.sha256(json.dumps([reader.info.to_json(), reader.shape, self.bundle.identity], sort_keys=True).encode())
        for index in sorted({k * (reader.count - 1) // _FINGERPRINT_LATENTS for k in range(_FINGERPRINT_LATENTS + 1)}):
            digest.update(reader.read(index, index + 1).tobytes())
        return digest.hexdigest()

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
    is_rgb = info.color_space == "rgb"
    carried = {
        "color_range": None if is_rgb else info.color_range,
        "color_space": None if is_rgb else info.color_space,
        # A tick that frames at this rate do not fall on, such as Matroska's millisecond, would make the rate uneven.
        "time_base": info.time_base if info.time_base and (1 / info.fps / info.time_base).denominator == 1 else None,
    }
    return OutputVideo(width=info.width, height=info.height, fps=info.fps, **{**carried, **known})


def _resumable(video: str | Path) -> bool:
    return str(video) != PIPE and not is_image_folder(video) and Path(video).suffix.lower() not in ("", ".gif")


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
    audio: bool = True,
    output: dict[str, Any] | None = None,
    container: str | None = None,
    progress: Progress = no_progress,
    observe: Callable[[Array, Array], None] | None = None,
) -> Report:
    """Encodes and decodes a video in one pass, in constant memory, with its audio, timestamps and colour tags.

    Args:
        audio: copy the audio of a file, unless the output is of a kind that holds none (GIF, images, raw frames).
        observe: called with each piece of the video and of its reconstruction, both (T, H, W, 3) uint8.

    The other arguments are those of `encode_video` and `decode_video`.
    """
    _check_distinct(video, out)
    with ExitStack() as stack:
        reader = stack.enter_context(open_video(video, raw=raw, fps=fps, keep_damaged=keep_damaged))
        info = reader.info
        encoder = stack.enter_context(_encoder(bundle, info, chunk))
        decoder = stack.enter_context(bundle.decoder(height=info.height, width=info.width, chunk=chunk or _default_chunk()))
        decoder.session = _TimedSession(decoder.session)
        copied = audio and info.has_audio and info.kind == "file" and _holds_audio(out, container)
        given = {key: value for key, value in (output or {}).items() if value is not None}
        changes = {"audio_from": Path(video) if copied else None, **given}
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
        # Queued, not decoded: the last latent may hold more frames than the video has, which only `finish` is told.
        decoder.feed.push(encoder.finish()[:, :channels])
        _pass_on(decoder.finish(encoder.feed.frames_seen), waiting, sink, observe)
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
    if str(source) == PIPE:
        return _FROM_PIPE
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
    if note == _FROM_PIPE:
        raise MediaError("a job that reads a pipe cannot be resumed, since what was read is gone; give a file")
    try:
        snapshot = Snapshot.read(record)
    except StateError as error:
        raise StateError(f"{record}: {error}, without --resume") from error
    if snapshot.note != note:
        raise StateError(
            f"the interrupted job was about another source or other settings than {source}; run it without --resume to begin anew"
        )
    return snapshot


def _forget(record: Path) -> None:
    """Removes a snapshot, and one that a killed run was writing."""
    for path in (record, record.with_name(record.name + ".tmp")):
        path.unlink(missing_ok=True)


def _check_distinct(source: str | Path | None, out: str | Path) -> None:
    """Raises `MediaError` where the output would replace what it is made from."""
    if source is None or PIPE in (str(source), str(out)):
        return
    target = Path(out).parent if NUMBERED.search(Path(out).name) else Path(out)
    if target.exists() and Path(source).exists() and target.samefile(source):
        raise MediaError(f"'{out}' is the input itself ('{source}'), which would be lost; choose another name for the output")
