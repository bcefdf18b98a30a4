"""A folder of videos as a source of clips."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np

from wfvae.errors import DataError
from wfvae.train.data.clip_source import BadClip, Clip, ShortClip
from wfvae.train.data.frame_pixels import PixelReader
from wfvae.train.data.video_container import UnusableError, refused
from wfvae.train.data.video_frames import frames_from, share_of_time
from wfvae.train.data.video_index import index_folder
from wfvae.train.data.video_probe import VideoFacts
from wfvae.train.strides import Strides, strides_complaint
from wfvae.video.suffixes import VIDEO_SUFFIXES

__all__ = ["VideoFolder"]

_MISCOUNT = 16
"""Frames by which a container may count too many (edit lists, encoder delay)."""
_WHOLE = 0.9
"""Share of its time that a whole file has at least; if its last frame stands for longer than the
rest, it is taken for one cut short.
"""


class VideoFolder:
    """All videos below a folder. A clip begins at a random frame and is resized to cover `size` and
    centre-cropped.

    Attributes:
        unusable: the files left out for good, with the reasons: undecodable ones and those with too
            few frames.
    """

    def __init__(
        self,
        root: Path | str,
        frames: int,
        size: tuple[int, int],
        stride: int = 1,
        *,
        min_stride: int = 0,
        stills: float = 0.0,
        index_path: Path | str,
        progress: Callable[[int, int], None] | None = None,
        retry_bad: bool = True,
    ) -> None:
        """Index the folder, see `video_index.index_folder`. With an index of before only what
        changed or was bad is opened.

        Args:
            root: the folder, searched with all folders below it.
            frames: frames per clip, >= 1.
            size: (height, width) of the clips in pixels, each >= 1.
            stride: every stride-th frame is taken, >= 1; 2 halves the frame rate.
            min_stride: each clip draws its stride from this to `stride`, both included; 0 for
                `stride` always.
            stills: share of the clips that show one frame all the time, 0..1. They, too, are of
                videos that are long enough for the others.
            index_path: JSON file of the index, outside of `root`, such as in the run's folder.
            progress: is given (files looked at, files in all) while the folder is indexed.
            retry_bad: open files again that the index says are bad.

        Raises:
            DataError: an argument is outside its range, there are no videos, none can be used, or
                the index cannot be written.
        """
        for what, value in (("frames", frames), ("stride", stride), ("height", size[0]), ("width", size[1])):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise DataError(f"{what} of the clips is {value!r}; expected an integer of at least 1")
        if wrong := strides_complaint(stride, min_stride, stills):
            raise DataError(wrong)
        self.root, self.frames, self.size = Path(root), frames, (size[0], size[1])
        self.strides = Strides(stride, min_stride or stride, float(stills))
        files = index_folder(self.root, Path(index_path), progress, retry_bad=retry_bad)
        if not files:
            raise DataError(
                f"no videos below '{root}'; expected files ending in {', '.join(sorted(VIDEO_SUFFIXES))}"
            )
        self._videos: list[tuple[str, VideoFacts]] = []
        unusable = []
        for file in files:
            if file.facts is None:
                unusable.append(BadClip(file.path, file.reason))
            elif file.facts.frames < self.span:
                unusable.append(ShortClip(file.path, self._too_short(file.facts.frames)))
            else:
                self._videos.append((file.path, file.facts))
        self.unusable: tuple[BadClip, ...] = tuple(unusable)
        if not self._videos:
            raise DataError(
                f"none of the {len(files)} video files below '{root}' can be used; the first is {unusable[0]}"
            )

    @property
    def span(self) -> int:
        """Frames of a video from the first to the last one of a clip of the largest stride, both
        included.
        """
        return self._span(self.strides.largest)

    def __len__(self) -> int:
        return len(self._videos)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the paths and lengths of the usable videos."""
        listed = "\n".join(f"{path}\t{facts.frames}" for path, facts in self._videos)
        return hashlib.sha256(
            listed.encode("utf-8", "surrogateescape")
        ).hexdigest()  # names of files may be any bytes

    def name(self, index: int) -> str:
        """The path relative to the folder."""
        return self._videos[index][0]

    def clip(self, index: int, rng: np.random.Generator) -> Clip:
        """(T, H, W, 3) uint8 RGB, from a frame and with a stride that `rng` chooses; see
        `ClipSource.clip`.
        """
        name, facts = self._videos[index]
        stride = self.strides.draw(rng)
        start = int(rng.integers(facts.frames - self._span(stride) + 1))
        with refused(name):
            clip, missing = self._read(name, facts, start, stride)
            if missing > _MISCOUNT and share_of_time(self.root / name, facts) < _WHOLE:
                raise UnusableError(
                    f"it ends before {_WHOLE:.0%} of the time that its header promises; it may be cut short"
                    " or damaged"
                )
            back = 0
            # Containers count too many, and where the frame rate varies fewer frames may follow
            # than its mean promises. The frame from which on there are enough is not known.
            while missing and start:
                back = max(missing, 2 * back)
                start = max(start - back, 0)
                clip, missing = self._read(name, facts, start, stride)
            if missing:
                raise UnusableError(
                    f"it has {self._span(stride) - missing} frames, and its header promises {facts.frames};"
                    " it may be cut short or damaged"
                )
            return clip

    def _span(self, stride: int) -> int:
        return (self.frames - 1) * stride + 1

    def _read(self, name: str, facts: VideoFacts, start: int, stride: int) -> tuple[Clip, int]:
        """The clip from frame `start` on, and how many frames of the video were missing at the end."""
        clip = np.empty((self.frames, *self.size, 3), np.uint8)
        pixels = PixelReader(facts.codec, self.size)
        span, passed = self._span(stride), 0
        with closing(frames_from(self.root / name, facts, start)) as frames:
            for frame in islice(frames, span):
                if not stride:
                    clip[:] = pixels.read(frame)
                elif passed % stride == 0:
                    clip[passed // stride] = pixels.read(frame)
                passed += 1
        return clip, span - passed

    def _too_short(self, frames: int) -> str:
        stride = self.strides.largest
        strided = f" with a stride of {stride}" if stride > 1 else ""
        return f"it has {frames} frames, too few for {self.frames}{strided} (expected {self.span} or more)"
