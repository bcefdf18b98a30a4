"""The segments of an unfinished video, in the directory `<name>.partial/` beside it.

    plan.json              what is being written; a run with other settings does not continue it
    segment-000000.nut     the encoded frames (NUT holds any codec, and exact times on any tick)
    segment-000000.json    frame count, first and last tick; written last, so it commits the segment

Each segment is encoded on its own: its first frame is a key frame and nothing refers to others.
"""

import dataclasses
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from wfvae.errors import MediaError
from wfvae.files import discard_tree, write_whole
from wfvae.runtime.media.encoder_plan import EncoderPlan
from wfvae.runtime.media.output_container import OutputFile
from wfvae.runtime.media.video_info import OutputVideo
from wfvae.video.stored_pixels import RGBArray

PLAN_FILE = "plan.json"
PLAN_VERSION = "wfvae-segments/1"
LIBRARIES = ("libavcodec", "libavformat", "libswscale")
SEGMENT_MUXER = "nut"


@dataclass(frozen=True)
class Segment:
    """A complete segment: its frames, and the ticks of the first and the last one shown."""

    frames: int
    first_tick: int
    last_tick: int


class SegmentFolder:
    """The working directory of a video. `segments` are complete; one more is in progress."""

    def __init__(self, path: Path, video: OutputVideo, plan: EncoderPlan, frames: int, origin: str) -> None:
        self.path = path
        self.segments: list[Segment] = []
        self._video, self._plan = dataclasses.replace(video, audio_from=None), plan
        self._segment_frames, self._origin = frames, origin
        self._output: OutputFile | None = None
        self._ticks: list[int] = []

    def create(self) -> None:
        """Begins an empty directory. Removes an older one, if it holds nothing but segments."""
        if self.path.exists():
            self._require_only_segments()
            discard_tree(self.path)
        self.path.mkdir()
        write_whole(self.path / PLAN_FILE, json.dumps(self._settings(), indent=1, sort_keys=True))

    def resume(self) -> bool:
        """Loads the full segments of an interrupted run. Returns whether there was such a run.

        All other files are removed; a short last segment is encoded again, since more may follow.
        """
        plan = self.path / PLAN_FILE
        if not plan.exists():
            return False
        self._require_same_settings(plan.read_text(encoding="utf-8"))
        keep = {PLAN_FILE}
        while (segment := self._load(len(self.segments))) and segment.frames == self._segment_frames:
            path = self._path_of(len(self.segments))
            keep |= {path.name, path.with_suffix(".json").name}
            self.segments.append(segment)
        for entry in os.scandir(self.path):
            if entry.name not in keep:
                os.unlink(entry.path)
        return True

    def write(self, frame: RGBArray, tick: int) -> None:
        """Encodes one frame (H, W, 3), shown at `tick`, and completes a segment that is full."""
        if self._output is None:
            path = self._path_of(len(self.segments))
            self._output, self._ticks = OutputFile(path, SEGMENT_MUXER, self._video, self._plan), []
        self._ticks.append(tick)
        self._output.encode(frame, tick)
        if len(self._ticks) == self._segment_frames:
            self.complete()

    def complete(self) -> None:
        if self._output is None:
            return
        path = self._path_of(len(self.segments))
        try:
            self._output.finish()
        except BaseException:
            self.abort()
            raise
        self._output = None
        segment = Segment(len(self._ticks), self._ticks[0], self._ticks[-1])
        write_whole(path.with_suffix(".json"), json.dumps(dataclasses.asdict(segment)))
        self.segments.append(segment)

    def abort(self) -> None:
        output, self._output = self._output, None
        if output is not None:
            output.abort()

    def packets(self) -> Iterator[Any]:
        """Yields the packets of all segments in coding order, on the tick of the plan."""
        for index, segment in enumerate(self.segments):
            path = self._path_of(index)
            with av.open(f"file:{path}", "r", format=SEGMENT_MUXER) as container:
                stream = container.streams.video[0]
                packets: list[Any] = [packet for packet in container.demux(stream) if packet.size]
                timed = sum(packet.pts is not None for packet in packets)
                if not timed == len(packets) == segment.frames:
                    problem = f"segment '{path}' holds {timed} of {segment.frames} frames"
                    raise MediaError(f"{problem}; it was changed, start over without resuming")
                # NUT shifts a segment so that no time is negative, and refines the tick. Both are
                # undone, since the tick of the first frame is known.
                scale = Fraction(packets[0].time_base) / self._plan.time_base
                shift = segment.first_tick - min(packet.pts for packet in packets) * scale
                for packet in packets:
                    packet.pts = int(packet.pts * scale + shift)
                    packet.time_base = self._plan.time_base
                    yield packet

    def _path_of(self, index: int) -> Path:
        return self.path / f"segment-{index:06d}.nut"

    def _load(self, index: int) -> Segment | None:
        """Reads the description of a segment; None if it is not complete."""
        path = self._path_of(index)
        try:
            text = path.with_suffix(".json").read_text(encoding="utf-8")
            return Segment(**json.loads(text)) if path.exists() else None
        except (OSError, ValueError, TypeError):
            return None

    def _settings(self) -> dict[str, Any]:
        """Everything that the encoded bytes depend on."""
        settings = dataclasses.asdict(self._plan) | {
            "version": PLAN_VERSION,
            "origin": self._origin,
            "size": [self._video.width, self._video.height],
            "fps": self._video.fps,
            "threads": self._video.threads,
            "segment_frames": self._segment_frames,
            "ffmpeg": [list(av.library_versions[name]) for name in LIBRARIES],
        }
        as_stored: dict[str, Any] = json.loads(json.dumps(settings, default=str))
        return as_stored

    def _require_same_settings(self, text: str) -> None:
        new = self._settings()
        try:
            old = json.loads(text)
            different = [key for key in sorted(set(old) | set(new)) if old.get(key) != new.get(key)]
        except (ValueError, AttributeError):
            different = ["everything: plan.json is unreadable"]
        if different:
            problem = f"'{self.path}' was begun with other settings ({', '.join(different)})"
            raise MediaError(f"{problem}; give the same, or start over without resuming")

    def _require_only_segments(self) -> None:
        names = [entry.name for entry in os.scandir(self.path)]
        foreign = [name for name in names if "segment-" not in name and PLAN_FILE not in name]
        if foreign:
            problem = f"'{self.path}' holds files that are not segments ('{foreign[0]}')"
            raise MediaError(f"{problem}; move them away or choose another destination")
