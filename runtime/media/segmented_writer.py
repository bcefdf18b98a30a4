"""A video file written in independent segments, so that an interrupted run can go on where it was.

Segments are encoded each on its own (the first frame a key frame, nothing refers across) into
`<name>.partial/` beside the destination:

    plan.json              what is being written; a run with other settings does not continue it
    segment-000000.nut     the encoded frames (NUT keeps any codec, and exact times on any tick)
    segment-000000.json    frame count, first and last tick; written last: it commits the segment

`finish` joins the packets without re-encoding. As every segment depends only on its own frames, a
resumed run gives the same bytes as an uninterrupted one on the same version of FFmpeg.
"""

from __future__ import annotations

import dataclasses
import heapq
import json
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from wfvae.errors import MediaError
from wfvae.files import discard_tree, remove_leftovers, temporary_name
from wfvae.runtime.media.audio_copy import AudioCopy
from wfvae.runtime.media.in_use import turn_to_close
from wfvae.runtime.media.media_failures import Failure, reported
from wfvae.runtime.media.video_encoder import (
    Clock,
    EncoderPlan,
    StreamEncoder,
    add_video_stream,
    checked_frames,
    make_reproducible,
    muxer_for,
    open_output,
)
from wfvae.runtime.media.video_info import OutputVideo
from wfvae.runtime.media.video_writer import FASTSTART, RAW, check_destination, commit
from wfvae.video.stored_pixels import RGBArray

PLAN_FILE = "plan.json"
PLAN_VERSION = "wfvae-segments/1"
SEGMENT_MUXER = "nut"


@dataclass(frozen=True)
class Segment:
    """A complete segment: how many frames, and the ticks of the first and last one in presentation
    order.
    """

    frames: int
    first_tick: int
    last_tick: int


class SegmentedVideoWriter:
    """Open with `SegmentedVideoWriter.open`. Only `finish` makes the video; leaving the `with`
    block in any other way keeps the complete segments for a later run."""

    def __init__(
        self,
        path: Path,
        info: OutputVideo,
        plan: EncoderPlan,
        muxer: str,
        segment_frames: int,
        *,
        overwrite: bool,
        origin: str = "",
    ) -> None:
        self._path, self._video, self._plan, self._muxer = path, info, plan, muxer
        self._segment_frames, self._overwrite, self._origin = segment_frames, overwrite, origin
        self._folder = path.with_name(path.name + ".partial")
        self._segments: list[Segment] = []
        self._current: _SegmentEncoder | None = None
        self._clock = Clock(info.fps, plan.time_base)
        self._open = True
        self._in_use = threading.Lock()

    @classmethod
    def open(
        cls,
        destination: str | Path,
        info: OutputVideo,
        *,
        segment_frames: int,
        resume: bool = False,
        overwrite: bool = True,
        origin: str = "",
    ) -> SegmentedVideoWriter:
        """Begin, or with `resume` continue, writing the video file `destination`.

        segment_frames: frames per segment. The last one may be shorter. resume: keep the complete
        segments of an interrupted run; go on with frame number `frames_done`. Without an
        interrupted run it
            begins afresh. False discards what an interrupted run left.
        origin: what the frames come from, in any words; a run with another origin is not continued.

        Raises `MediaError` for directories, pipes and GIF, for settings that do not fit together,
        and if the interrupted run wrote with other settings.
        """
        path = Path(destination)
        if segment_frames < 1:
            raise MediaError(f"segment_frames is {segment_frames}; give at least 1")
        if str(destination) == "-" or path.is_dir():
            raise MediaError(
                f"a resumable video is written to a file, not to '{destination}'; give a name ending in .mp4"
                " or .mkv"
            )
        muxer = muxer_for(path, None)
        if muxer in ("gif", RAW):
            raise MediaError(
                f"'{destination}' cannot be written in segments; give a name ending in .mp4 or .mkv, or write"
                " it in one go"
            )
        check_destination(path, overwrite=overwrite)
        writer = cls(
            path, info, EncoderPlan.of(info, muxer), muxer, segment_frames, overwrite=overwrite, origin=origin
        )
        remove_leftovers(path)
        remove_leftovers(writer._folder)
        with reported(f"preparing '{writer._folder}'"):
            writer._check_output()
            writer._prepare(resume=resume)
        return writer

    @property
    def frames_done(self) -> int:
        """Frames in complete segments: what survives an interruption, and the index at which to go
        on after `open(resume=True)`.
        """
        return sum(segment.frames for segment in self._segments)

    @property
    def folder(self) -> Path:
        """The working directory."""
        return self._folder

    def __enter__(self) -> SegmentedVideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, frames: npt.NDArray[np.uint8], times: Sequence[Fraction] | None = None) -> None:
        """Append `frames`, uint8 (T, H, W, 3), with T presentation times or none, as
        `VideoWriter.write`.

        Calls need not end at segment boundaries, and how the frames are split over calls does not
        change the file.
        """
        self._require_open()
        checked_frames(frames, times, self._video)
        with reported(f"writing '{self._folder}'"):
            for index, frame in enumerate(frames):
                with self._in_use:
                    self._write(frame, None if times is None else times[index])

    def _write(self, frame: RGBArray, time: Fraction | None) -> None:
        self._require_open()
        tick = self._clock.advance(time)
        if self._current is None:
            self._current = _SegmentEncoder(self._segment_path(len(self._segments)), self._video, self._plan)
        self._current.write(frame, tick)
        if self._current.frames == self._segment_frames:
            self._complete_segment()

    def finish(self) -> None:
        """Join the segments, add the audio, give the video its name and remove the working
        directory.

        If this is interrupted, everything needed to do it again is still there.
        """
        if not self._open:
            raise MediaError(f"'{self._path}' is closed; open it again with resume=True to finish it")
        if self._current is None and not self._segments:
            raise MediaError(
                f"no frames were written to '{self._path}'; write at least one frame before finishing"
            )
        with reported(f"finishing '{self._path}'"):
            if self._current is not None:
                self._complete_segment()
            self._join()
            self._open = False
            discard_tree(self._folder)

    def close(self) -> None:
        """Drop the segment in progress, keep the complete ones. Does nothing after `finish`. Safe
        while another thread writes: after the frame that it is writing."""
        self._open = False
        with turn_to_close(self._in_use) as safe:
            if safe and self._current is not None:
                self._current.abort()
                self._current = None

    def _require_open(self) -> None:
        if not self._open:
            raise MediaError(f"'{self._path}' is closed; open it again with resume=True to write more")

    def _complete_segment(self) -> None:
        assert self._current is not None
        current, self._current = self._current, None
        self._segments.append(current.finish())

    def _segment_path(self, index: int) -> Path:
        return self._folder / f"segment-{index:06d}.nut"

    def _check_output(self) -> None:
        """Open the final container once, empty, so that a codec or audio it cannot hold fails
        before hours of work.
        """
        probe = temporary_name(self._path, "probe")
        try:
            container, _, audio = self._open_output(probe)
            _close_quietly(container, audio)
        finally:
            probe.unlink(missing_ok=True)

    def _open_output(self, target: Path) -> tuple[Any, Any, AudioCopy | None]:
        """The container and its video stream, set up exactly as if it encoded, so that headers
        agree with the segments' packets.
        """
        container = open_output(
            f"file:{target}", self._muxer, FASTSTART if self._muxer in ("mp4", "mov") else {}
        )
        audio: AudioCopy | None = None
        try:
            make_reproducible(container)
            stream = add_video_stream(container, self._video, self._plan)
            if self._video.audio_from is not None:
                audio = AudioCopy(self._video.audio_from, container, self._video.audio_end)
            container.start_encoding()
        except BaseException:
            _close_quietly(container, audio)
            raise
        return container, stream, audio

    def _prepare(self, *, resume: bool) -> None:
        plan = self._plan_text()
        plan_path = self._folder / PLAN_FILE
        if resume and plan_path.exists():
            self._check_plan(plan_path.read_text(encoding="utf-8"), plan)
            self._load_segments()
            return
        if self._folder.exists():
            self._check_is_ours()
            discard_tree(self._folder)
        self._folder.mkdir()
        _write_text(plan_path, plan)

    def _check_is_ours(self) -> None:
        strange = [
            entry.name
            for entry in os.scandir(self._folder)
            if entry.name != PLAN_FILE and "segment-" not in entry.name and PLAN_FILE not in entry.name
        ]
        if strange or not self._folder.is_dir():
            raise MediaError(
                f"'{self._folder}' holds files that are not segments ('{strange[0]}'); move them away or"
                " choose another destination"
            )

    def _plan_text(self) -> str:
        settings = dataclasses.asdict(self._plan) | {
            "version": PLAN_VERSION,
            "origin": self._origin,
            "size": [self._video.width, self._video.height],
            "fps": str(self._video.fps),
            "threads": self._video.threads,
            "segment_frames": self._segment_frames,
            "ffmpeg": [
                list(av.library_versions[name]) for name in ("libavcodec", "libavformat", "libswscale")
            ],
        }
        return json.dumps(settings, indent=1, sort_keys=True, default=str)

    def _check_plan(self, found: str, expected: str) -> None:
        try:
            old, new = json.loads(found), json.loads(expected)
            different = [key for key in sorted(set(old) | set(new)) if old.get(key) != new.get(key)]
        except (ValueError, AttributeError):
            different = ["everything: plan.json is unreadable"]
        if different:
            raise MediaError(
                f"'{self._folder}' was begun with other settings ({', '.join(different)}); give the same, or"
                " start over without resuming"
            )

    def _load_segments(self) -> None:
        """Take over the full segments from the front, remove all other files. A short last one is
        encoded again: more may follow it.
        """
        while (
            segment := _read_segment(self._segment_path(len(self._segments)))
        ) and segment.frames == self._segment_frames:
            self._segments.append(segment)
        keep = {PLAN_FILE}
        for index in range(len(self._segments)):
            path = self._segment_path(index)
            keep |= {path.name, path.with_suffix(".json").name}
        for entry in os.scandir(self._folder):
            if entry.name not in keep:
                os.unlink(entry.path)
        if self._segments:
            self._clock.resume(self.frames_done, self._segments[-1].last_tick)

    def _join(self) -> None:
        check_destination(self._path, overwrite=self._overwrite)
        partial = temporary_name(self._path)
        container, stream, audio = None, None, None
        try:
            container, stream, audio = self._open_output(partial)
            for packet in self._packets(stream):
                container.mux_one(packet)
                if audio is not None:
                    audio.advance(packet.dts * self._plan.time_base)
            if audio is not None:
                audio.advance(None)
                audio.close()
            container.close()
            commit(partial, self._path)
        except BaseException:
            _close_quietly(container, audio)
            partial.unlink(missing_ok=True)
            raise

    def _packets(self, stream: Any) -> Iterator[Any]:
        """The packets of all segments in coding order, on the output's tick, with decoding times.

        With a reordering depth of d, packet i is decoded when the (i - d)-th frame in presentation
        order is shown; d ticks of lead-in come before the first. A heap of d + 1 stamps finds these
        in one pass.
        """
        depth = max(0, stream.codec_context.reorder_depth)
        step = max(1, round(1 / self._video.fps / self._plan.time_base))
        shown: list[int] = []
        duration = step
        for index, segment in enumerate(self._segments):
            for packet in self._segment_packets(index, segment):
                heapq.heappush(shown, packet.pts)
                lead = depth + 1 - len(shown)
                packet.dts = self._segments[0].first_tick - lead * step if lead > 0 else heapq.heappop(shown)
                packet.duration, packet.stream = duration, stream
                yield packet

    def _segment_packets(self, index: int, segment: Segment) -> Iterator[Any]:
        path = self._segment_path(index)
        with av.open(f"file:{path}", "r", format=SEGMENT_MUXER) as container:
            packets = [packet for packet in container.demux(container.streams.video[0]) if packet.size]
            if len(packets) != segment.frames:
                raise MediaError(
                    f"segment '{path}' holds {len(packets)} of {segment.frames} frames; it was changed, start"
                    " over without resuming"
                )
            # NUT shifts a segment so that no time is negative, and refines the tick; its first
            # frame's tick is known, so both are undone.
            scale = Fraction(packets[0].time_base) / self._plan.time_base
            shift = segment.first_tick - min(_stamp(packet) for packet in packets) * scale
            for packet in packets:
                packet.pts = int(_stamp(packet) * scale + shift)
                packet.time_base = self._plan.time_base
                yield packet


def _stamp(packet: Any) -> int:
    if packet.pts is None:
        raise MediaError(
            "a segment holds a frame without a time; it was changed, start over without resuming"
        )
    return int(packet.pts)


class _SegmentEncoder:
    """One segment in the making, under a temporary name."""

    def __init__(self, path: Path, video: OutputVideo, plan: EncoderPlan) -> None:
        self._path, self._partial = path, path.with_name(f".{path.name}.part")
        self._container = open_output(f"file:{self._partial}", SEGMENT_MUXER, {})
        try:
            make_reproducible(self._container)
            self._encoder = StreamEncoder(
                self._container, add_video_stream(self._container, video, plan), video, plan
            )
        except BaseException:
            self.abort()
            raise
        self.frames = 0
        self._first = self._last = 0

    def write(self, frame: npt.NDArray[np.uint8], tick: int) -> None:
        if self.frames == 0:
            self._first = tick
        self._last = tick
        self.frames += 1
        self._encoder.encode(frame, tick)

    def finish(self) -> Segment:
        """Close, rename, then commit by writing the description."""
        try:
            self._encoder.flush()
            self._container.close()
            commit(self._partial, self._path)
            segment = Segment(self.frames, self._first, self._last)
            _write_text(self._path.with_suffix(".json"), json.dumps(dataclasses.asdict(segment)))
        except BaseException:
            self.abort()
            raise
        return segment

    def abort(self) -> None:
        _close_quietly(self._container, None)
        self._partial.unlink(missing_ok=True)


def _read_segment(path: Path) -> Segment | None:
    """The description of the segment at `path`; None if it is not complete."""
    try:
        return (
            Segment(**json.loads(path.with_suffix(".json").read_text(encoding="utf-8")))
            if path.exists()
            else None
        )
    except (OSError, ValueError, TypeError):
        return None


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(text, encoding="utf-8")
    commit(partial, path)


def _close_quietly(container: Any, audio: AudioCopy | None) -> None:
    """Release both while another failure is on its way, or while the file is thrown away."""
    if audio is not None:
        audio.close()
    if container is not None:
        try:
            container.close()
        except Failure:
            return
