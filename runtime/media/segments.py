"""The segments of an unfinished video, in the directory `<name>.partial/` beside it.

    plan.json              what is being written; a run with other settings does not continue it
    segment-000000.nut     the encoded frames (NUT holds exact times on any tick, and most codecs;
                           .mov for those that it does not)
    segment-000000.json    frame count, first and last tick, hashes; written last, so it commits
                           the segment

Each segment is encoded on its own: its first frame is a key frame and nothing refers to others. The
hashes make the segments one chain that begins with the plan, so that none can be changed, swapped
or taken from another video.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import msgspec

from wfvae.errors import MediaError
from wfvae.files import LEFTOVER, Destination, discard, remove_own, require_own, write_whole
from wfvae.runtime.media.encoder_plan import EncoderPlan, can_hold
from wfvae.runtime.media.output_container import OutputFile
from wfvae.runtime.media.video_info import OutputVideo
from wfvae.spec.bounded import read_json
from wfvae.spec.manifest import file_sha256
from wfvae.spec.records import name_differences, read_as
from wfvae.video.stored_pixels import RGBArray

PLAN_FILE = "plan.json"
PLAN_VERSION = "wfvae-segments/2"
LIBRARIES = ("libavcodec", "libavformat", "libswscale")
SEGMENT_MUXERS = ("nut", "mov")
"""In order of preference; a segment's ending is the muxer's name."""
_NAMES = rf"plan\.json|segment-\d{{6,}}\.({'|'.join(SEGMENT_MUXERS)}|json)"


class Segment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A complete segment."""

    frames: int
    first_tick: int
    last_tick: int
    """Ticks of the first and the last frame shown."""
    sha256: str
    """Of the file with the encoded frames."""
    chain: str
    """Of the chain of the segment before (the first one: of the plan), and of all of the above."""

    def follows(self, before: str) -> bool:
        """Whether this segment comes after the one whose chain is `before`, and is unchanged."""
        return self.chain == _chain(before, self.frames, self.first_tick, self.last_tick, self.sha256)


def _chain(*values: object) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


class SegmentFolder:
    """The working directory of a video. `segments` are complete; one more is in progress."""

    def __init__(
        self,
        folder: Destination,
        video: OutputVideo,
        plan: EncoderPlan,
        frames: int,
        origin: Mapping[str, str],
    ) -> None:
        self._folder, self.path = folder, folder.path
        self.segments: list[Segment] = []
        self._video, self._plan = dataclasses.replace(video, audio_from=None), plan
        self._segment_frames, self._origin = frames, origin
        self._muxer = next((one for one in SEGMENT_MUXERS if can_hold(one, plan.codec)), SEGMENT_MUXERS[0])
        self._output: OutputFile | None = None
        self._ticks: list[int] = []

    def create(self) -> None:
        """Begins an empty directory. Removes an older one, if it holds nothing but segments."""
        self.remove()
        self.path.mkdir()
        write_whole(self._in(PLAN_FILE), json.dumps(self._settings(), indent=1, sort_keys=True))

    def resume(self) -> bool:
        """Loads the full segments of an interrupted run. Returns whether there was such a run.

        What is incomplete is removed; a short last segment is encoded again, since more may follow.

        Raises:
            MediaError: the run had other settings, or a segment was changed.
            ResourceError: the directory holds something else than segments, or is a link.
        """
        require_own(self.path, _is_own)
        plan = self.path / PLAN_FILE
        if not plan.exists():
            return False
        self._require_same_settings(plan)
        while (segment := self._load(len(self.segments))) and segment.frames == self._segment_frames:
            self.segments.append(segment)
        keep = {PLAN_FILE}
        for index in range(len(self.segments)):
            keep |= {self._path_of(index).name, self._path_of(index).with_suffix(".json").name}
        for entry in self.path.iterdir():
            if entry.name not in keep and _is_own(entry.name):
                discard(entry)
        return True

    def remove(self) -> None:
        """Removes the directory. Raises `ResourceError` if it is a link, or holds other files."""
        remove_own(self._folder, _is_own)

    def write(self, frame: RGBArray, tick: int) -> None:
        """Encodes one frame (H, W, 3), shown at `tick`, and completes a segment that is full."""
        if self._output is None:
            path = self._path_of(len(self.segments))
            place = self._in(path.name)
            self._output, self._ticks = OutputFile(place, self._muxer, self._video, self._plan), []
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
        values = (len(self._ticks), self._ticks[0], self._ticks[-1], file_sha256(path))
        segment = Segment(*values, _chain(self._last_chain(), *values))
        write_whole(self._in(path.with_suffix(".json").name), msgspec.json.encode(segment))
        self.segments.append(segment)

    def abort(self) -> None:
        output, self._output = self._output, None
        if output is not None:
            output.abort()

    def packets(self) -> Iterator[Any]:
        """Yields the packets of all segments in coding order, on the tick of the plan."""
        for index, segment in enumerate(self.segments):
            path = self._path_of(index)
            self._require_unchanged(index, segment)
            with av.open(f"file:{path}", "r", format=self._muxer) as container:
                stream = container.streams.video[0]
                packets: list[Any] = [packet for packet in container.demux(stream) if packet.size]
                timed = sum(packet.pts is not None for packet in packets)
                if not timed == len(packets) == segment.frames:
                    raise _changed(path, f"it holds {timed} of {segment.frames} frames")
                # The muxer shifts a segment so that no time is negative, and refines the tick. Both
                # are undone, since the tick of the first frame is known.
                scale = Fraction(packets[0].time_base) / self._plan.time_base
                shift = segment.first_tick - min(packet.pts for packet in packets) * scale
                for packet in packets:
                    packet.pts = int(packet.pts * scale + shift)
                    packet.time_base = self._plan.time_base
                    yield packet

    def _path_of(self, index: int) -> Path:
        return self.path / f"segment-{index:06d}.{self._muxer}"

    def _in(self, name: str) -> Destination:
        """Returns a place in the directory, which the video's lock covers."""
        return Destination(self.path / name, owner=self._folder)

    def _load(self, index: int) -> Segment | None:
        """Reads the description of a segment; None if it is not complete.

        Raises:
            MediaError: it, or the segment, was changed.
        """
        path = self._path_of(index).with_suffix(".json")
        if not path.exists():
            return None

        def fail(problem: str) -> MediaError:
            return _changed(path, problem)

        segment = read_as(Segment, read_json(path, fail), fail)
        self._require_unchanged(index, segment)
        return segment

    def _require_unchanged(self, index: int, segment: Segment) -> None:
        path = self._path_of(index)
        if not segment.follows(self._last_chain(index)):
            raise _changed(path.with_suffix(".json"), "its hash differs")
        try:
            found = file_sha256(path)
        except FileNotFoundError as error:
            raise _changed(path, "it is missing") from error
        if found != segment.sha256:
            raise _changed(path, "its hash differs")

    def _last_chain(self, index: int | None = None) -> str:
        """Returns the chain of the segment before number `index`, by default of the last one."""
        before = self.segments[:index]
        return before[-1].chain if before else _chain(json.dumps(self._settings(), sort_keys=True))

    def _settings(self) -> dict[str, Any]:
        """Everything that the encoded bytes depend on."""
        settings = dataclasses.asdict(self._plan) | {
            "version": PLAN_VERSION,
            "origin": dict(self._origin),
            "size": [self._video.width, self._video.height],
            "fps": self._video.fps,
            "start": self._video.start,
            "threads": self._video.threads,
            "segment_frames": self._segment_frames,
            "ffmpeg": [list(av.library_versions[name]) for name in LIBRARIES],
        }
        as_stored: dict[str, Any] = json.loads(json.dumps(settings, default=str))
        return as_stored

    def _require_same_settings(self, plan: Path) -> None:
        old = read_json(plan, lambda problem: _changed(plan, problem))
        if different := name_differences(_flat(old), _flat(self._settings())):
            problem = f"'{self.path}' was begun with other settings: {'; '.join(different)}"
            raise MediaError(f"{problem}; give the same, or start over without resuming")


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    origin = settings.get("origin")
    return {**settings, **origin, "origin": None} if isinstance(origin, dict) else dict(settings)


def _is_own(name: str) -> bool:
    return re.fullmatch(rf"{_NAMES}|\.({_NAMES}){LEFTOVER}", name) is not None


def _changed(path: Path, problem: str) -> MediaError:
    return MediaError(f"'{path}' was changed after it was written: {problem}; start over without resuming")
