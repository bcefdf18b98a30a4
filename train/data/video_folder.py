"""A folder of videos as a source of clips."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np

from wfvae.errors import DataError
from wfvae.train.data.clip_source import BadClip, Clip, ClipSource, ShortClip
from wfvae.train.data.frame_pixels import PixelReader
from wfvae.train.data.video_container import UnusableError, refused
from wfvae.train.data.video_frames import frames_from, share_of_time
from wfvae.train.data.video_index import index_folder
from wfvae.train.data.video_probe import VideoFacts
from wfvae.train.strides import Strides
from wfvae.video import VIDEO_SUFFIXES

_MISCOUNT = 16
"""Frames by which a container may count too many (edit lists, encoder delay)."""
_WHOLE = 0.9
"""Share of its stated time that a whole file has at least."""


class VideoFolder(ClipSource):
    """All videos below a folder. A clip begins at a random frame, is resized and centre-cropped.

    Args:
        root: the folder, searched with all folders below it.
        frames: frames per clip.
        size: (height, width) of the clips in pixels.
        stride: every stride-th frame is taken; 2 halves the frame rate.
        min_stride: each clip draws its stride from this to `stride`; 0 for `stride` always.
        stills: share of the clips that show one frame all the time.
        index_path: JSON file of the index, outside of `root`; see `index_folder`.
        progress: is given (files probed, files in all) while the folder is indexed.
        retry_bad: probe files again that the index lists as bad.

    Raises:
        DataError: there are no videos, or none can be used.
        ResourceError: the index cannot be written.
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
        self.root, self.frames, self.size = Path(root), frames, size
        self.strides = Strides(stride, min_stride or stride, stills)
        files = index_folder(self.root, Path(index_path), progress, retry_bad=retry_bad)
        if not files:
            raise DataError(
                f"no videos below '{root}'; expected files ending in {', '.join(sorted(VIDEO_SUFFIXES))}"
            )
        self._videos: list[tuple[str, VideoFacts]] = []
        unusable: list[BadClip] = []
        for file in files:
            if file.facts is None:
                unusable.append(BadClip(file.path, file.reason))
            elif file.facts.frames < self.span:
                unusable.append(ShortClip(file.path, self._too_short(file.facts.frames)))
            else:
                self._videos.append((file.path, file.facts))
        self._unusable = tuple(unusable)
        if not self._videos:
            raise DataError(
                f"none of the {len(files)} video files below '{root}' can be used; the first is {unusable[0]}"
            )

    @property
    def span(self) -> int:
        """Frames of a video from the first to the last one of a clip of the largest stride."""
        return self._span(self.strides.largest)

    def __len__(self) -> int:
        return len(self._videos)

    @property
    def unusable(self) -> tuple[BadClip, ...]:
        """Undecodable files and those with too few frames."""
        return self._unusable

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the paths and lengths of the usable videos."""
        listed = "\n".join(f"{path}\t{facts.frames}" for path, facts in self._videos)
        # Names of files may be any bytes.
        return hashlib.sha256(listed.encode("utf-8", "surrogateescape")).hexdigest()

    def name(self, index: int) -> str:
        """The path relative to the folder."""
        return self._videos[index][0]

    def clip(self, index: int, rng: np.random.Generator) -> Clip:
        """See `ClipSource.clip`; `rng` chooses the stride and the first frame."""
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
        """Returns the clip from frame `start` on, and how many of its frames the video lacks."""
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
