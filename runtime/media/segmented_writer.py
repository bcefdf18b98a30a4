"""Writing a video file in segments, so that an interrupted run can be resumed.

As every segment depends only on its own frames, a resumed run gives the bytes of an uninterrupted
one on the same version of FFmpeg.
"""

import heapq
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from wfvae.errors import MediaError
from wfvae.files import Destination, check_destination, remove_leftovers
from wfvae.runtime.media.encoder_check import checked_plan
from wfvae.runtime.media.encoder_plan import muxer_for
from wfvae.runtime.media.encoding import Clock
from wfvae.runtime.media.failures import translated
from wfvae.runtime.media.output_container import OutputFile
from wfvae.runtime.media.segments import SegmentFolder
from wfvae.runtime.media.video_info import OutputVideo
from wfvae.runtime.media.video_writer import FrameWriter, video_destination
from wfvae.video.stored_pixels import RGBArray


class SegmentedVideoWriter(FrameWriter):
    """Writes the video file `destination`. Only `finish` makes the video.

    Leaving the `with` block without it keeps the complete segments for a later run. How frames are
    split over calls of `write` does not change the file.

    Args:
        destination: locked until the writer is closed, unless the caller holds a `Destination`.
        segment_frames: frames per segment. The last one may be shorter.
        resume: keep the complete segments of an interrupted run, if there is one, and continue with
            frame number `frames_done`. False discards them.
        origin: what the frames depend on, by name; a run with another origin is not continued.

    Raises:
        ResourceError: another job writes there.
        MediaError: a directory, a pipe or GIF, settings that do not fit together, or an interrupted
            run with other settings.
    """

    _REOPEN = "open it again with resume=True"

    def __init__(
        self,
        destination: str | Path | Destination,
        video: OutputVideo,
        *,
        segment_frames: int,
        resume: bool = False,
        overwrite: bool = True,
        origin: Mapping[str, str] | None = None,
    ) -> None:
        given = destination if isinstance(destination, Destination) else None
        path = Path(destination) if not isinstance(destination, Destination) else destination.path
        super().__init__(video, str(path))
        self._path, self._overwrite = path, overwrite
        self._muxer = self._checked_muxer(segment_frames)
        self._plan = checked_plan(video, self._muxer)
        self._clock = Clock.of(video, self._plan)
        self._destination = video_destination(path, overwrite) if given is None else given.part()
        try:
            folder = self._destination.part(".partial")
            self.folder = folder.path
            self._segments = SegmentFolder(folder, video, self._plan, segment_frames, origin or {})
            with translated(f"preparing '{self.folder}'"):
                self._prepare(folder, resume=resume)
        except BaseException:
            self._destination.release()
            raise

    @property
    def notices(self) -> tuple[str, ...]:
        """What of the video is not in the output, a phrase each."""
        return self._plan.left_out

    @property
    def frames_done(self) -> int:
        """Frames in complete segments, which survive an interruption."""
        return sum(segment.frames for segment in self._segments.segments)

    def finish(self) -> None:
        """Joins the packets of all segments, adds the audio and removes the working directory.

        If this is interrupted, everything needed to repeat it still exists.
        """
        self._require_open()
        with translated(f"finishing '{self._path}'"):
            self._segments.complete()
            if not self._segments.segments:
                problem = f"no frames were written to '{self._path}'"
                raise MediaError(f"{problem}; write at least one frame before finishing")
            check_destination(self._path, overwrite=self._overwrite, error=MediaError)
            self._join()
            self._open = False
            self._segments.remove()

    def close(self) -> None:
        """Drops the incomplete segment and keeps the others. Safe while another thread writes."""
        self._stop()
        self._destination.release()

    def _checked_muxer(self, segment_frames: int) -> str:
        if segment_frames < 1:
            raise MediaError(f"segment_frames is {segment_frames}; give at least 1")
        name = self._name
        if name == "-" or self._path.is_dir() or (muxer := muxer_for(self._path)) == "gif":
            problem = f"a resumable video is a file of segments, not '{name}'"
            raise MediaError(f"{problem}; give a name ending in .mp4 or .mkv")
        check_destination(self._path, overwrite=self._overwrite, error=MediaError)
        return muxer

    def _prepare(self, folder: Destination, *, resume: bool) -> None:
        # An empty file, so that a codec or audio that does not fit fails before hours of work.
        OutputFile(self._destination.part(), self._muxer, self._video, self._plan).abort()
        remove_leftovers(folder)
        if not (resume and self._segments.resume()):
            self._segments.create()
        if segments := self._segments.segments:
            self._clock.resume(self.frames_done, segments[-1].last_tick)

    def _write(self, frame: RGBArray, time: Fraction | None) -> None:
        tick = self._clock.advance(time)
        if tick is None:
            problem = f"frame at {time} s comes too soon after the one before it for a tick of"
            raise MediaError(f"{problem} {self._plan.time_base} s; give times on that tick")
        self._segments.write(frame, tick)

    def _discard(self) -> None:
        self._segments.abort()

    def _join(self) -> None:
        output = OutputFile(self._destination.part(), self._muxer, self._video, self._plan)
        try:
            for packet in self._timed_packets(output.reorder_depth):
                output.mux(packet)
            output.close()
        except BaseException:
            output.abort()
            raise

    def _timed_packets(self, depth: int) -> Iterator[Any]:
        """Yields the packets of all segments with decoding times.

        With a reordering depth of d, packet i is decoded when the (i - d)-th frame in presentation
        order is shown; d ticks of lead-in come before the first. A heap of d + 1 stamps finds these
        in one pass.
        """
        step = max(1, round(1 / self._video.fps / self._plan.time_base))
        first = self._segments.segments[0].first_tick
        shown: list[int] = []
        for packet in self._segments.packets():
            heapq.heappush(shown, packet.pts)
            lead = depth + 1 - len(shown)
            packet.dts = first - lead * step if lead > 0 else heapq.heappop(shown)
            packet.duration = step
            yield packet
